"""Roles of key pairs: what a program may do over the REST API, which has no guard.

A `reader` reads. A `writer` may also make changes that destroy nothing: back up, export, rename, recover, cancel. `full`
permits everything, deletions and roll-backs too. Each role includes those before it.
"""

from enum import StrEnum

from snapshot_mcp.contract.errors import Forbidden


class Role(StrEnum):
    """What a key pair permits, in ascending order."""

    READER = "reader"
    WRITER = "writer"
    FULL = "full"

    def may(self, needed: "Role") -> bool:
        """Return whether this role includes the role `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


def refuse_without(needed: Role, role: Role, client_id: str, what: str) -> None:
    """Raise Forbidden unless `role` includes `needed`; `what` describes the request."""
    if not role.may(needed):
        raise Forbidden(
            f"Key pair {client_id!r} has the role {str(role)!r}; this needs the role {str(needed)!r}: {what}.",
            hint=f"Use another key pair. On the serving machine, the command `zone keys --new {needed}` creates one.",
        )
