"""The jobs of a zone in their latest known state, and the ids that belong to calls that were answered.

A watch compares the zone with it after a gap, so that no change is reported twice or out of order. Bounded: the oldest
finished jobs are dropped first.
"""

from collections.abc import Iterable

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import JobStatus

MAX_JOBS = 5_000
MAX_CLAIMED = 20_000


class JobMemory:
    """Jobs by id in their latest state, oldest first."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.claimed: dict[str, None] = {}
        """Ids of jobs and items that belong to an answered call, so not to one whose answer was lost."""

    def remember(self, job: Job) -> Job:
        """Store the job unless a later state of it is known; return the job."""
        if not is_older(job, self.jobs.get(job.job_id)):
            self.jobs[job.job_id] = job
        if len(self.jobs) > MAX_JOBS:
            finished = [job_id for job_id, known in self.jobs.items() if known.is_finished]
            for job_id in finished[: MAX_JOBS // 2] or list(self.jobs)[: MAX_JOBS // 10]:
                del self.jobs[job_id]
        return job

    def claim(self, ids: Iterable[str]) -> None:
        """Record that these jobs and items belong to calls that were answered."""
        self.claimed.update(dict.fromkeys(ids))
        while len(self.claimed) > MAX_CLAIMED:
            del self.claimed[next(iter(self.claimed))]


class Reported:
    """The jobs reported to one watcher, each in its latest state."""

    def __init__(self, memory: JobMemory) -> None:
        self._memory = memory
        self._jobs: dict[str, Job] = {job_id: job for job_id, job in memory.jobs.items() if job.is_finished}

    def add(self, job: Job) -> bool:
        """Record a job as reported; return False if this state, or a later one, was reported before."""
        known = self._jobs.get(job.job_id)
        if known is not None and (is_older(job, known) or (known.status, known.progress) == (job.status, job.progress)):
            return False
        self._jobs[job.job_id] = job
        self._memory.remember(job)
        if len(self._jobs) > 2 * MAX_JOBS:
            self._jobs = {job_id: known for job_id, known in self._jobs.items() if job_id in self._memory.jobs}
        return True

    @property
    def unfinished_ids(self) -> list[str]:
        """The jobs whose end has not been reported, also those seen only by other calls."""
        return [job_id for job_id in self._memory.jobs if not (job_id in self._jobs and self._jobs[job_id].is_finished)]

    def forget(self, job_id: str) -> None:
        """Drop a job that the zone no longer knows."""
        self._jobs.pop(job_id, None)
        self._memory.jobs.pop(job_id, None)


def is_older(job: Job, known: Job | None) -> bool:
    """Return whether `known` is a later state of the same job; unknown statuses have no order."""
    if known is None or known.status == job.status:
        return False
    return known.is_finished or (job.status == JobStatus.PENDING and known.status == JobStatus.WORKING)
