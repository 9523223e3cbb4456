"""All records of a home; no file is opened before the first transaction."""

from pathlib import Path

from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.guard.consent.address import AddressBook
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.journal import Journal
from snapshot_mcp.guard.consent.pin import Pin
from snapshot_mcp.guard.consent.questions import Questions
from snapshot_mcp.guard.consent.register import Register
from snapshot_mcp.guard.consent.standing import ReadRoles


class Records:
    """The records in `folder`. `roles` returns the current roles of people."""

    def __init__(self, folder: Path, clock: Clock, roles: ReadRoles) -> None:
        database = Database(folder)
        self.audit = Audit(database)
        self.register = Register(database, self.audit, clock)
        self.approvals = Approvals(self.register, roles)
        self.questions = Questions(self.register)
        self.pin = Pin(self.register)
        self.addresses = AddressBook(self.register)
        self.journal = Journal(self.register)
