"""Guarded calls, from what was asked for to what the caller is told.

calls.py        the way of a call
acts.py         the two acts: how each is planned and started
carrier.py      an approved act: the last look, the consent spent, the zone asked
safety.py       the safety snapshot before a roll-back
terms.py        what was agreed to, as it travels with the change
outcome.py      what a call answers
endings.py, replies.py   how it ends when nothing was started
ends.py         how the jobs ended
withdrawal.py   taking a spent consent back
"""
