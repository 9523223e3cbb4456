"""Roles of key pairs: what a program may do over the REST API, which has no guard.

A `reader` looks. A `writer` also does what can be undone or takes nothing away: back up, export, rename, recover, cancel.
`full` is everything, deletions and roll-backs too. Each role may do what those before it may.
"""

from enum import StrEnum

from snapshot_mcp.contract.errors import Forbidden


class Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    FULL = "full"

    def may(self, needed: "Role") -> bool:
        """Whether what needs the role `needed` may be done with this one."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


def refuse_without(needed: Role, role: Role, client_id: str, what: str) -> None:
    """Raises Forbidden, naming the role and what it lacks; `what` says what was asked for."""
    if not role.may(needed):
        raise Forbidden(
            f"Key pair {client_id!r} has the role {str(role)!r}, and this needs the role {str(needed)!r}: {what}.",
            hint=f"Use another key pair. Where the zone is served, the command `zone keys --new {needed}` makes one.",
        )
