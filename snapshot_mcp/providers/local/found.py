"""Read from a snapshot's file what a lost catalogue said of it. A file is untrusted: ids are checked, texts cleaned and cut."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.salvage import FoundSnapshot
from snapshot_mcp.catalogue.snapshots import Taken
from snapshot_mcp.contract.models import MAX_DESCRIPTION_CHARACTERS, MAX_NAME_CHARACTERS
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.local.snapshot_file.format import MAX_TAGS, Header, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import SnapshotFile

MAX_CHAIN: Final = 4096
"""Snapshots in a chain that are believed; a chain of this program has at most some tens."""

MAX_PATH_CHARACTERS: Final = 4096

_SNAPSHOT_ID: Final = re.compile(r"ss-[a-z0-9]{1,32}", re.ASCII)
_RESOURCE_ID: Final = re.compile(r"(vol|ins)-[a-z0-9]{1,32}", re.ASCII)
EXPORT_NAME: Final = re.compile(r"((vol|img)-[a-z0-9]{1,32})\.(?:raw|qcow2)", re.ASCII)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A snapshot's file: what it says, and the hashes that bind it to its parent's file."""

    snapshot: FoundSnapshot
    chunk_size: int
    hash: str
    parent_hash: str

    def fits(self, parent: "FoundFile") -> bool:
        """Return whether it was built on exactly this file."""
        own, its = self.snapshot, parent.snapshot
        same = (own.chain[:-1], own.resource_id, self.chunk_size) == (its.chain, its.resource_id, parent.chunk_size)
        return same and self.parent_hash == parent.hash


def read_found(folder: Path, snapshot_id: str) -> FoundFile:
    """Read a snapshot's header and map. Raises DamagedSnapshot, also for a header that is not ours, and NewerSnapshot."""
    with SnapshotFile(folder, snapshot_id) as file:
        header = file.header
        if not _has_ids_of_ours(header):
            raise file.damaged("its header has ids that this program does not give")
        try:
            taken_at = _seconds(header.snapshot_time)
        except (ValueError, OverflowError):
            raise file.damaged("its header has no time") from None
        consistency = clean_text(file.trailer.consistency)
        taken = Taken(taken_at, file.size_bytes, header.virtual_size_bytes, consistency)
        made_ns = (folder / file_name(snapshot_id)).stat().st_mtime_ns
        return FoundFile(_snapshot(header, taken, made_ns), header.chunk_size, file.hash.hex(), header.parent_hash)


def _has_ids_of_ours(header: Header) -> bool:
    chain = header.chain
    is_chain = len(chain) <= MAX_CHAIN and len(set(chain)) == len(chain) and all(map(_SNAPSHOT_ID.fullmatch, chain))
    return bool(is_chain and _RESOURCE_ID.fullmatch(header.resource_id) and header.resource_type in set(ResourceType))


def _snapshot(header: Header, taken: Taken, made_ns: int) -> FoundSnapshot:
    try:
        created_at = _seconds(header.created_at) if header.created_at else taken.taken_at
    except (ValueError, OverflowError):
        created_at = taken.taken_at
    return FoundSnapshot(
        chain=header.chain,
        resource_id=header.resource_id,
        resource_type=header.resource_type,
        taken=taken,
        created_at=created_at,
        order=made_ns,
        name=clean_text(header.snapshot_name, MAX_NAME_CHARACTERS),
        description=clean_text(header.description, MAX_DESCRIPTION_CHARACTERS),
        tags=tuple(clean_text(one, MAX_NAME_CHARACTERS) for one in header.tags[:MAX_TAGS]),
        resource_name=clean_text(header.resource_name, MAX_NAME_CHARACTERS),
        resource_path=clean_text(header.resource_path, MAX_PATH_CHARACTERS),
        taken_with=tuple(dict.fromkeys(filter(_SNAPSHOT_ID.fullmatch, header.taken_with)))[:MAX_TAKEN_WITH],
    )


LAST_SECOND = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
MAX_TAKEN_WITH = 100
"""Disks of one moment that a header may name: as many as a request may."""


def _seconds(time: str) -> float:
    """Return the seconds since 1970 of an ISO time; one without a zone is UTC. Raises ValueError."""
    parsed = datetime.fromisoformat(time)
    seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if not 0 <= seconds < LAST_SECOND:
        raise ValueError(f"{time!r} is no time at which a snapshot was taken")
    return seconds
