"""Find the snapshot files that no row of the catalogue names, and refuse to make a new catalogue beside them.

Such files remain where a catalogue was lost, emptied, or replaced by an older one (FORMAT.md, "A lost catalogue").
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.database import Catalogue, placeholders
from snapshot_mcp.catalogue.store import DamagedSnapshot, NewerSnapshot
from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.providers.local.snapshot_file.format import SUFFIX, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import SnapshotFile, newer_version

COPY_NAME: Final = "catalogue.copy.sqlite"
"""The copy of the catalogue that the worker keeps beside it (`spare`)."""

REBUILD_HINT: Final = (
    "Run the command `zone rebuild`, which takes them in again. Or, if you have a copy of catalogue.sqlite that is up to date,"
    " put it back."
)

MAX_LOOKED_AT: Final = 20_000
"""Files whose first bytes a list reads, a second on a slow disk."""

_BATCH: Final = 500


def snapshot_ids_in(folder: Path) -> list[str]:
    """Return the ids of all snapshot files in the zone's folder, sorted; none if there is no such folder."""
    try:
        with os.scandir(folder / "snapshots") as entries:
            names = [entry.name for entry in entries if entry.is_file()]  # a pipe would hold up whoever opens it
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(SUFFIX) for name in names if name.startswith("ss-") and name.endswith(SUFFIX))


def find_strays(catalogue: Catalogue, folder: Path, *, with_pending: bool = False) -> list[str]:
    """Return the ids of the files that no row accounts for, sorted.

    A row that has ceased accounts for its file only while a purge is to remove it, one that is `pending` only while its job
    runs (with `with_pending`: never, since none does).
    """
    found: list[str] = []
    ids = snapshot_ids_in(folder)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        rows = catalogue.rows(
            f"""SELECT snapshot_id, status, (SELECT state FROM deletions d WHERE d.deletion_id = s.deletion_id) AS state
            FROM snapshots s WHERE snapshot_id IN ({placeholders(batch)})""",
            *batch,
        )
        without = {SnapshotStatus.PENDING} if with_pending else set()
        known = {row["snapshot_id"] for row in rows if row["status"] not in {SnapshotStatus.CEASED, *without}}
        known |= {
            row["snapshot_id"] for row in rows if row["status"] == SnapshotStatus.CEASED and row["state"] == "purged"
        }
        found += [one for one in batch if one not in known]
    return found


def strays_in_words(catalogue: Catalogue, folder: Path) -> str:
    """Return that there are files without rows, for those who read a list; "" for none, or where looking would take long."""
    if not (folder / "snapshots").is_dir():
        return ""
    with os.scandir(folder / "snapshots") as entries:
        if sum(1 for _ in islice(entries, MAX_FILES_IN_PASSING)) == MAX_FILES_IN_PASSING:
            return ""
    count = len(find_strays(catalogue, folder))
    if not count:
        return ""
    files = (
        f"{count} snapshot file{' is' if count == 1 else 's are'} in the zone's folder that its catalogue does not know"
    )
    return f"{files}, so they are missing here: the operator's command `zone rebuild` takes them in again."


MAX_FILES_IN_PASSING = 10_000
"""With more files than this only `zone list`, `zone check` and `doctor` look for those without rows: it takes a while."""


def needed_by_strays(catalogue: Catalogue, folder: Path) -> set[str]:
    """Return the ids on which files without a row build: they must not be purged before a person has rebuilt the zone."""
    needed: set[str] = set()
    for one in find_strays(catalogue, folder):
        try:
            with SnapshotFile(folder / "snapshots", one) as file:
                needed.update(file.header.chain)
        except (DamagedSnapshot, NewerSnapshot):
            continue
    return needed


def find_newer(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the snapshots that a newer version of the program wrote, with the version of their format."""
    for one in snapshot_ids_in(folder)[:MAX_LOOKED_AT]:
        if (version := newer_format(folder, one)) is not None:
            yield one, version


def newer_format(folder: Path, snapshot_id: str) -> int | None:
    """Return the version of a snapshot's format if only a newer program reads it, else None."""
    try:
        with (folder / "snapshots" / file_name(snapshot_id)).open("rb", buffering=0) as file:
            return newer_version(file.read(8))
    except OSError:
        return None


def refuse_without_files(catalogue: Catalogue, folder: Path) -> None:
    """Raise NotUsable if the folder of the snapshot files is missing although some are known: moved, or not mounted."""
    if (folder / "snapshots").is_dir():
        return
    count = catalogue.count("SELECT count(*) FROM snapshots WHERE status IN ('available', 'suspended', 'deleted')")
    if count:
        where = clean_text(folder / "snapshots", MESSAGE_CHARACTERS)
        raise NotUsable(
            f"The folder {where!r}, with the files of {count} snapshots, is missing.",
            hint="Put it back, or mount it again. Nothing was changed.",
        )


def refuse_stranger(catalogue: Catalogue, folder: Path) -> None:
    """Raise NotUsable if the catalogue knows nothing at all although there are snapshot files: it is not the zone's own."""
    if catalogue.row("SELECT 1 FROM resources LIMIT 1") is None and (ids := snapshot_ids_in(folder)):
        where = clean_text(folder, MESSAGE_CHARACTERS)
        text = f"The zone's catalogue knows no disk at all, but {len(ids)} snapshot files are in {where!r}."
        raise NotUsable(text, hint=REBUILD_HINT)


def refuse_lost(catalogue_path: Path) -> None:
    """Raise NotUsable if there is no catalogue although the zone has content: a new one would hide it."""
    folder = catalogue_path.parent
    if has_content(catalogue_path):
        return
    count = len(snapshot_ids_in(folder))
    what = f"{count} snapshot files are" if count > 1 else "a snapshot file is" if count else ""
    if not what and (folder / COPY_NAME).exists():
        what = f"a copy of it ({COPY_NAME}) is"
    if what:
        state = "empty" if catalogue_path.exists() else "missing"
        where = clean_text(folder, MESSAGE_CHARACTERS)
        raise NotUsable(f"The zone's catalogue is {state}, but {what} in {where!r}.", hint=REBUILD_HINT)


def has_content(catalogue_path: Path) -> bool:
    """Return whether the catalogue's file exists and is not empty."""
    try:
        return catalogue_path.stat().st_size > 0
    except FileNotFoundError:
        return False
