"""What is special to an embedded zone: its files, its worker, its space, and where its backups lie."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread

from snapshot_mcp.contract.copied import CopyStatus
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import ResourceFilter, format_time
from snapshot_mcp.contract.text import clean_text, format_bytes
from snapshot_mcp.doctor.symptom import Symptom, look, well, wrong
from snapshot_mcp.doctor.zone import MAX_DISKS
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.mounts import drive_of
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import recognise
from snapshot_mcp.zones.finding import read_list

MAX_NAMED = 5
STARTING_SECONDS = 1.0
"""How long a worker that is being started is given."""


async def look_at_embedded(zone: LocalZone, command: str) -> list[Symptom]:
    """Return what is found of an embedded zone. A zone that cannot be read has been reported by whoever asked it first."""
    about = f"zone {zone.zone}"
    try:
        if not zone.folder.exists():
            return []
        oversight, copy_problem = await zone.look_over(), await zone.copy_problem()
        jobs = await zone.list_unfinished_jobs()
        disks, _ = await read_list(zone.list_volumes, ResourceFilter(), MAX_DISKS)
        files = {
            f"disk {clean_text(one.name)} ({one.id})": Path(one.path) for one in disks if one.path and one.byte_size
        }
        raw = {path for one in disks if one.path and one.format in {None, "", "raw"} for path in [Path(one.path)]}
        holders = await zone.largest_holders()
        copies = {one.copy_name: one for one in await zone.list_copies()}
    except (ZoneError, OSError):
        return []
    worker = await anyio.to_thread.run_sync(zone.worker_pid)
    if jobs and not worker:  # it may be about to say who it is
        await anyio.sleep(STARTING_SECONDS)
        worker = await anyio.to_thread.run_sync(zone.worker_pid)
    symptoms = [wrong(about, copy_problem, f"{command} zone adopt --zone {zone.zone}")] if copy_problem else []
    if oversight.stray_ids:
        text = f"{len(oversight.stray_ids)} snapshot files that the catalogue does not know."
        symptoms.append(wrong(about, text, f"{command} zone rebuild --zone {zone.zone}"))
    if oversight.newer:
        text = f"{len(oversight.newer)} snapshot files were written by a newer version of snapshot-mcp."
        symptoms.append(wrong(about, text, "Update this installation."))
    symptoms.append(_worker(about, worker, len(jobs)))
    symptoms.append(await anyio.to_thread.run_sync(_space, about, zone, holders))
    symptoms += _copies(about, zone.copies, copies, command)
    looked_into = (
        {} if jobs else {name: path for name, path in files.items() if path in raw}
    )  # no job of ours has it open
    found = partial(_access_and_place, about, zone.folder, files, looked_into)
    symptoms += await anyio.to_thread.run_sync(found)
    return symptoms


def _copies(about: str, names: Sequence[str], known: Mapping[str, CopyStatus], command: str) -> Iterator[Symptom]:
    """Say how the copies elsewhere stand; none is looked into, which `copy check` does."""
    if not names:
        yield look(about, "Nothing copies its backups off this machine.", "README: A copy that survives the machine.")
    for name in names:
        one = known.get(name)
        if one is None:
            yield look(about, f"Copy {name} has not run yet.", f"{command} copy run {name}")
        elif one.problem:
            step = "key" if "copy key" in one.problem else f"run {name}"
            yield wrong(about, f"Copy {name}: {clean_text(one.problem, 400)}", f"{command} copy {step}")
        elif one.missing_count:
            text = f"Copy {name} lacks {one.missing_count} restore points."
            yield look(about, text, f"{command} copy run {name}")
        else:
            ran = format_time(one.ran_at)
            checked = f"checked {format_time(one.checked_at)}" if one.checked_at else "never checked"
            yield well(about, f"Copy {name} has all {one.copied_count} restore points as of {ran}, {checked}.")


def _access_and_place(
    about: str, folder: Path, files: Mapping[str, Path], raw_files: Mapping[str, Path]
) -> list[Symptom]:
    return [*_access(files), *_formats(raw_files), *_one_drive(about, folder, files)]


def _formats(files: Mapping[str, Path]) -> Iterator[Symptom]:
    """Say which disks have become something else than a raw image since they were registered."""
    for about, path in files.items():
        try:
            with path.open("rb") as file:
                known = recognise(file.fileno(), os.fstat(file.fileno()).st_size)
        except OSError:
            continue  # its zone has said so
        if known:
            yield wrong(
                about,
                f"It is not a raw image any more, but {known.name}: what would be backed up is that file, not a disk.",
                f"Look at {clean_text(str(path), 400)}.",
            )


def _worker(about: str, pid: int, job_count: int) -> Symptom:
    jobs = f"{job_count} job{'' if job_count == 1 else 's'}"
    if pid:
        return well(about, f"Its worker runs (process {pid}); {jobs} unfinished.")
    if job_count:
        return wrong(
            about, f"{jobs} unfinished, and no worker runs.", "Any change starts one; the worker's log says why."
        )
    return well(about, "No worker runs, and none is needed: a change starts one.")


def _space(about: str, zone: LocalZone, holders: str) -> Symptom:
    free, total = reserve.free_bytes(zone.folder), reserve.total_bytes(zone.folder)
    wanted = zone.keep_free.bytes_of(total)
    text = f"{format_bytes(free)} of {format_bytes(total)} are free where its backups lie."
    if free < max(wanted, reserve.RESERVE_BYTES):
        limit = f" Backups leave {format_bytes(wanted)} free, so none can be made." if wanted else ""
        return wrong(about, f"{text}{limit}", holders or "Free some space on this disk.")
    return well(about, text)


def _access(files: Mapping[str, Path]) -> Iterator[Symptom]:
    """Say which disks this user may not read, write or lock; none is opened, which would break a running job's lease."""
    for about, path in files.items():
        shown = quote(str(path))
        try:
            owner = path.stat().st_uid
        except OSError:
            continue  # its zone has said so
        if not os.access(path, os.R_OK):
            yield wrong(
                about, f"{clean_text(str(path), 400)} cannot be read, so it cannot be backed up.", f"ls -l {shown}"
            )
        elif not os.access(path, os.W_OK):
            text = f"{clean_text(str(path), 400)} cannot be written, so it cannot be rolled back."
            yield look(about, text, f"ls -l {shown}")
        elif owner != os.geteuid() and os.geteuid() != 0:
            yield look(about, "It belongs to another user, and only its owner can keep others out while it is read.")


def _one_drive(about: str, folder: Path, files: Mapping[str, Path]) -> Iterator[Symptom]:
    """Say which disks lie on the drive on which their backups lie: one that dies takes both."""
    together = []
    for path in files.values():
        try:
            if drive_of(path) == drive_of(folder):
                together.append(clean_text(str(path), 200))
        except OSError:
            continue  # a disk that cannot be read is a problem of its own
    if together:
        more = f" and {len(together) - MAX_NAMED} more" if len(together) > MAX_NAMED else ""
        yield look(
            about,
            f"On one drive with their own backups, which die with it: {', '.join(together[:MAX_NAMED])}{more}.",
            f"Let the zone's `folder` be on another drive than the disks, or copy {clean_text(str(folder), 200)} elsewhere.",
        )
