"""An embedded zone that declares every feature of our own face and notes what reaches it, to test the wire alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Instance, Job, JobError, Page, ResourceFilter, Volume
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.providers.local import LocalZone

TOLD = {"identity": "fs-1:42:1700000000", "held_by": "qemu (pid 7)", "hard_links": 2}
"""What it says of every disk with `verbose`."""


class RecordingZone(LocalZone):
    """`asked` has the method and what it was given. Terms are noted, not kept; `refusal` is what a change is refused with."""

    features = frozenset(Feature)

    def __init__(self, folder: Path, without: frozenset[Feature] = frozenset()) -> None:
        super().__init__(folder)
        self.features = self.features - without  # type: ignore[misc]
        self.asked: list[tuple[str, Any]] = []
        self.refusal: ZoneError | None = None
        self.cancelled: dict[str, Job] = {}

    def _note(self, method: str, given: Any) -> None:
        self.asked.append((method, given))
        if self.refusal is not None:
            raise self.refusal

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        self._note("delete", terms)
        return await super().delete_snapshot(snapshot_id)

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        self._note("apply", (terms, safety_snapshot_name))
        return await super().apply_snapshots(snapshot_ids)

    async def cancel_job(self, job_id: str) -> Job:
        self._note("cancel", job_id)
        job = await super().get_job(job_id)
        error = JobError(code="cancelled", message="It was called off.")
        self.cancelled[job_id] = job.model_copy(update={"status": JobStatus.FAILED, "error": error})
        return self.cancelled[job_id]

    async def get_job(self, job_id: str) -> Job:
        return self.cancelled.get(job_id) or await super().get_job(job_id)

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        return tuple(job for job in await super().list_unfinished_jobs() if job.job_id not in self.cancelled)

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        self.asked.append(("volumes", query.verbose))
        page = await super().list_volumes(query)
        return Page(tuple(one.model_copy(update=TOLD if query.verbose else {}) for one in page.items), page.total_count)

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        self.asked.append(("instances", query.verbose))
        page = await super().list_instances(query)
        return Page(tuple(one.model_copy(update=TOLD if query.verbose else {}) for one in page.items), page.total_count)
