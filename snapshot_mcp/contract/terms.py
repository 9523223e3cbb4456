"""`Terms`: what a person agreed to, sent with the change, so that the zone itself can compare it with the current state.

The zone compares them in the transaction that admits the job (TermsChanged: nothing was begun), and its worker again before
the first byte changes (the job fails with `terms_changed` or `expired`, and nothing was changed). Terms can only forbid: a
change without terms is admitted as before.
"""

from pydantic import Field

from snapshot_mcp.contract.models import Request

BEGIN_WITHIN_SECONDS = 60.0
"""A destructive job that has not begun this long after its admission ends without effect."""


class ResourceTerms(Request):
    """State of a disk when a person agreed to overwrite it; a field that is None is not compared.

    `identity` is what the zone reported (`Volume.identity`), opaque to everybody else; `head_id` is the snapshot that the
    disk's present content grew from, "" for none.
    """

    identity: str | None = None
    head_id: str | None = None


class Uptime(Request):
    """A moment on one machine: `seconds` after the boot whose id is `boot`."""

    boot: str = Field(max_length=64)
    seconds: float = Field(allow_inf_nan=False)


class Terms(Request):
    """Conditions that a person agreed to; a field that is left out is not compared.

    `may_go`: the only snapshots that a deletion may take. `must_stay`: restore points of which at least one must still be
    good afterwards; empty if it was agreed that the last good one goes. `must_exist`: restore points of which at least one
    must still exist, for when none was good. `agreement`: identifies the agreement, so that its job can be found again; the
    job's `extra` repeats it. `recovery_seconds`: the shortest grace period that was promised. `resources`: the disks of a
    roll-back by id. `begin_within_seconds`: counted from admission by the zone's own uptime; the zone may allow less.
    `not_after`: the latest moment to begin, compared only by a zone on the same machine, because a caller may be suspended
    before it calls the zone.
    """

    may_go: tuple[str, ...] | None = None
    must_stay: tuple[str, ...] = ()
    must_exist: tuple[str, ...] = ()
    agreement: str = Field(default="", max_length=64)
    recovery_seconds: int = Field(default=0, ge=0)
    resources: dict[str, ResourceTerms] | None = None
    begin_within_seconds: float = Field(default=BEGIN_WITHIN_SECONDS, gt=0, allow_inf_nan=False)
    not_after: Uptime | None = None
