"""`Terms`: what a person agreed to, carried with the change, so that the zone itself can compare it with what is so.

The zone compares them in the transaction that admits the job (`TermsChanged`: nothing was begun), and its worker compares
them again before the first byte changes (the job ends as failed, `terms_changed` or `expired`, and nothing was changed).
They can only forbid: a change without terms is admitted as before.
"""

from pydantic import Field

from snapshot_mcp.contract.models import Request

BEGIN_WITHIN_SECONDS = 60.0
"""A destructive job that has not begun by then, counted from its admission, ends without effect."""


class ResourceTerms(Request):
    """What a disk was when it was agreed that it is overwritten.

    `identity` is what the zone said of the resource (`Volume.identity`), opaque to everybody else; `head_id` is the
    snapshot that its present content grew from, "" for none. None leaves a field uncompared.
    """

    identity: str | None = None
    head_id: str | None = None


class Uptime(Request):
    """A moment of one machine: so many seconds after the start of the run of the system that `boot` names."""

    boot: str = Field(max_length=64)
    seconds: float = Field(allow_inf_nan=False)


class Terms(Request):
    """What was agreed to; a field that is left out is not compared.

    `may_go`: the only snapshots that a deletion may take. `must_stay`: restore points of which at least one must still be
    good afterwards; empty where it was agreed that the last good one goes. `must_exist`: the same where none was good: at least
    one must still be there. `agreement`: names what was agreed to, so that its job is known again; the job's `extra` repeats
    it (`agreement`). `recovery_seconds`: the least grace that was
    promised. `resources`: by id, the disks of a roll-back. `begin_within_seconds`: from admission, by the zone's own
    uptime; the zone may allow less. `not_after`: when it must have begun at the latest, compared by a zone on the same machine
    alone: who asks can stand still before the zone is asked.
    """

    may_go: tuple[str, ...] | None = None
    must_stay: tuple[str, ...] = ()
    must_exist: tuple[str, ...] = ()
    agreement: str = Field(default="", max_length=64)
    recovery_seconds: int = Field(default=0, ge=0)
    resources: dict[str, ResourceTerms] | None = None
    begin_within_seconds: float = Field(default=BEGIN_WITHIN_SECONDS, gt=0, allow_inf_nan=False)
    not_after: Uptime | None = None
