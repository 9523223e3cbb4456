"""Who still counts: the people that the operator's file names by now, and the approvals that they asked for or granted.

An approval counts while the one who asked may still ask, and the one who granted it may still grant. A token that was
replaced under the same name is still that person. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snapshot_mcp.contract.text import quoted
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.register import Rows
from snapshot_mcp.guard.consent.states import OPEN, Door, State

LOCAL = "local"
"""Whoever calls without a token, and the person at this machine. The operator's file does not name them."""
MAY_ASK = "operator"
MAY_GRANT = "approver"


Roles = Mapping[str, frozenset[str]]
"""The names in the operator's file, and their roles."""

ReadRoles = Callable[[], Roles | None]
"""The roles by now. None while the operator's file cannot be read: nothing is voided then, and the rules refuse every act."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who counts by these roles; everybody while they are not known."""

    roles: Roles | None

    def objection(self, approval: Approval) -> str:
        """Return why the approval no longer counts, "" if it does."""
        if approval.state not in (*OPEN, State.SPENT):
            return ""
        return self._lacks("asked for it", approval.call.principal, MAY_ASK) or (
            self._lacks("approved it", approval.decided_by, MAY_GRANT) if approval.door is Door.APPROVER else ""
        )

    def objection_to_grant(self, approval: Approval, door: Door, by: str) -> str:
        """Return why the approval cannot be granted by this person, "" if it can."""
        return self.objection(approval) or (self._lacks("approves it", by, MAY_GRANT) if door is Door.APPROVER else "")

    def _lacks(self, act: str, name: str, role: str) -> str:
        if self.roles is None or name == LOCAL or role in self.roles.get(name, ()):
            return ""
        if name in self.roles:
            return f"{quoted(name)}, who {act}, no longer has the role {role}"
        return f"{quoted(name)}, who {act}, is no longer in the operator's settings"


def void_fallen(rows: Rows, found: list[Approval], standing: Standing) -> list[Approval]:
    """End those of the open approvals that no longer count; return the rest."""
    counting = []
    for approval in found:
        objection = standing.objection(approval) if approval.state in OPEN else ""
        if objection:
            rows.expire(approval, objection, "voided")
        else:
            counting.append(approval)
    return counting
