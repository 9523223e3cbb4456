"""Progress of jobs, reported to the host while a call waits for them."""

from collections.abc import Sequence
from typing import Any

from mcp.server.mcpserver import Context

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import clean_text, format_bytes


class ProgressReport:
    """Reports the average progress of jobs as a percentage that only grows."""

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx = ctx
        self._reported = -1.0

    async def send(self, jobs: Sequence[Job], text: str = "") -> None:
        """Report the jobs if they have advanced, with `text` or else with what they are doing."""
        percent = round(sum(map(_fraction, jobs)) / max(1, len(jobs)) * 100, 1)
        if percent > self._reported:
            self._reported = percent
            await self._ctx.report_progress(percent, 100, text or _text(jobs))


def _fraction(job: Job) -> float:
    if job.is_successful:
        return 1.0
    return min(job.progress.fraction, 0.99) if job.progress else 0.0


def _text(jobs: Sequence[Job]) -> str:
    running = [job for job in jobs if not job.is_finished]
    if not running:
        return ", ".join(dict.fromkeys(clean_text(job.status) for job in jobs))
    if len(running) == 1 and running[0].progress:
        progress = running[0].progress
        size = f" {format_bytes(progress.done)} of {format_bytes(progress.total)}" if progress.unit == "bytes" else ""
        return f"{clean_text(progress.phase) or running[0].status}{size}"
    if len(jobs) == 1:
        return clean_text(running[0].status)
    return f"{len(running)} of {len(jobs)} still running"
