"""Find who uses each of many disks now: a job of ours or another program.

The catalogue's claims and the kernel's tables (`holders`) come first, since they touch no disk. A disk is opened to ask for a
lease only if neither names anybody, and in a transaction in which no job can start: opening a disk that a job of ours holds
would break that job's lease.
"""

import errno
import fcntl
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from stat import S_ISREG
from typing import Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import Row, Use
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.providers.local import platform
from snapshot_mcp.providers.local.holders import (
    DAEMON_NAME,
    UNKNOWN_HOLDER,
    Holder,
    describe,
    find_holders,
    find_mappings,
    is_locked,
)
from snapshot_mcp.providers.local.place import other_kind_at

LOCK_NAME: Final = "worker.lock"
"""Name of the file that the worker holds locked while it runs (`worker`)."""


class Lease(Enum):
    """The system's answers to a request for a lease."""

    FREE = "nobody else has the file open"
    READERS = "somebody has it open for reading"
    WRITERS = "somebody has it open for writing, or mapped"
    NOT_OURS = "the file belongs to another user"
    UNKNOWN = "this system or filesystem has no leases"


def ask_lease(fd: int) -> Lease:
    """Request a lease on a file that is open for reading, and release it at once."""
    if not platform.HAS_LEASE:
        return Lease.UNKNOWN
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # the default signal of a break ends the process
    for kind, others in ((fcntl.F_RDLCK, Lease.WRITERS), (fcntl.F_WRLCK, Lease.READERS)):
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return others
            return Lease.NOT_OURS if error.errno in {errno.EACCES, errno.EPERM} else Lease.UNKNOWN
        finally:
            with suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Lease.FREE


def find_uses(catalogue: Catalogue, folder: Path, resources: Sequence[Row]) -> dict[str, Use]:
    """Return who uses each disk, by resource id."""
    uses = _jobs(catalogue, folder, resources)
    resources = [row for row in resources if row["path"]]
    holders = find_holders([Path(row["path"]) for row in resources])
    named = {path: describe(found) for path, found in holders.items()}
    with _no_new_jobs(catalogue) as may_open:
        uses |= _jobs(catalogue, folder, resources)
        for row in resources:
            path = Path(row["path"])
            if row["resource_id"] not in uses:
                held_by = named[path] or (_ask(path) if may_open else None)
                uses[row["resource_id"]] = Use(held_by and clean_text(held_by, MESSAGE_CHARACTERS))
    return uses


def find_states(folder: Path, resources: Sequence[Row]) -> dict[str, str]:
    """Return whether the machine of each disk runs, by resource id: `running` if a process has it open for writing.

    `unknown` is one that is locked or attached by somebody whom this user may not see, or whose file is not there.
    """
    holders = find_holders([Path(row["path"]) for row in resources if row["path"]])
    worker = _worker_of(folder)
    ours = {
        row["path"]: [one for one in holders.get(Path(row["path"]), []) if not _is_ours(one, worker)]
        for row in resources
    }
    return {row["resource_id"]: _state(row["path"], ours[row["path"]]) for row in resources}


def _state(path: str, holders: Sequence[Holder]) -> str:
    if any(one.process and one.can_write for one in holders):
        return "running"
    is_clear = not holders or any(one.process for one in holders)
    return "stopped" if path and Path(path).exists() and is_clear else "unknown"


def _is_ours(holder: Holder, worker: str) -> bool:
    """Return whether it is our worker, or the daemon of QEMU that reads and writes images for it."""
    return holder.process.partition(" ")[0] == worker or holder.process.endswith(f" {DAEMON_NAME}")


def _worker_of(folder: Path) -> str:
    """Return the process of the folder's worker, "-" for none."""
    lock = folder / LOCK_NAME
    with suppress(OSError):
        return lock.read_text().strip() if is_locked(lock) else "-"
    return "-"


def _jobs(catalogue: Catalogue, folder: Path, resources: Sequence[Row]) -> dict[str, Use]:
    """Return the jobs that hold one of the disks."""
    wanted = {row["resource_id"] for row in resources}
    claims = catalogue.rows("SELECT claims.id, jobs.* FROM claims JOIN jobs USING (job_id) WHERE kind = 'resource'")
    has_worker = not claims or is_locked(folder / LOCK_NAME)
    waits = "" if has_worker else ", which waits for the zone's worker"
    return {
        row["id"]: Use(f"busy with job {row['job_id']} ({row['action']}){waits}", has_worker)
        for row in claims
        if row["id"] in wanted
    }


@contextmanager
def _no_new_jobs(catalogue: Catalogue) -> Iterator[bool]:
    """Keep jobs from starting; yield False if the catalogue cannot be locked, so that no disk may be opened."""
    try:
        catalogue.db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        yield False
        return
    try:
        yield True
    finally:
        catalogue.db.execute("ROLLBACK")


def _ask(path: Path) -> str | None:
    """Return who uses a disk that the tables do not show, "" for nobody, None if unknown."""
    if other_kind_at(path):  # opening a device can have effects
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            return None
        lease = ask_lease(fd)
    finally:
        os.close(fd)
    match lease:
        case Lease.FREE:
            return ""
        case Lease.WRITERS:
            return describe(find_mappings(path)) or UNKNOWN_HOLDER
        case Lease.READERS:
            return UNKNOWN_HOLDER.replace("open", "open for reading", 1)
        case _:
            return None
