"""Decide whether a change whose answer was lost was carried out, by comparing two pictures of the zone: pure.

The first picture is taken before a change is sent: the unfinished jobs, and the items that the change would make or affect.
The second is searched for a new job of the same action on the same ids, or a new item of the same name. If one is found, the
change was carried out. If nothing is found, the request may still be in flight, so the outcome is unknown.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from snapshot_mcp.contract.errors import OutcomeUnknown
from snapshot_mcp.contract.models import MAX_LIMIT, Image, Job, ResourceFilter, Snapshot, SnapshotFilter, Volume
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, JobAction, JobStatus, SnapshotStatus
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.providers.anchcloud.filters import id_of

Item = Snapshot | Volume | Image

FOUND_JOB_PREFIX = "found-"
"""Marks a job id made up here for a change that has finished and whose job is no longer listed."""


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A requested change: `ids` are resources for a create, else snapshots; `name` is the name of what it makes.

    `safety_name` names the snapshots that a roll-back takes first; `agreement` is repeated by the job of a change with terms.
    """

    action: JobAction
    ids: tuple[str, ...]
    name: str = ""
    safety_name: str = ""
    agreement: str = ""

    @property
    def is_making(self) -> bool:
        """Whether it makes an item with the change's name."""
        return self.action in {JobAction.CREATE, JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME}

    @property
    def snapshots_to_look_at(self) -> SnapshotFilter | None:
        """The snapshots that show the effect; a create is atomic, so checking one of its resources is enough."""
        match self.action:
            case JobAction.CREATE:
                return SnapshotFilter(resource_id=self.ids[0], status=tuple(SnapshotStatus), limit=MAX_LIMIT)
            case JobAction.DELETE | JobAction.APPLY | JobAction.LEASE | JobAction.VERIFY:
                return SnapshotFilter(snapshots=self.ids[:MAX_LIMIT], limit=MAX_LIMIT)
            case _:
                return None

    @property
    def exports_to_look_at(self) -> ResourceFilter:
        """The volumes or images that show the effect of an export."""
        return ResourceFilter(search_word=self.name, limit=MAX_LIMIT)


@dataclass(frozen=True, slots=True)
class Picture:
    """The state of the zone at one moment: unfinished jobs, and others seen since, and items by id."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    items: Mapping[str, Item] = field(default_factory=dict)

    def is_newer_than(self, item: Item) -> bool:
        """Return whether an item here is newer: then the given one is old, and only moved into the page."""
        times = [one.create_time for one in self.items.values() if one.create_time]
        return item.create_time is not None and bool(times) and item.create_time < max(times)


@dataclass(frozen=True, slots=True)
class Match:
    """What was found: the job, or the reason why it is unclear. `items` are the ids that the job explains."""

    job: Job | None = None
    unclear: str = ""
    items: frozenset[str] = frozenset()


def find(change: ChangeRequest, before: Picture, after: Picture, claimed: Collection[str] = ()) -> Match:
    """Compare the pictures. `claimed` are ids of jobs and items that are known to belong to other calls."""
    items = {
        item_id: item
        for item_id, item in after.items.items()
        if not (change.is_making and item_id in claimed) and _is_effect(change, before, item)
    }
    effect = frozenset(items)
    jobs = _candidates(change, before, after, effect, claimed)
    touching = [job for job in jobs if _touches(job, change, effect, after)]
    if len(touching) > 1:
        return Match(unclear=f"any of the jobs {', '.join(clean_text(job.job_id) for job in touching)} may be it")
    if touching:
        return Match(touching[0], items=effect & frozenset(touching[0].resource_ids))
    if weak := [job for job in jobs if not job.resource_ids]:
        if len(weak) == 1 and effect:
            return Match(weak[0], items=effect)
        return Match(unclear=f"job {clean_text(weak[0].job_id)} may be it")
    return _by_effect(change, before, after, items)


def _candidates(
    change: ChangeRequest, before: Picture, after: Picture, effect: Collection[str], claimed: Collection[str]
) -> list[Job]:
    """Return the new jobs that do what the change does, without those of other calls."""
    strangers = after.items.keys() - before.items.keys() - set(effect)
    return [
        job
        for job_id, job in after.jobs.items()
        if job.action == change.action and job_id not in before.jobs and job_id not in claimed
        if _name_of(job) in {None, change.name} and not strangers & set(job.resource_ids)
        if not change.agreement or job.details.get("agreement") == change.agreement
    ]


def _name_of(job: Job) -> object:
    """Return the name of the item that the job makes, None if the zone does not say it."""
    return next(
        (job.details[key] for key in ("snapshot_name", "image_name", "volume_name") if key in job.details), None
    )


def _touches(job: Job, change: ChangeRequest, effect: Collection[str], after: Picture) -> bool:
    """Return whether the job names the change's ids or items; a roll-back's job may name only the disks it writes."""
    ids = set(job.resource_ids)
    items = [after.items[one] for one in change.ids if one in after.items]
    targets = {item.resource.resource_id for item in items if isinstance(item, Snapshot)} - {""}
    if change.action == JobAction.APPLY and targets and targets <= ids:
        return True
    return bool(ids & set(effect)) or set(change.ids) <= ids


def _is_effect(change: ChangeRequest, before: Picture, item: Item) -> bool:
    """Return whether the item shows the effect of the change, and did not show it before."""
    was = before.items.get(id_of(item))
    if change.is_making:
        name = item.snapshot_name if isinstance(item, Snapshot) else item.name
        return was is None and name.strip() == change.name.strip() and not before.is_newer_than(item)
    if not isinstance(item, Snapshot) or not isinstance(was, Snapshot):
        return False
    match change.action:
        case JobAction.DELETE:
            return item.status in GONE_SNAPSHOT_STATUSES and was.status not in GONE_SNAPSHOT_STATUSES
        case JobAction.APPLY:
            return bool(item.is_head) and not was.is_head
        case JobAction.VERIFY:
            return item.verified_at != was.verified_at
        case _:
            return item.is_available and was.status in GONE_SNAPSHOT_STATUSES


def _by_effect(change: ChangeRequest, before: Picture, after: Picture, items: Mapping[str, Item]) -> Match:
    """Judge by the effect alone: the job has finished and is no longer listed."""
    if change.action == JobAction.DELETE and all(one in before.items and one not in after.items for one in change.ids):
        return _finished(change, change.ids)
    if not items:
        return Match()
    if change.action in {JobAction.APPLY, JobAction.LEASE, JobAction.VERIFY}:
        return _by_moves(change, before, items)
    if change.action != JobAction.DELETE and len(items) > 1:
        return Match(unclear=f"one of {', '.join(clean_text(one) for one in sorted(items))} may be it")
    item_id, item = next(iter(items.items()))
    if item.status == "pending" or item.transition_status:
        return Match(unclear=f"{clean_text(item_id)} is still changing and may be it")
    is_failed = change.action == JobAction.CREATE and item.status in GONE_SNAPSHOT_STATUSES
    return _finished(change, [item_id], JobStatus.FAILED if is_failed else JobStatus.SUCCESSFUL)


def _by_moves(change: ChangeRequest, before: Picture, items: Mapping[str, Item]) -> Match:
    """Judge a roll-back or a recovery by the snapshots that became the head, or available."""
    moved = [one for one in change.ids if one in items]
    left = [one for one in change.ids if one not in items and not _was_head(before, one)]
    if change.action == JobAction.APPLY and left:
        return Match(unclear=f"{', '.join(moved)} became the head, {', '.join(left)} did not")
    return _finished(change, moved)


def _was_head(before: Picture, snapshot_id: str) -> bool:
    item = before.items.get(snapshot_id)
    return isinstance(item, Snapshot) and bool(item.is_head)


def _finished(change: ChangeRequest, ids: Sequence[str], status: JobStatus = JobStatus.SUCCESSFUL) -> Match:
    """Return a match with a job made up here, in place of the one that is no longer listed."""
    job = Job(
        job_id=f"{FOUND_JOB_PREFIX}{uuid.uuid4()}",
        action=change.action,
        status=status,
        info="The answer was lost; the state of the zone shows that the change has finished.",
        resource_ids=tuple(ids),
        extra={"found_by_lookup": 1},
    )
    return Match(job, items=frozenset(ids))


def unknown(change: ChangeRequest, what: str, reason: str, unclear: str) -> OutcomeUnknown:
    """Return the error for a change whose outcome is unknown; it says where to look."""
    ids = clean_text(", ".join(repr(one) for one in change.ids), 200)
    places = {
        JobAction.CREATE: f"and at the snapshots of {ids} for one named {quoted(change.name)}",
        JobAction.DELETE: f"and at the status of snapshot {ids}",
        JobAction.APPLY: f"and at which snapshot is the head (is_head) of what {ids} was taken from",
        JobAction.LEASE: f"and at the status of {ids}",
        JobAction.VERIFY: f"and at when {ids} was last verified; verifying again is safe",
        JobAction.CAPTURE_INSTANCE: f"and at the images for one named {quoted(change.name)}",
        JobAction.CREATE_VOLUME: f"and at the volumes for one named {quoted(change.name)}",
    }
    seen = f" The zone shows that {unclear}." if unclear else " The zone shows no trace of it yet."
    return OutcomeUnknown(
        f"{what}: the answer was lost ({reason}), so it is unknown whether it was carried out.{seen}",
        hint=f"Before you repeat it, look at the unfinished jobs {places[change.action]}.",
    )
