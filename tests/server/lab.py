"""A home with an embedded zone of its own, disk images in it, and real MCP clients to its server."""

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import CallToolResult

from snapshot_mcp import app
from snapshot_mcp.contract.models import Instance, Job, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.settings import Settings, load_settings
from snapshot_mcp.zones import Zone

MIB = 1 << 20


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


def data_of(result: CallToolResult) -> dict[str, Any]:
    """The structured result of a call that must have gone well."""
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


def content(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def rename(old: str | Path, new: str | Path) -> None:
    Path(old).rename(new)


@dataclass
class Lab:
    """One home. `environ` is what a server process of it needs."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environ(self) -> dict[str, str]:
        config = self.folder / "config.toml"
        config.touch(0o600)
        return {"SNAPSHOT_MCP_HOME": str(self.home), "SNAPSHOT_MCP_CONFIG": str(config), **self.extra}

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    def image(self, name: str, size_bytes: int = 2 * MIB) -> Path:
        path = self.folder / f"{name}.img"
        path.write_bytes(os.urandom(size_bytes))
        return path

    async def add_disk(
        self, name: str, size_bytes: int = 2 * MIB, kind: ResourceType = ResourceType.VOLUME, file_name: str = ""
    ) -> Volume | Instance:
        """Make an image and register it."""
        return await self.register(self.image(file_name or name, size_bytes), name, kind)

    async def register(self, path: Path, name: str, kind: ResourceType = ResourceType.VOLUME) -> Volume | Instance:
        """Register an image, as `snapshot-mcp zone add` does."""
        zone = app.open_local_zone(self.settings)
        try:
            return await zone.add_resource(path, name, kind)
        finally:
            await zone.aclose()

    def age_snapshots(self, seconds: int) -> None:
        """As if those that are there had been taken earlier; the clock is not the tests' to move."""
        with closing(sqlite3.connect(self.home / "zones" / "local" / "catalogue.sqlite")) as db, db:
            db.execute(
                "UPDATE snapshots SET created_at = created_at - ?, snapshot_at = snapshot_at - ?", (seconds,) * 2
            )

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot past the guard, to its end."""
        await self._carry_out(lambda zone: zone.provider.delete_snapshot(snapshot_id))

    async def roll_back(self, snapshot_id: str) -> None:
        """Roll a disk back past the guard, to its end."""
        await self._carry_out(lambda zone: zone.provider.apply_snapshots([snapshot_id]))

    async def _carry_out(self, start: Callable[[Zone], Awaitable[Job]]) -> None:
        async with app.build_zones(self.settings) as zones:
            zone = zones.get()
            job = await start(zone)
            (ended,) = await zone.watcher.wait([job.job_id], 20)
            assert ended.is_successful, ended

    @asynccontextmanager
    async def connect(self, mode: str = "auto", **options: Any) -> AsyncIterator[Client]:
        async with Client(app.build_server(self.settings), mode=mode, **options) as client:
            yield client


async def finish(client: Client, result: CallToolResult) -> dict[str, Any]:
    """Wait until the job of a change has ended; return it."""
    waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [data_of(result)["job_id"]]}))
    assert waited["outcome"] != "still_running"
    job: dict[str, Any] = waited["jobs"][0]
    return job


async def back_up(client: Client, disk: str, name: str, **arguments: Any) -> str:
    """Take a snapshot to its end; return its id."""
    result = await client.call_tool("create_snapshots", {"resource_ids": [disk], "name": name, **arguments})
    job = await finish(client, result)
    assert job["status"] == "successful", job
    rows = data_of(await client.call_tool("list_snapshots", {"search": name}))["snapshots"]
    return str(next(row["snapshot_id"] for row in rows if row["name"] == name))
