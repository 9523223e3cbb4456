"""Copies of restore points that survive the machine (COPIES.md has the layout, the keys and the invariants).

    settings.py   `[copies.NAME]` of the operator's file          keys.py      the recovery key, and what the machine keeps of it
    stores/       a folder; an S3-compatible object store          manifest.py  what a copy holds, signed and numbered
    seal.py       how bytes are wrapped: as they are, or by age    send.py      bring a copy up to date, piece by piece
    check.py      read back all that was sent                      library.py   what a store holds, as a stranger to it reads it
    fetch.py      a restore point back from it                     deleting.py  what was deleted here goes there, in its own time

It sees `contract` and `ground`, never a provider: a zone's worker gives it the zone's `Parts` and `Ledger`.
"""
