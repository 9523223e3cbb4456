"""Kills at random moments of guarded calls, of the server and of the worker: no snapshot lost or wrong, no disk half rolled back
and called whole, no act twice, none without its yes; `zone check`, `audit verify` and the bytes are compared after each.

The server is the real one on stdio, with a real client that agrees; its clock alone is turned by the test.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import ElicitRequestParams, ElicitResult

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.guard.consent.approvals import DENIED_SECONDS
from tests.whole_way import workers
from tests.whole_way.paths import CHUNK
from tests.whole_way.scene import WAIT_SECONDS, Scene, open_scene
from tests.whole_way.test_worker_gone import agrees

pytestmark = pytest.mark.anyio

DISK_BYTES = 32 * CHUNK
KEPT = 6
"""Snapshots of the disk; more are purged."""

SERVER = """
import os, sys
from pathlib import Path
from snapshot_mcp.ground.clock import Moment, SystemClock
Path(sys.argv[1]).write_text(str(os.getpid()))
read, turned = SystemClock.read, Path(sys.argv[2])
def later(clock):
    now, seconds = read(clock), float(turned.read_text())
    return Moment(now.wall + seconds, now.boot, now.uptime + seconds)
SystemClock.read = later
from snapshot_mcp.cli import main
sys.argv = ["snapshot-mcp", "serve"]
main()
"""


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


class Host:
    """A client program with a server process of its own, which can be killed and started again. `yeses` counts answers."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._pid_file, self._turned = scene.folder / "server.pid", scene.folder / "turned"
        self._turned.write_text("0")
        self._stack: AsyncExitStack | None = None
        self.yeses = 0

    async def client(self) -> Client:
        if self._stack is None:
            self._stack = AsyncExitStack()
            arguments = ["-c", SERVER, str(self._pid_file), str(self._turned)]
            parameters = StdioServerParameters(command=sys.executable, args=arguments, env=self._scene.environ)
            self._client = await self._stack.enter_async_context(Client(parameters, elicitation_callback=self._agree))
        return self._client

    async def _agree(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
        self.yeses += 1
        return await agrees(context, params)

    def turn(self, seconds: float) -> None:
        """Let the clock of every server of this host pass."""
        self._scene.clock.turn(seconds)
        self._turned.with_suffix(".new").write_text(str(self._scene.clock.seconds))
        self._turned.with_suffix(".new").rename(self._turned)

    def kill(self) -> None:
        os.kill(int(self._pid_file.read_text()), signal.SIGKILL)

    async def close(self) -> None:
        stack, self._stack = self._stack, None
        if stack:
            with suppress(Exception):
                await stack.aclose()


class Round:
    """One guarded call with a kill in it, and what must be true afterwards."""

    def __init__(self, scene: Scene, host: Host, chance: random.Random, contents: dict[str, str]) -> None:
        self.scene, self.host, self.chance, self.contents = scene, host, chance, contents
        self.before = scene.scribble(chance.randrange(1 << 30))
        self.acts = {one["job_id"] for one in scene.acts()}
        self.yeses = host.yeses

    async def run(self, seconds: float) -> str:
        """Call, kill within so many seconds, let the zone come to rest, and compare; say what came of it."""
        while len(self.contents) < 3:
            self.contents[await self.scene.back_up("scheduled", is_full=True)] = digest(self.before)
        available = sorted(self.contents)
        target = self.chance.choice(available)
        is_deletion = len(available) > KEPT or (len(available) > 2 and self.chance.random() < 0.2)
        name = "delete_snapshot" if is_deletion else "rollback_to_snapshots"
        arguments = {"snapshot_id": target} if is_deletion else {"snapshot_ids": [target]}
        victim = self.chance.choice(["server", "worker", "both"] if seconds else [""])
        await self._call(name, arguments, victim, self.chance.uniform(0, seconds))
        await self.scene.settle()
        jobs = [one for one in self.scene.acts() if one["job_id"] not in self.acts]
        assert len(jobs) <= 1, f"an act twice: {jobs}"
        assert len(jobs) <= self.host.yeses - self.yeses, f"an act without a yes: {jobs}"
        done = [one for one in jobs if one["has_effect"] or one["status"] == "successful"]
        self._compare_bytes(done[0] if done else None)
        await self._compare_records()
        return f"{'deletion' if is_deletion else 'roll-back'}, {victim or 'nobody'}: {'done' if done else 'not done'}"

    async def _call(self, name: str, arguments: dict[str, Any], victim: str, delay_seconds: float) -> None:
        client = await self.host.client()

        async def call() -> None:
            with suppress(Exception):  # the server is gone, or says why not
                await client.call_tool(name, arguments)
            over.set()

        over = anyio.Event()
        with anyio.fail_after(2 * WAIT_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                if self.chance.random() < 0.7:  # most of what can be broken off comes after the yes
                    await self._until_agreed(over)
                    delay_seconds /= 3
                await anyio.sleep(delay_seconds)
                if victim in ("server", "both"):
                    self.host.kill()
                if victim in ("worker", "both"):
                    await anyio.to_thread.run_sync(workers.kill, self.scene.zone_folder)
        if victim in ("server", "both"):
            await self.host.close()

    async def _until_agreed(self, over: anyio.Event) -> None:
        while self.host.yeses == self.yeses and not over.is_set():
            await anyio.sleep(0.002)

    def _compare_bytes(self, done: dict[str, Any] | None) -> None:
        present = self.scene.path.read_bytes()
        if done is None or done["action"] == "DeleteSnapshots":
            assert present == self.before
            for gone in json.loads(done["resource_ids"]) if done else ():
                self.contents.pop(gone)
            return
        assert done["status"] == "successful", done
        request = json.loads(done["request"])
        (target,), (safety,) = request["targets"].values(), request["safety"].values()
        assert digest(present) == self.contents[target]
        assert self.scene.content_of(safety) == self.before
        self.contents[safety] = digest(self.before)

    async def _compare_records(self) -> None:
        guard = self.scene.guard()
        await self.scene.verify(guard)
        assert self.contents.keys() == {one.snapshot_id for one in await self.scene.snapshots()}
        for one in await guard.list_approvals():
            if one.state in ("pending", "granted", "spent"):
                with suppress(ZoneError):  # it says that it is too late
                    await guard.deny(one.id)
        await self.scene.settle()
        assert len([one for one in self.scene.acts() if one["job_id"] not in self.acts]) <= 1
        spent: Counter[str] = Counter()
        for record in guard.audit.records():
            step = {"spent": 1, "given back": -1}.get(record["event"], 0)
            spent[record.get("approval", "")] += step
        assert set(spent.values()) <= {0, 1}, spent


async def rounds(scene: Scene, host: Host, count: int, seed: int) -> Counter[str]:
    """So many kills; how the acts that they met ended."""
    chance = random.Random(seed)
    contents: dict[str, str] = {}
    for name in ("one", "two", "three"):
        content = scene.scribble()
        contents[await scene.back_up(name, is_full=name == "three")] = digest(content)
    await Round(scene, host, chance, contents).run(0)
    seconds, ends = 0.0, Counter[str]()
    for number in range(-2, count):
        host.turn(DENIED_SECONDS + 3600)
        begun = anyio.current_time()
        end = await Round(scene, host, chance, contents).run(seconds)
        if number < 0:
            seconds = max(seconds, anyio.current_time() - begun)
        else:
            ends[end] += 1
        if number % 25 == 24:
            await compare_all(scene, contents)
    await compare_all(scene, contents)
    return ends


async def compare_all(scene: Scene, contents: dict[str, str]) -> None:
    for one, content in contents.items():
        assert digest(scene.content_of(one)) == content
    await scene.provider.purge()


@asynccontextmanager
async def hosted(folder: Path) -> AsyncIterator[tuple[Scene, Host]]:
    async with open_scene(folder, size_bytes=DISK_BYTES) as scene:
        (scene.folder / "config.toml").write_text("[guard]\ndeletions_per_hour = 1000\n")
        (scene.folder / "config.toml").chmod(0o600)
        host = Host(scene)
        try:
            yield scene, host
        finally:
            await host.close()
            workers.kill(scene.zone_folder)


@pytest.mark.long
async def test_kills_in_guarded_calls(tmp_path: Path) -> None:
    """No act twice, none without a yes, and nothing lost, whoever is killed in the middle of it."""
    async with hosted(tmp_path) as (scene, host):
        await rounds(scene, host, 3, seed=random.randrange(1 << 30))


@pytest.mark.long
async def test_three_hundred_kills_in_guarded_calls(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (scene, host):
        ends = await rounds(scene, host, 300, seed=5)
    print(ends)
    for act in ("deletion", "roll-back"):  # kills that meet no act prove nothing, nor do acts that no kill hinders
        for end in (": done", ": not done"):
            assert sum(ends[one] for one in ends if one.startswith(act) and one.endswith(end)) >= 10, ends
