"""What this client has seen of a zone: jobs at their latest, and which ids belong to calls that were answered.

A watch tells from it what changed while nobody listened, and never tells a change twice or backwards. Bounded: the oldest
finished jobs are forgotten first.
"""

from collections.abc import Iterable

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import JobStatus

MAX_JOBS = 5_000
MAX_CLAIMED = 20_000


class JobMemory:
    """Jobs by id at their latest, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.claimed: dict[str, None] = {}
        """Ids of jobs and of things made that belong to a call that was answered: no lost one can be it."""

    def see(self, job: Job) -> Job:
        """Remember what an answer showed, unless something later is known; returns the answer."""
        if not is_older(job, self.jobs.get(job.job_id)):
            self.jobs[job.job_id] = job
        if len(self.jobs) > MAX_JOBS:
            finished = [job_id for job_id, known in self.jobs.items() if known.is_finished]
            for job_id in finished[: MAX_JOBS // 2] or list(self.jobs)[: MAX_JOBS // 10]:
                del self.jobs[job_id]
        return job

    def claim(self, ids: Iterable[str]) -> None:
        self.claimed.update(dict.fromkeys(ids))
        while len(self.claimed) > MAX_CLAIMED:
            del self.claimed[next(iter(self.claimed))]


class News:
    """What one watcher has been told."""

    def __init__(self, memory: JobMemory) -> None:
        self._memory = memory
        self._told: dict[str, Job] = {job_id: job for job_id, job in memory.jobs.items() if job.is_finished}

    def is_news(self, job: Job) -> bool:
        """Whether the watcher does not know this, or something later; it is taken as told from now on."""
        known = self._told.get(job.job_id)
        if known is not None and (is_older(job, known) or (known.status, known.progress) == (job.status, job.progress)):
            return False
        self.skip(job)
        return True

    def skip(self, job: Job) -> None:
        """Take it as told."""
        self._told[job.job_id] = job
        self._memory.see(job)
        if len(self._told) > 2 * MAX_JOBS:
            self._told = {job_id: told for job_id, told in self._told.items() if job_id in self._memory.jobs}

    def has(self, job_id: str) -> bool:
        return job_id in self._told

    @property
    def open_ids(self) -> list[str]:
        """Jobs whose end the watcher has not been told; also those that only other calls have seen."""
        return [job_id for job_id in self._memory.jobs if not (job_id in self._told and self._told[job_id].is_finished)]

    def drop(self, job_id: str) -> None:
        """The zone knows it no more."""
        self._told.pop(job_id, None)
        self._memory.jobs.pop(job_id, None)


def is_older(job: Job, known: Job | None) -> bool:
    """Whether `known` is a later state of the same job; unknown statuses have no order."""
    if known is None or known.status == job.status:
        return False
    return known.is_finished or (job.status == JobStatus.PENDING and known.status == JobStatus.WORKING)
