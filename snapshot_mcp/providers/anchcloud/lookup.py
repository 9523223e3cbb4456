"""A change whose answer was lost: was it carried out? Decided from two pictures of the zone, without any clock: pure.

Before a change is sent, the zone is looked at: its unfinished jobs, and the things that the change would make or move. A
lost answer is looked for against that picture: a new job of the same action that touches the same ids, or a new thing of
the same name. What is found was carried out. What is not found proves nothing while the request may still be on its way,
so it is unknown, and says what to look at.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from snapshot_mcp.contract.errors import OutcomeUnknown
from snapshot_mcp.contract.models import Image, Job, ResourceFilter, Snapshot, SnapshotFilter, Volume
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, JobAction, JobStatus, SnapshotStatus
from snapshot_mcp.contract.text import clean_text, quoted

Item = Snapshot | Volume | Image

FOUND_JOB_PREFIX = "found-"
"""Of a job id that we made up: the change is known to be over and its job can no longer be seen."""

PAGE = 100


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """What is asked: `ids` are resources for a create, snapshots otherwise; `name` of what is made.

    `safety_name`: of the snapshots that a roll-back takes first. `agreement`: the job of a change with terms repeats it.
    """

    action: JobAction
    ids: tuple[str, ...]
    name: str = ""
    safety_name: str = ""
    agreement: str = ""

    @property
    def is_making(self) -> bool:
        """Whether something new comes of it, with the change's name."""
        return self.action in {JobAction.CREATE, JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME}

    @property
    def snapshots_to_look_at(self) -> SnapshotFilter | None:
        """All-or-nothing lets one resource of a create stand for all."""
        match self.action:
            case JobAction.CREATE:
                return SnapshotFilter(resource_id=self.ids[0], status=tuple(SnapshotStatus), limit=PAGE)
            case JobAction.DELETE | JobAction.APPLY | JobAction.LEASE:
                return SnapshotFilter(snapshots=self.ids[:PAGE], limit=PAGE)
            case _:
                return None

    @property
    def exports_to_look_at(self) -> ResourceFilter:
        return ResourceFilter(search_word=self.name, limit=PAGE)


@dataclass(frozen=True, slots=True)
class Picture:
    """What the zone showed at a moment: unfinished jobs (or others seen on the way), and items by id."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    items: Mapping[str, Item] = field(default_factory=dict)

    def is_newer_than(self, item: Item) -> bool:
        """Whether something here was made after the item: then it is an old one that moved into the page."""
        times = [one.create_time for one in self.items.values() if one.create_time]
        return item.create_time is not None and bool(times) and item.create_time < max(times)


@dataclass(frozen=True, slots=True)
class Match:
    """What was found: the job, or a reason why it stays unclear. `items` are the ids that are accounted for by it."""

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
    strangers = {item_id for item_id in after.items if item_id not in before.items and item_id not in effect}
    jobs = [
        job
        for job_id, job in after.jobs.items()
        if job.action == change.action and job_id not in before.jobs and job_id not in claimed
        if _name_of(job) in {None, change.name} and not strangers & set(job.resource_ids)
        if not change.agreement or job.details.get("agreement") == change.agreement
    ]
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


def _name_of(job: Job) -> object:
    """The name of what the job makes, where the zone says it."""
    return next(
        (job.details[key] for key in ("snapshot_name", "image_name", "volume_name") if key in job.details), None
    )


def _touches(job: Job, change: ChangeRequest, effect: Collection[str], after: Picture) -> bool:
    """A job may name what it reads, what it makes, or both; a roll-back's perhaps only what is written to."""
    ids = set(job.resource_ids)
    items = [after.items[one] for one in change.ids if one in after.items]
    targets = {item.resource.resource_id for item in items if isinstance(item, Snapshot)} - {""}
    if change.action == JobAction.APPLY and targets and targets <= ids:
        return True
    return bool(ids & set(effect)) or set(change.ids) <= ids


def _is_effect(change: ChangeRequest, before: Picture, item: Item) -> bool:
    """Whether the item shows what the change would do, and did not show it before."""
    was = before.items.get(_id_of(item))
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
        case _:
            return item.is_available and was.status in GONE_SNAPSHOT_STATUSES


def _id_of(item: Item) -> str:
    return item.snapshot_id if isinstance(item, Snapshot) else item.id


def _by_effect(change: ChangeRequest, before: Picture, after: Picture, items: Mapping[str, Item]) -> Match:
    """The job is over and out of sight; what it did can be seen."""
    if change.action == JobAction.DELETE and all(one in before.items and one not in after.items for one in change.ids):
        return Match(_finished(change, JobStatus.SUCCESSFUL, change.ids), items=frozenset(change.ids))
    if not items:
        return Match()
    if change.action in {JobAction.APPLY, JobAction.LEASE}:
        moved = [one for one in change.ids if one in items]
        if len(moved) < len(change.ids) and change.action == JobAction.APPLY:
            still = [one for one in change.ids if one not in items and not _was_head(before, one)]
            if still:
                return Match(unclear=f"{', '.join(moved)} became the head, {', '.join(still)} did not")
        return Match(_finished(change, JobStatus.SUCCESSFUL, moved), items=frozenset(moved))
    if change.action != JobAction.DELETE and len(items) > 1:
        return Match(
            unclear=f"{', '.join(clean_text(one) for one in sorted(items))} appeared, and one of them may be it"
        )
    item_id, item = next(iter(items.items()))
    if isinstance(item, Snapshot) and change.action == JobAction.CREATE:
        if item.status == SnapshotStatus.PENDING or item.transition_status:
            return Match(unclear=f"snapshot {clean_text(item_id)} is being made and may be it")
        status = JobStatus.FAILED if item.status in GONE_SNAPSHOT_STATUSES else JobStatus.SUCCESSFUL
        return Match(_finished(change, status, [item_id]), items=frozenset({item_id}))
    if item.status == "pending" or item.transition_status:
        return Match(unclear=f"{clean_text(item_id)} is changing and may be it")
    return Match(_finished(change, JobStatus.SUCCESSFUL, [item_id]), items=frozenset({item_id}))


def _was_head(before: Picture, snapshot_id: str) -> bool:
    item = before.items.get(snapshot_id)
    return isinstance(item, Snapshot) and bool(item.is_head)


def _finished(change: ChangeRequest, status: JobStatus, ids: Sequence[str]) -> Job:
    """A job in place of the one that nobody can see any more; its id is good with the zone object that made it."""
    return Job(
        job_id=f"{FOUND_JOB_PREFIX}{uuid.uuid4()}",
        action=change.action,
        status=status,
        info="The answer was lost; that it is over was found by looking at the zone.",
        resource_ids=tuple(ids),
        extra={"found_by_lookup": 1},
    )


def unknown(change: ChangeRequest, what: str, reason: str, unclear: str) -> OutcomeUnknown:
    """Return the error for a change that could not be settled, with what to look at."""
    ids = clean_text(", ".join(repr(one) for one in change.ids), 200)
    places = {
        JobAction.CREATE: f"and at the snapshots of {ids} for one named {quoted(change.name)}",
        JobAction.DELETE: f"and at the status of snapshot {ids}",
        JobAction.APPLY: f"and at which snapshot is the head (is_head) of what {ids} was taken from",
        JobAction.LEASE: f"and at the status of {ids}",
        JobAction.CAPTURE_INSTANCE: f"and at the images for one named {quoted(change.name)}",
        JobAction.CREATE_VOLUME: f"and at the volumes for one named {quoted(change.name)}",
    }
    seen = f" The zone shows that {unclear}." if unclear else " Nothing of it could be seen in the zone until now."
    return OutcomeUnknown(
        f"{what}: the answer was lost ({reason}), and it is not known whether it was carried out.{seen}",
        hint=f"Look at the unfinished jobs {places[change.action]} before you ask for it again.",
    )
