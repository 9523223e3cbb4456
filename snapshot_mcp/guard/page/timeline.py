"""What a roll-back loses, as a picture: each disk's time line from the restore point that it returns to, up to the request. Pure.

The server draws it as SVG; its words are in the page beside it, because a drawing does not break lines on a phone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.guard.plan.plan import Head, Overwrite, Plan, RollbackLoss
from snapshot_mcp.guard.plan.wording import counted, format_moment

WIDTH = 1000
"""Units of the drawing; it is scaled to the page."""
EDGE = 24
"""Room for a mark at either end."""
KEPT_SHARE = 0.25
"""The part of the line that is left for what is kept, whatever the times are: what is lost is never too narrow to see."""
MAX_POINTS = 40
"""Restore points drawn between; more cannot be told apart on a phone."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One disk's line. `target_x` is where it returns to; from there to `now_x` is lost. `later` are restore points between.

    `lost` says how long that is, in words; `since` and `until` are its ends.
    """

    disk: str
    snapshot: str
    target_x: int
    now_x: int
    later: tuple[int, ...]
    lost: str
    since: str
    until: str
    has_safety_snapshot: bool

    @property
    def in_words(self) -> str:
        """The picture for whoever cannot see it."""
        points = f" {counted(len(self.later), 'restore point')} in between stay." if self.later else ""
        return (
            f"{self.disk} returns to {self.snapshot} of {self.since}; {self.lost} up to {self.until} are lost.{points}"
        )


def timelines(plan: Plan, asked_at: datetime) -> tuple[Timeline, ...]:
    """Return the time line of each disk that a roll-back overwrites, as of the moment when it was asked for."""
    if not isinstance(plan.loss, RollbackLoss):
        return ()
    heads = {one.resource_id: one for one in plan.heads}
    has_safety = plan.loss.has_safety_snapshot
    return tuple(_timeline(one, heads.get(one.resource_id), asked_at, has_safety) for one in plan.loss.overwrites)


UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def duration_in_words(seconds: float) -> str:
    """Return a length of time in its largest unit, and in the next smaller one if that is not nothing."""
    left = max(0, int(seconds))
    largest = next((index for index, (_, size) in enumerate(UNITS) if left >= size), len(UNITS))
    parts = []
    for unit, size in UNITS[largest : largest + 2]:
        count, left = divmod(left, size)
        parts += [counted(count, unit)] if count else []
    return " ".join(parts) or "less than a second"


def _timeline(one: Overwrite, head: Head | None, asked_at: datetime, has_safety_snapshot: bool) -> Timeline:
    since = min(one.since, asked_at) if one.since else None
    span = asked_at - since if since else None
    target_x, now_x = (int(WIDTH * KEPT_SHARE) if since else EDGE), WIDTH - EDGE
    between = _between(head, since, asked_at) if since else []
    return Timeline(
        disk=_disk(one),
        snapshot=quoted(one.snapshot_name),
        target_x=target_x,
        now_x=now_x,
        later=tuple(target_x + int((now_x - target_x) * ((at - since) / span)) for at in between if since and span),
        lost=duration_in_words(span.total_seconds()) if span is not None else "an unknown time",
        since=format_moment(one.since),
        until=format_moment(asked_at),
        has_safety_snapshot=has_safety_snapshot,
    )


def _between(head: Head | None, since: datetime, until: datetime) -> Sequence[datetime]:
    """Return when the restore points were taken that the disk's present content grew from after `since`."""
    times = [at for _, at in head.lineage if at is not None] if head else []
    moment = timedelta(seconds=1)  # of the restore point itself: its times may differ by parts of a second
    return sorted(at for at in times if since + moment < at < until)[-MAX_POINTS:]


def _disk(one: Overwrite) -> str:
    return quoted(one.resource_name) if one.resource_name else clean_text(one.resource_id)
