"""What people decided, and the record of it: HOME/guard.sqlite with audit.head and audit.key. It knows no zone.

client.py, doors.py        the ways to a person: through the host, and outside of the conversation
approval.py, states.py     one approval and its states
approvals.py, questions.py what is done with them, each method one transaction
standing.py, pin.py        whose yes counts
register.py, database.py   the rows and the file
audit.py, seals.py         the record, chained and sealed
journal.py                 acts that need no approval and are recorded all the same
clock.py                   time as the guard trusts it
errors.py                  the guard's own errors
"""
