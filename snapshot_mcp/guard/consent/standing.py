"""Decides whether an approval's people still have their roles. Pure.

An approval is valid only while the one who requested it may request, and the one who granted it may grant. A token replaced
under the same name is still the same person.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snapshot_mcp.contract.text import quoted
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.register import Rows
from snapshot_mcp.guard.consent.states import OPEN, Door, State

LOCAL = "local"
"""The principal of callers without a token and of the person at this machine; it needs no role."""
MAY_ASK = "operator"
MAY_GRANT = "approver"

Roles = Mapping[str, frozenset[str]]
"""The roles of each person in the operator's file, by name."""

ReadRoles = Callable[[], Roles | None]
"""Reads the current roles; None if the operator's file is unreadable: the rules then refuse every act, nothing is voided."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Checks approvals against these roles; while they are unknown, everybody passes."""

    roles: Roles | None

    def objection(self, approval: Approval) -> str:
        """Return why the approval is no longer valid, "" if it is."""
        if approval.state not in (*OPEN, State.SPENT):
            return ""
        return self._lacks("requested it", approval.call.principal, MAY_ASK) or (
            self._lacks("approved it", approval.decided_by, MAY_GRANT) if approval.door is Door.APPROVER else ""
        )

    def objection_to_grant(self, approval: Approval, door: Door, by: str) -> str:
        """Return why this person cannot grant the approval, "" if they can."""
        return self.objection(approval) or (self._lacks("approves it", by, MAY_GRANT) if door is Door.APPROVER else "")

    def _lacks(self, act: str, name: str, role: str) -> str:
        if self.roles is None or name == LOCAL or role in self.roles.get(name, ()):
            return ""
        if name in self.roles:
            return f"{quoted(name)}, who {act}, no longer has the role {role}"
        return f"{quoted(name)}, who {act}, is no longer in the operator's settings"


def void_revoked(rows: Rows, found: list[Approval], standing: Standing) -> list[Approval]:
    """Expire the open approvals whose people lost their role; return the others."""
    counting = []
    for approval in found:
        objection = standing.objection(approval) if approval.state in OPEN else ""
        if objection:
            rows.expire(approval, objection, "voided")
        else:
            counting.append(approval)
    return counting
