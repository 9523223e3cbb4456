"""A catalogue of any number of snapshots; no file stands behind them, a list needs none."""

import random
from pathlib import Path

from snapshot_mcp.providers.local.folder import FolderCatalogue

CHAIN = 20
STATUSES = ["available"] * 8 + ["deleted", "ceased"]
TAGS = ["[]"] * 9 + ['["gold"]']


def snapshot_id(number: int) -> str:
    return f"ss-{number:08}"


def resource_id(number: int) -> str:
    return f"vol-{number:08}"


def fill_zone(folder: Path, count: int, resource_count: int = 10) -> None:
    """Chains of 20, spread over the resources, one second apart, each with the finished job that made it."""
    chance = random.Random(5)
    of_each = -(-count // resource_count)
    with FolderCatalogue(folder) as catalogue, catalogue.transaction() as db:
        db.executemany(
            "INSERT INTO resources (resource_id, resource_type, name, path, created_at, status_at)"
            " VALUES (?, 'volume', ?, ?, 1, 1)",
            ((resource_id(one), f"disk {one}", f"/nowhere/{one}") for one in range(resource_count)),
        )
        db.executemany(
            "INSERT INTO jobs (job_id, action, status, request, resource_ids, created_at, change)"
            " VALUES (?, 'CreateSnapshots', 'successful', '{}', '[]', 1, ?)",
            ((f"job-{one}", one + 1) for one in range(count)),
        )
        db.executemany(
            "INSERT INTO snapshots (snapshot_id, name, tags, resource_id, is_full, status, transition, created_at,"
            " status_at, snapshot_at, root_id, parent_id, depth) VALUES (?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?)",
            (_row(one, resource_id(one // of_each), chance) for one in range(count)),
        )


def _row(number: int, resource: str, chance: random.Random) -> tuple[str | int | None, ...]:
    place, second = number % CHAIN, 1_700_000_000 + number
    return (
        snapshot_id(number), f"night {number % 97} of rack-{number % 3}", chance.choice(TAGS), resource,
        int(not place), chance.choice(STATUSES), second, second, second, snapshot_id(number - place),
        snapshot_id(number - 1) if place else None, place,
    )  # fmt: skip
