"""The zone's lists: filters, order and pages over the catalogue (contract.md, "The six operations", "Order")."""

import shutil
from typing import Any

from snapshot_mcp.contract.models import (
    Image,
    Instance,
    Page,
    Quota,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    Volume,
    megabytes,
)
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, ResourceType
from snapshot_mcp.providers.local.answers import to_image, to_resource, to_snapshots
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, placeholders


class _Where:
    """Conditions that are joined by AND, with their values."""

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
            self.add(
                "(" + " OR ".join(f"{one} LIKE ? ESCAPE '\\'" for one in columns) + ")",
                *[f"%{escaped}%"] * len(columns),
            )

    def page(self, catalogue: Catalogue, table: str, order: str, offset: int, limit: int) -> tuple[list[Row], int]:
        where = " AND ".join(self.conditions)
        rows = catalogue.rows(
            f"SELECT * FROM {table} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?", *self.values, limit, offset
        )
        total = catalogue.row(f"SELECT count(*) AS number FROM {table} WHERE {where}", *self.values)
        return rows, int(total["number"]) if total else 0


def snapshots(catalogue: Catalogue, query: SnapshotFilter) -> Page[Snapshot]:
    """Newest `snapshot_time` first, then id; without `status` and ids, deleted and ceased ones are left out."""
    where = _Where()
    where.add_any("snapshot_id", query.snapshots)
    where.add_any("status", query.status)
    if not query.status and not query.snapshots:
        where.add(f"status NOT IN ({placeholders(list(GONE_SNAPSHOT_STATUSES))})", *GONE_SNAPSHOT_STATUSES)
    if query.resource_id:
        where.add("resource_id = ?", query.resource_id)
    if query.root_id:
        where.add("root_id = ?", query.root_id)
    if query.snapshot_type is not None:
        where.add("is_full = ?", int(query.snapshot_type))
    where.add_word(("snapshot_id", "name"), query.search_word)
    if query.tags:
        where.add(
            f"EXISTS (SELECT 1 FROM json_each(tags) WHERE value IN ({placeholders(query.tags)}))",
            *query.tags,
        )
    rows, total = where.page(catalogue, "snapshots", "snapshot_at DESC, snapshot_id", query.offset, query.limit)
    return Page(to_snapshots(catalogue, rows, is_verbose=bool(query.verbose)), total)


def _resources(catalogue: Catalogue, query: ResourceFilter, resource_type: ResourceType) -> tuple[list[Row], int]:
    where = _Where()
    where.add("removed_at IS NULL")
    where.add("resource_type = ?", resource_type)
    where.add_any("resource_id", query.ids)
    if query.status:
        usable = "available" if resource_type == ResourceType.VOLUME else "stopped"
        where.add_any(f"CASE WHEN applying_id IS NULL THEN '{usable}' ELSE 'pending' END", query.status)
    where.add_word(("resource_id", "name"), query.search_word)
    return where.page(catalogue, "resources", "created_at DESC, resource_id", query.offset, query.limit)


def volumes(catalogue: Catalogue, query: ResourceFilter) -> Page[Volume]:
    rows, total = _resources(catalogue, query, ResourceType.VOLUME)
    return Page(tuple(one for one in map(to_resource, rows) if isinstance(one, Volume)), total)


def instances(catalogue: Catalogue, query: ResourceFilter) -> Page[Instance]:
    rows, total = _resources(catalogue, query, ResourceType.INSTANCE)
    return Page(tuple(one for one in map(to_resource, rows) if isinstance(one, Instance)), total)


def images(catalogue: Catalogue, query: ResourceFilter) -> Page[Image]:
    where = _Where()
    where.add_any("image_id", query.ids)
    where.add_any("'available'", query.status)
    where.add_word(("image_id", "name"), query.search_word)
    rows, total = where.page(catalogue, "images", "created_at DESC, image_id", query.offset, query.limit)
    return Page(tuple(map(to_image, rows)), total)


def quotas(catalogue: Catalogue, chain_limit: int) -> tuple[Quota, ...]:
    """Room in each resource's head chain before the next snapshot is a full one, and room on the zone's disk in MB."""
    rows = catalogue.rows(
        """SELECT r.resource_id, (SELECT count(*) FROM snapshots s WHERE s.root_id = h.root_id AND s.status = 'available')
        AS number FROM resources r LEFT JOIN snapshots h ON h.snapshot_id = r.head_id WHERE r.removed_at IS NULL"""
    )
    usage = shutil.disk_usage(catalogue.folder)
    chains = (
        Quota(type="chain", name=row["resource_id"], quantity=chain_limit, left=max(0, chain_limit - row["number"]))
        for row in rows
    )
    storage = Quota(type="storage", name="MB", quantity=megabytes(usage.total), left=usage.free >> 20)
    return (*chains, storage)
