"""An accepted job is accepted: where no worker can be started the entry is withdrawn in the same breath, and the consent, the
record and `deny` all tell the truth. One yes carries out at most one act.

The server is a process of its own, asked by a real MCP client; what keeps its worker from starting is put in place there.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.types import ElicitRequestParams, ElicitResult

from snapshot_mcp import app
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.settings import load_settings
from tests.guard.conftest import Person
from tests.marks import long
from tests.server.lab import data_of, text_of
from tests.whole_way import workers
from tests.whole_way.scene import Scene

pytestmark = pytest.mark.anyio

SERVER = """
import ctypes, os, resource, struct, sys
from pathlib import Path
from snapshot_mcp.providers.local import worker, zone

def become_nobody():
    # The superuser may always fork: be another user to the kernel's count, without what lifts the limit.
    libc = ctypes.CDLL(None, use_errno=True)
    os.setresuid(61234, 0, 0)
    header, data = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    effective, *rest = struct.unpack("6I", data.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~(1 << 24 | 1 << 21), *rest)) == 0

def without_processes(launch):
    def run(*args):
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        try:
            launch(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    return run

folder, what = Path(sys.argv[1]), sys.argv[2]
if what == "interpreter":
    sys.executable = "/nowhere/python"
elif what in ("log", "lock"):
    (folder / f"worker.{what}").unlink(missing_ok=True)
    (folder / f"worker.{what}").mkdir()
elif what == "fork":
    if os.getuid() == 0:
        become_nobody()
    worker._launch = without_processes(worker._launch)
from snapshot_mcp.cli import main
sys.argv = ["snapshot-mcp", "serve"]
main()
"""


async def agrees(context: Any, params: ElicitRequestParams) -> ElicitResult:
    """A person who agrees by the word, or by the name that is asked for."""
    (field,) = params.requested_schema["properties"].values()  # type: ignore[union-attr]
    word = next((one for one in field.get("enum", []) if one != "keep"), "pg-data")
    return ElicitResult(action="accept", content={"answer": word})


NOT_ASKED = Person([])
"""Whoever asks it, fails."""


@asynccontextmanager
async def server(scene: Scene, what: str) -> AsyncIterator[Client]:
    """A client of a server process whose worker cannot be started, "" for one without trouble."""
    arguments = ["-c", SERVER, str(scene.zone_folder), what]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=scene.environ)
    async with Client(parameters, elicitation_callback=agrees) as client:
        yield client


@pytest.mark.parametrize("what", ["fork", *map(long, ("interpreter", "log", "lock"))])
async def test_where_no_worker_can_be_started_nothing_is_entered_and_the_yes_is_kept(scene: Scene, what: str) -> None:
    """The consent is given back and the job does not stay: a person who then runs `deny` is told the truth, and what was not
    denied is carried out once, by whoever can, without another question."""
    snapshot_id = await scene.back_up("friday")
    other = await scene.back_up("other", is_full=True)
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    async with server(scene, what) as client:
        rolled = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]})
        deleted = await client.call_tool("delete_snapshot", {"snapshot_id": other})
        for answer in (rolled, deleted):
            assert answer.is_error, text_of(answer)
            assert "worker could not be started" in text_of(answer)
        jobs = data_of(await client.call_tool("list_jobs", {}))
        assert jobs["jobs"] == [], jobs
    if what in ("log", "lock"):
        (scene.zone_folder / f"worker.{what}").rmdir()

    guard = app.build_guard(load_settings(scene.environ))
    open_ones = {one.call.operation: one for one in await guard.list_approvals()}
    assert {one.state for one in open_ones.values()} == {"granted"}
    assert (await guard.deny(open_ones["rollback"].id)).state == "denied"
    await scene.settle()
    assert scene.path.read_bytes() == content
    assert scene.effects() == []

    started = await guard.delete_snapshot(scene.zone, other, NOT_ASKED)
    assert started.status == "started", started
    again = await guard.rollback_to_snapshots(scene.zone, [snapshot_id], NOT_ASKED)
    assert again.status == "declined", again
    await scene.finish(started.job_id, "successful")
    assert [one["action"] for one in scene.effects()] == ["DeleteSnapshots"]
    assert scene.path.read_bytes() == content
    events = [one["event"] for one in guard.audit.records()]
    assert events.count("spent") - events.count("given back") == 1
    with pytest.raises(NotDecidable):
        await guard.deny(open_ones["delete"].id)
    await scene.verify(guard)


@pytest.mark.long
async def test_a_read_only_server_starts_nothing_of_what_was_refused(scene: Scene) -> None:
    """A refused job is not carried out by a `read_only` server that protects everything."""
    snapshot_id = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    async with server(scene, "interpreter") as client:
        assert (await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]})).is_error
    (scene.folder / "config.toml").write_text('[guard]\nread_only = true\nprotect.names = ["*"]\n')
    async with server(scene, "") as client:
        assert data_of(await client.call_tool("list_jobs", {}))["jobs"] == []
        await client.call_tool("list_snapshots", {})
    await scene.settle()
    assert scene.path.read_bytes() == content
    assert scene.effects() == []
