"""`snapshot-mcp zone rebuild`: what was taken in again, and what nobody can know any more."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from snapshot_mcp.cli.out import say
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import clean_text

if TYPE_CHECKING:
    from snapshot_mcp.app import Oversight, RebuildReport

PATH_CHARACTERS = 400
MAX_NAMED = 20


def tell(report: "RebuildReport", command: str) -> int:
    """Print what a rebuild did; return its exit status, 1 if something was found that a person has to look at."""
    if not report.has_changed and not report.findings:
        say("Every snapshot file has its row in the catalogue. Nothing was changed.")
        return 0
    say(_taken_in(report))
    if report.state.value != "usable":
        say(f"The catalogue was {report.state.value}; a new one was made. {_source(report)}")
    if report.moved_aside:
        say(f"The old one is {clean_text(report.moved_aside, PATH_CHARACTERS)}.")
    for what, ids in (
        ("were deleted and are available again", report.undeleted),
        ("have no file any more", report.gone),
        ("ended as failed: how these jobs went on is not known", report.ended_jobs),
        ("are exports that were found", report.exports),
    ):
        if ids:
            say(f"{_named(ids)}: {what}.")
    for one in report.disks:
        was = f" It was at {clean_text(one.former_path, PATH_CHARACTERS)}." if one.former_path else ""
        say(
            f"{one.resource_id} {clean_text(one.name)} has no file.{was} Next: {command} zone move {one.resource_id} PATH"
        )
    for finding in report.findings:
        say(f"{'DAMAGED' if finding.is_damage else 'look at'}  {finding.subject}: {finding.text}")
    if report.taken_in or report.by_copy_count:
        say("Which snapshot the content of their disks grew from is not known, so the next backup of each is full.")
    return 1 if report.findings else 0


def _taken_in(report: "RebuildReport") -> str:
    by_file, by_copy = len(report.taken_in), report.by_copy_count
    if not by_copy:
        return f"{_count(by_file, 'snapshot')} taken in again."
    more = f", {by_file} by their files alone" if by_file else ""
    return f"{_count(by_file + by_copy, 'snapshot')} taken in again: {by_copy} as the copy of the catalogue knew them{more}."


def overlooked(oversight: "Oversight", command: str) -> list[str]:
    """Return what a list has to say of files that it cannot show."""
    lines = []
    if oversight.stray_ids:
        files = _count(len(oversight.stray_ids), "snapshot file")
        lines.append(f"{files} that the catalogue does not know: {command} zone rebuild takes them in.")
    if oversight.newer:
        newer = ", ".join(f"{one} (format {version})" for one, version in oversight.newer[:MAX_NAMED])
        lines.append(f"Written by a newer version of snapshot-mcp, and not readable here: {newer}.")
    return lines


def _source(report: "RebuildReport") -> str:
    if report.copy_at is None:
        return "There was no copy of it, so later names, tags and what was exported are not known."
    moment = format_time(datetime.fromtimestamp(report.copy_at, UTC))
    return f"It is based on the copy of {moment}: what was renamed or tagged since is not known."


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _named(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f"{', '.join(ids[:MAX_NAMED])}{more}"
