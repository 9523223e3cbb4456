"""List the catalogue: filters, order and pages (CONTRACT.md, "The six operations", "Order")."""

from datetime import datetime
from itertools import chain
from typing import Any, Final

from snapshot_mcp.catalogue.answers import NEWEST_FIRST, to_coverages, to_image, to_job, to_resource, to_snapshots
from snapshot_mcp.catalogue.database import Catalogue, placeholders
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.models import (
    Image,
    Instance,
    Job,
    Page,
    Quota,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    Volume,
    megabytes,
)
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, ResourceType, SnapshotStatus, SnapshotType


class _Where:
    """Conditions joined by AND, with their values."""

    def __init__(self) -> None:
        self.conditions: list[str] = ["1"]
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values += values

    def add_any(self, column: str, values: tuple[str, ...]) -> None:
        if values:
            self.add(f"{column} IN ({placeholders(values)})", *values)

    def add_word(self, columns: tuple[str, ...], word: str) -> None:
        if word:
            escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            likes = " OR ".join(f"{one} LIKE ? ESCAPE '\\'" for one in columns)
            self.add(f"({likes})", *[f"%{escaped}%"] * len(columns))

    def __str__(self) -> str:
        return " AND ".join(self.conditions)

    def page(self, catalogue: Catalogue, table: str, order: str, offset: int, limit: int) -> tuple[list[Row], int]:
        rows = catalogue.rows(
            f"SELECT * FROM {table} WHERE {self} ORDER BY {order} LIMIT ? OFFSET ?", *self.values, limit, offset
        )
        return rows, catalogue.count(f"SELECT count(*) FROM {table} WHERE {self}", *self.values)


NEWEST_DELETION_FIRST: Final = "status_at DESC, snapshot_id"
DELETED: Final = (SnapshotStatus.DELETED,)


def snapshots(catalogue: Catalogue, query: SnapshotFilter) -> Page[Snapshot]:
    """Return a page of the snapshots, newest first; deleted and ceased ones only if `status` or an id asks for them.

    A list of deleted ones alone begins with the newest deletion.
    """
    with catalogue.reading():
        is_few = query.snapshots or query.root_id
        find = _among_few if is_few else _among_deleted if query.status == DELETED else _among_all
        rows, total = find(catalogue, query)
        return Page(to_snapshots(catalogue, rows, is_verbose=bool(query.verbose)), total)


def _among_few(catalogue: Catalogue, query: SnapshotFilter) -> tuple[list[Row], int]:
    """Search the given ids or one chain; a `+` keeps SQLite from using an index over the whole zone."""
    where = _Where()
    where.add_any("snapshot_id", query.snapshots)
    if query.root_id:
        where.add(f"{'+' if query.snapshots else ''}root_id = ?", query.root_id)
    if query.resource_id:
        where.add("+resource_id = ?", query.resource_id)
    if query.status or not query.snapshots:
        where.add_any("+status", _statuses(query))
    if query.snapshot_type is not None:
        where.add("+is_full = ?", int(query.snapshot_type))
    _add_text(where, query)
    order = NEWEST_DELETION_FIRST if query.status == DELETED else NEWEST_FIRST
    return where.page(catalogue, "snapshots", order, query.offset, query.limit)


def _among_deleted(catalogue: Catalogue, query: SnapshotFilter) -> tuple[list[Row], int]:
    """Page over the deleted ones, which an index keeps in the order of their deletion."""
    where = _Where()
    where.add("+status = 'deleted'")  # as the index has it
    if query.resource_id:
        where.add("+resource_id = ?", query.resource_id)
    if query.snapshot_type is not None:
        where.add("+is_full = ?", int(query.snapshot_type))
    _add_text(where, query)
    rows = catalogue.rows(
        f"SELECT * FROM snapshots INDEXED BY snapshots_deleted WHERE {where} ORDER BY {NEWEST_DELETION_FIRST} LIMIT ? OFFSET ?",
        *where.values,
        query.limit,
        query.offset,
    )
    return rows, _total(catalogue, query, DELETED, len(rows), where)


def _among_all(catalogue: Catalogue, query: SnapshotFilter) -> tuple[list[Row], int]:
    """Page over a resource or the whole zone: merge each status and type, read from an index in the page's order."""
    statuses = tuple(status for status in SnapshotStatus if status in _statuses(query))
    types = tuple(SnapshotType) if query.snapshot_type is None else (query.snapshot_type,)
    if not statuses:
        return [], 0
    where = _Where()
    if query.resource_id:
        where.add("resource_id = ?", query.resource_id)
    _add_text(where, query)
    parts = [(status, one, *where.values) for status in statuses for one in types]
    part = f"SELECT snapshot_id, snapshot_at FROM snapshots WHERE status = ? AND is_full = ? AND {where}"
    rows = catalogue.rows(
        f"""WITH page AS ({" UNION ALL ".join([part] * len(parts))} ORDER BY {NEWEST_FIRST} LIMIT ? OFFSET ?)
        SELECT snapshots.* FROM page CROSS JOIN snapshots USING (snapshot_id)
        ORDER BY page.snapshot_at DESC, page.snapshot_id""",
        *chain.from_iterable(parts),
        query.limit,
        query.offset,
    )
    return rows, _total(catalogue, query, statuses, len(rows), where)


def _total(
    catalogue: Catalogue, query: SnapshotFilter, statuses: tuple[SnapshotStatus, ...], found: int, where: _Where
) -> int:
    """Return how many match: from the end of the list, from the counts, or by counting what a text filter finds."""
    if found < query.limit and (found or not query.offset):
        return query.offset + found
    types = tuple(SnapshotType) if query.snapshot_type is None else (query.snapshot_type,)
    kinds = f"status IN ({placeholders(statuses)}) AND is_full IN ({placeholders(types)})"
    if query.search_word or query.tags:
        count = f"SELECT count(*) FROM snapshots WHERE {kinds} AND {where}"
        return catalogue.count(count, *statuses, *types, *where.values)
    count = f"SELECT coalesce(sum(number), 0) FROM snapshot_counts WHERE resource_id = ? AND {kinds}"
    return catalogue.count(count, query.resource_id, *statuses, *types)


def _statuses(query: SnapshotFilter) -> tuple[str, ...]:
    return query.status or tuple(status for status in SnapshotStatus if status not in GONE_SNAPSHOT_STATUSES)


def _add_text(where: _Where, query: SnapshotFilter) -> None:
    where.add_word(("snapshot_id", "name"), query.search_word)
    if query.tags:
        wanted = placeholders(query.tags)
        where.add("tags != '[]'")
        where.add(f"EXISTS (SELECT 1 FROM json_each(tags) WHERE value IN ({wanted}))", *query.tags)


def _resources(
    catalogue: Catalogue, query: ResourceFilter, resource_type: ResourceType
) -> tuple[list[Volume | Instance], int]:
    """Return a page of disks; only `verbose` looks at each file for who uses it."""
    where = _Where()
    where.add("removed_at IS NULL")
    where.add("resource_type = ?", resource_type)
    where.add_any("resource_id", query.ids)
    if query.status and resource_type == ResourceType.VOLUME:
        where.add_any("CASE WHEN applying_id IS NULL THEN 'available' ELSE 'pending' END", query.status)
    elif query.status:
        machines = catalogue.rows(
            "SELECT * FROM resources WHERE removed_at IS NULL AND resource_type = ?", resource_type
        )
        states = catalogue.store.find_states([row for row in machines if row["applying_id"] is None])
        states |= {row["resource_id"]: "pending" for row in machines if row["applying_id"] is not None}
        where.add_any("resource_id", tuple(one for one, state in states.items() if state in query.status) or ("",))
    where.add_word(("resource_id", "name"), query.search_word)
    rows, total = where.page(catalogue, "resources", "created_at DESC, resource_id", query.offset, query.limit)
    uses = catalogue.store.find_uses(catalogue, rows) if query.verbose else {}
    states = catalogue.store.find_states(rows) if resource_type == ResourceType.INSTANCE else {}
    is_verbose = bool(query.verbose)
    covers = to_coverages(catalogue, [row["resource_id"] for row in rows]) if is_verbose else {}
    found = [
        to_resource(
            catalogue,
            row,
            is_verbose=is_verbose,
            use=uses.get(row["resource_id"]),
            state=states.get(row["resource_id"], ""),
        ).model_copy(update={"coverage": covers.get(row["resource_id"])})
        for row in rows
    ]
    return found, total


def volumes(catalogue: Catalogue, query: ResourceFilter) -> Page[Volume]:
    """Return a page of the volumes, newest first."""
    items, total = _resources(catalogue, query, ResourceType.VOLUME)
    return Page(tuple(one for one in items if isinstance(one, Volume)), total)


def instances(catalogue: Catalogue, query: ResourceFilter) -> Page[Instance]:
    """Return a page of the instances, newest first."""
    items, total = _resources(catalogue, query, ResourceType.INSTANCE)
    return Page(tuple(one for one in items if isinstance(one, Instance)), total)


def images(catalogue: Catalogue, query: ResourceFilter) -> Page[Image]:
    """Return a page of the exported images, newest first."""
    where = _Where()
    where.add_any("image_id", query.ids)
    where.add_any("'available'", query.status)
    where.add_word(("image_id", "name"), query.search_word)
    rows, total = where.page(catalogue, "images", "created_at DESC, image_id", query.offset, query.limit)
    return Page(tuple(to_image(catalogue, row) for row in rows), total)


def finished_jobs(catalogue: Catalogue, since: datetime, limit: int, zone: str) -> Page[Job]:
    """Return the newest of the jobs that ended since then."""
    wanted = "FROM jobs WHERE finished_at IS NOT NULL AND finished_at >= ?"
    start = since.timestamp()
    with catalogue.reading():
        rows = catalogue.rows(f"SELECT * {wanted} ORDER BY finished_at DESC, change DESC LIMIT ?", start, limit)
        return Page(tuple(to_job(row, zone) for row in rows), catalogue.count(f"SELECT count(*) {wanted}", start))


def quotas(catalogue: Catalogue, chain_limit: int) -> tuple[Quota, ...]:
    """Return how many snapshots fit in each head chain before the next is full, and the free space in MB."""
    rows = catalogue.rows(
        """SELECT r.resource_id, (SELECT count(*) FROM snapshots s WHERE s.root_id = h.root_id AND +s.status = 'available')
        AS number FROM resources r LEFT JOIN snapshots h ON h.snapshot_id = r.head_id WHERE r.removed_at IS NULL"""
    )
    room = catalogue.store.capacity()
    chains = (
        Quota(type="chain", name=row["resource_id"], quantity=chain_limit, left=max(0, chain_limit - row["number"]))
        for row in rows
    )
    storage = Quota(type="storage", name="MB", quantity=megabytes(room.total_bytes), left=room.free_bytes >> 20)
    return (*chains, storage)
