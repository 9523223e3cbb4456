"""A new zone made of parts that come from elsewhere: their files are put in place, and the catalogue is rebuilt from them.

Never merged into a zone that exists. A run that was interrupted left a mark with the place that it read from, and may go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import Damaged, NotFound, NotUsable, Unavailable, Unsupported
from snapshot_mcp.contract.parts import Part
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, encodable
from snapshot_mcp.ground.files import fsync_folder, make_private_folder, replace_private
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.folder import FOLDERS, FolderCatalogue
from snapshot_mcp.providers.local.parts import LocalParts
from snapshot_mcp.providers.local.rebuild import RebuildReport, rebuild
from snapshot_mcp.providers.local.snapshot_file.format import file_name

MAX_FAILED: Final = 3
"""Parts in a row that cannot be read; with more of them the place itself cannot be, and all is left to be gone on with."""

MARK: Final = ".restored-from"
"""The file that says where a zone comes from, while it is being made."""

Fetch = Callable[[Part, Path], None]
"""Writes a part's verified bytes into a new file. Raises Damaged, NotFound."""


@dataclass(frozen=True, slots=True)
class MadeZone:
    """What a rebuild took in, and why parts are missing, by id."""

    report: RebuildReport
    missing: dict[str, str]


def make_zone(folder: Path, source: str, parts: Sequence[Part], fetch: Fetch) -> MadeZone:
    """Make a zone of parts in a folder that has none. Raises NotUsable if there is one."""
    _refuse_other(folder, source, parts)
    make_private_folder(folder)
    snapshots = folder / FOLDERS[0]
    make_private_folder(snapshots)
    replace_private(folder / MARK, source.encode("utf-8", "surrogateescape"))
    fsync_folder(folder)
    missing: dict[str, str] = {}
    failed = 0
    for part in sorted(parts, key=lambda one: (len(one.parents), one.taken_at)):
        path = snapshots / file_name(part.part_id)
        if lost := [one for one in part.parents if one in missing]:
            missing[part.part_id] = f"it builds on {lost[0]}, which is missing"
        elif not path.exists():
            try:
                fetch(part, path)
                failed = 0
            except (Damaged, NotFound, Unsupported) as error:
                missing[part.part_id] = error.message
            except Unavailable as error:  # of one object, or of all
                failed += 1
                if failed > MAX_FAILED:
                    raise
                missing[part.part_id] = error.message
    fsync_folder(snapshots)
    report = rebuild(folder)
    here = [part for part in parts if part.part_id not in missing]
    if report.taken_in:
        with FolderCatalogue(folder) as catalogue:
            unknown = LocalParts(catalogue, folder.name).adopt_parts(here)
        missing |= dict.fromkeys(unknown, "its file was not taken in")
    (folder / MARK).unlink()
    fsync_folder(folder)
    return MadeZone(report, missing)


def _refuse_other(folder: Path, source: str, parts: Sequence[Part]) -> None:
    try:
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    shown = clean_text(encodable(str(folder)), MESSAGE_CHARACTERS)
    if MARK in there:
        if (folder / MARK).read_bytes().decode("utf-8", "surrogateescape") != source:
            raise NotUsable(
                f"{shown!r} holds a zone that was begun from another place.",
                hint=f"Go on with that one, or remove what was begun: rm -r {quote(str(folder))}",
            )
        if FolderCatalogue.exists(folder) and _has_others(folder, parts):
            raise NotUsable(
                f"The zone in {shown!r} was begun from there and has been used since, so nothing is merged into it.",
                hint="Give another --new-zone.",
            )
        return
    if there:
        raise NotUsable(
            f"There is a zone in {shown!r} already, and nothing is merged into it.",
            hint='Add a new one to config.toml, such as [zones.old] with provider = "local", and name it: --new-zone old',
        )


def _has_others(folder: Path, parts: Sequence[Part]) -> bool:
    """Return whether a zone that was begun has disks or restore points that do not come from there."""
    disks, points = {part.resource_id for part in parts}, {part.part_id for part in parts}
    with FolderCatalogue(folder) as catalogue:
        found = {row[0] for row in catalogue.rows("SELECT resource_id FROM resources")}
        kept = {row[0] for row in catalogue.rows("SELECT snapshot_id FROM snapshots WHERE status != 'ceased'")}
    return not (found <= disks and kept <= points)
