"""What a destructive act would take, decided without I/O and without a clock; `gather.py` alone reads a zone.

facts.py      what was read of the zone
gather.py     reading it
plan.py       the loss, what remains, and whether a consent still covers it
policy.py     the operator's rules
rules.py      whether one of them forbids a plan
wording.py    the plan in words
question.py   what a person is asked, and what they answer
person.py     acts that only a person starts
"""
