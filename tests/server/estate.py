"""An owner's estate to talk about: six disks with a history, and a conversation that counts what it costs.

Its folder has a name of fixed length, because paths are part of what a model reads.
"""

import json
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import CallToolResult

from snapshot_mcp import app
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import format_bytes
from tests.conftest import end_worker
from tests.disks import MIB, back_up, change
from tests.server.lab import Lab, text_of
from tests.server.parity import differences
from tests.whole_way.workers import Nursery

DAY_SECONDS = 24 * 3600
DISKS = ("pg-data", "mail", "files", "wiki", "scratch", "web-01")
MACHINES = {"web-01"}
NIGHTS = 6


@contextmanager
def estate(nursery: Nursery) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="estate-", dir="/tmp"))
    lab = Lab(folder, nursery=nursery)
    try:
        yield lab
    finally:
        end_worker(lab.home / "zones" / "local")
        shutil.rmtree(folder, ignore_errors=True)


async def settle(lab: Lab) -> dict[str, str]:
    """Register the disks and give them a past, whose jobs are forgotten; return the ids of the restore points by name.

    pg-data was changed between its nightly backups, which are in two chains; scratch has no backup.
    """
    disks = {
        name: await lab.add_disk(name, MIB, ResourceType.INSTANCE if name in MACHINES else ResourceType.VOLUME)
        for name in DISKS
    }
    ids = {}
    async with app.build_zones(lab.settings) as zones:
        zone = zones.get().provider
        for night in range(NIGHTS):
            change(lab.folder / "pg-data.img", 4096, seed=night)
            ids[f"night-{night}"] = await back_up(zone, disks["pg-data"].id, f"night-{night}", is_full=night == 2)
            lab.age_snapshots(DAY_SECONDS)
        for name in DISKS[1:4] + DISKS[5:]:
            ids[name] = await back_up(zone, disks[name].id, "nightly")
    lab.age_snapshots(8 * 3600)
    with closing(sqlite3.connect(lab.home / "zones" / "local" / "catalogue.sqlite")) as db, db:
        db.execute(
            "UPDATE jobs SET created_at = created_at - ?, finished_at = finished_at - ?", (90 * DAY_SECONDS,) * 2
        )
    return ids


@dataclass
class Turn:
    """One request of an owner: what the model called, and what came back in each form."""

    request: str
    results: list[CallToolResult] = field(default_factory=list)

    @property
    def texts(self) -> int:
        return sum(len(text_of(one)) for one in self.results)

    @property
    def structures(self) -> int:
        """Characters of compact JSON; an error has its text only."""
        return sum(
            len(json.dumps(one.structured_content, ensure_ascii=False, separators=(",", ":")))
            if one.structured_content
            else len(text_of(one))
            for one in self.results
        )

    @property
    def tokens(self) -> tuple[int, int]:
        return self.texts // 4, self.structures // 4


@dataclass
class Talk:
    """A conversation over a client; `differences` are between the two forms of what comes back."""

    client: Client
    turns: list[Turn] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def asks(self, request: str) -> None:
        """An owner asks for something; the calls that follow are the answer."""
        self.turns.append(Turn(request))

    @asynccontextmanager
    async def through(self, client: Client) -> AsyncIterator[None]:
        """Go on over another client for a while."""
        own, self.client = self.client, client
        try:
            yield
        finally:
            self.client = own

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as the model does; return the structure, or an error's text."""
        result = await self.client.call_tool(tool, arguments)
        self.differences += [f"{tool}: {one}" for one in differences(result)]
        self.turns[-1].results.append(result)
        return {"error": text_of(result)} if result.is_error else dict(result.structured_content or {})

    def tells(self, *facts: str | int) -> None:
        """What the owner wants to know stands in both forms of what came back; a number is a size in bytes."""
        turn = self.turns[-1]
        texts = "\n".join(map(text_of, turn.results))
        structures = "\n".join(
            json.dumps(one.structured_content, ensure_ascii=False) if one.structured_content else text_of(one)
            for one in turn.results
        )
        for fact in facts:
            human = format_bytes(fact) if isinstance(fact, int) else fact
            assert human in texts, (turn.request, human, texts)
            assert str(fact) in structures, (turn.request, fact, structures)

    def costs(self, request: str) -> Turn:
        return next(turn for turn in self.turns if turn.request == request)

    def table(self) -> str:
        """What each request costs, as the committed document has it."""
        rows = [
            f"| {turn.request} | {len(turn.results)} | {turn.tokens[0]} | {turn.tokens[1]} |" for turn in self.turns
        ]
        text, structure = ([turn.tokens[form] for turn in self.turns] for form in (0, 1))
        rows += [
            f"| *median* | {statistics.median(len(turn.results) for turn in self.turns):g} | {statistics.median(text):.0f} "
            f"| {statistics.median(structure):.0f} |",
            f"| *worst* | {max(len(turn.results) for turn in self.turns)} | {max(text)} | {max(structure)} |",
        ]
        return "\n".join(["| request | calls | tokens as text | as structure |", "|---|---|---|---|", *rows]) + "\n"
