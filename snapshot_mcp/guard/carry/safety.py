"""Takes the safety snapshot before a roll-back, as a separate job (GUARD.md, "Safety snapshot").

Its name is secret until it is taken, so a call can recognise the snapshot of a process that died, and nobody can plant one.
"""

from collections.abc import Awaitable, Callable

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import NotFound, OutcomeUnknown, ZoneError
from snapshot_mcp.contract.models import MAX_LIMIT, Job, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.contract.tree import is_fuzzy
from snapshot_mcp.guard.carry.steps import SafetyState
from snapshot_mcp.guard.carry.surroundings import Surroundings
from snapshot_mcp.guard.consent.approval import Approval, Safety
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.guard.plan.plan import RollbackLoss
from snapshot_mcp.zones import Zone

OnProgress = Callable[[tuple[Job, ...]], Awaitable[None]]

FRESH_SECONDS = 30.0
"""Maximum age of a safety snapshot when the roll-back starts: what is written after it cannot be restored."""
FRESH_WITHOUT_TIMES_SECONDS = 15 * 60.0
"""The same if the zone does not report how long it took, so that a slow one is not taken again and again."""


class SafetySnapshot:
    """Takes the safety snapshot of an approved roll-back, or resumes one that was begun."""

    def __init__(self, surroundings: Surroundings, zone: Zone, client: Client, on_progress: OnProgress | None) -> None:
        self._approvals = surroundings.records.approvals
        self._clock = surroundings.clock
        self._wait_seconds = surroundings.safety_wait_seconds
        self._zone = zone
        self._client = client
        self._on_progress = on_progress

    async def ensure(self, approval: Approval) -> SafetyState:
        """Take it, waiting as long as the call may. Raises the zone's error if it refuses to take one."""
        if not approval.safety.is_started:
            with anyio.CancelScope(shield=True):
                started = await self._start(approval)
            if started is None:
                return SafetyState(is_running=True)
            approval = started
        seconds = FRESH_SECONDS
        made: set[str] = set()
        if approval.safety.job_id:
            try:
                wait = min(self._wait_seconds, self._client.seconds_left)
                (job,) = await self._zone.watcher.wait([approval.safety.job_id], wait, self._on_progress)
            except NotFound:
                return await self._failed(approval, "the zone no longer knows its job.")
            if not job.is_finished:
                return SafetyState(is_running=True, job_id=job.job_id)
            if not job.is_successful:
                why = clean_text(job.reason, MESSAGE_CHARACTERS) or "the zone gives no reason"
                return await self._failed(approval, f"it failed ({why}).")
            if job.create_time and job.finished_time:
                seconds += max(0.0, (job.finished_time - job.create_time).total_seconds())
            else:
                seconds = FRESH_WITHOUT_TIMES_SECONDS
            made = set(job.resource_ids) - set(_resource_ids(approval))
        return await self._verified(approval, seconds, made)

    async def _start(self, approval: Approval) -> Approval | None:
        """Start it, or adopt the one that a dead process started; return None while another call is starting it."""
        claim = await in_thread(self._approvals.claim_safety, approval.id)
        if claim is None:
            current = await in_thread(self._approvals.get, approval.id)
            return current if current.safety.is_started else None
        safety, was_tried = claim
        if was_tried and (adopted := await self._adopt(approval, safety)):
            return adopted
        try:
            job = await self._zone.provider.create_snapshots(_resource_ids(approval), safety.name)
        except OutcomeUnknown:
            if adopted := await self._adopt(approval, safety):
                return adopted
            raise
        except ZoneError as error:
            dropped = await in_thread(self._approvals.drop_safety, approval.id, error.code)
            kept = dropped.validity(self._clock.read())
            why = "The roll-back was not started, because its safety snapshot could not be taken."
            error.add(hint=f"{why} {kept}")
            raise
        return await in_thread(self._approvals.start_safety, approval.id, job.job_id)

    async def _adopt(self, approval: Approval, safety: Safety) -> Approval | None:
        """Find by its name the safety snapshot whose request was not answered."""
        found = await self._named(safety.name)
        ids = {one.snapshot_id for one in found if one.status not in GONE_SNAPSHOT_STATUSES}
        if not ids:
            return None
        for job in await self._zone.list_unfinished_jobs():
            if ids & set(job.resource_ids):
                return await in_thread(self._approvals.start_safety, approval.id, job.job_id)
        return await in_thread(self._approvals.start_safety, approval.id, "", tuple(sorted(ids)))

    async def _verified(self, approval: Approval, seconds: float, made: set[str]) -> SafetyState:
        """Verify that it covers every disk and was begun within `seconds`; if it is older, take another.

        The zone's clock may be wrong, so its times only give durations; the age is measured by ours. The name is public by
        now and snapshots can be renamed, so it must also be one that the job made, as far as the zone reports that, the one
        seen before, and none that existed when the person was asked.
        """
        found = await self._named(approval.safety.name)
        wanted = set(_resource_ids(approval))
        sound = [one for one in found if one.is_available and not one.is_damaged and not is_fuzzy(one)]
        covered = {one.resource.resource_id for one in sound}
        names_resources = all(one.resource.resource_id for one in sound)
        if len(sound) != len(wanted) or (names_resources and covered != wanted):
            return await self._failed(approval, "it is not available, not sound, or may be inconsistent.")
        found_ids = {one.snapshot_id for one in sound}
        older = {id_ for head in approval.plan.heads for id_ in head.known}
        if found_ids & older or not found_ids <= (set(approval.safety.snapshot_ids) or made or found_ids):
            return await self._failed(approval, "another snapshot has its name.")
        begun = approval.safety.begun or approval.safety.claimed
        if begun is None or not begun.is_within(self._clock.read(), seconds):
            return await self._renewed(approval)
        ids = tuple(sorted(found_ids))
        if approval.safety.snapshot_ids != ids:
            approval = await in_thread(self._approvals.finish_safety, approval.id, ids)
        return SafetyState(is_there=True, job_id=approval.safety.job_id, snapshot_ids=ids)

    async def _named(self, name: str) -> list[Snapshot]:
        page = await self._zone.provider.list_snapshots(SnapshotFilter(search_word=name, verbose=1, limit=MAX_LIMIT))
        return [one for one in page.items if one.snapshot_name == name]

    async def _renewed(self, approval: Approval) -> SafetyState:
        """Take another one, as long as the approval is valid: what was written since the old one is in neither."""
        problem = "it is too old to restore the current content."
        failed = await self._failed(approval, problem)
        if failed.approval is None or not failed.approval.is_alive(self._clock.read()):
            return failed
        return await self.ensure(failed.approval)

    async def _failed(self, approval: Approval, problem: str) -> SafetyState:
        job_id = approval.safety.job_id
        dropped = await in_thread(self._approvals.drop_safety, approval.id, problem)
        return SafetyState(job_id=job_id, problem=f"the safety snapshot cannot be used: {problem}", approval=dropped)


def _resource_ids(approval: Approval) -> list[str]:
    loss = approval.plan.loss
    return [one.resource_id for one in loss.overwrites] if isinstance(loss, RollbackLoss) else []
