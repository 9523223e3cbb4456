"""`snapshot-mcp tour`: show the main functions on a scratch disk, with a real server process and a real MCP client.

The tour acts as a host: it starts the server, calls its tools, and asks the person at the terminal the server's questions.
With `--yes` the tour's client answers them; the server has no such option. Everything is in a temporary folder, which is
removed at the end together with the worker.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult

from snapshot_mcp import app
from snapshot_mcp.cli import tour_disk
from snapshot_mcp.cli.streams import OutputLost
from snapshot_mcp.cli.tour_disk import DISK_BYTES, LETTER
from snapshot_mcp.cli.tour_scratch import clean_up, make_scratch
from snapshot_mcp.cli.tour_screen import Screen
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.hosts.launch import path_variables
from snapshot_mcp.settings import load_settings

DISK = "web"
FACE_START_SECONDS = 20.0
SERVED = re.compile(r"at (http://\S+?)/v2/zone/local")
ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the tour between two steps of its event loop, so that half a gigabyte is not left behind."""


class TourFailed(Exception):
    """A step had an unexpected result; the message says which."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--yes", action="store_true", help="let the tour's client answer the server's questions")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--over-rest", action="store_true", help="use the zone over its REST API")
    where.add_argument(
        "--ceph", type=Path, metavar="CONF", help="use a Ceph cluster, in a namespace of its own as client.admin"
    )
    parser.add_argument("--pool", default="rbd", help="the pool for --ceph (rbd)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.yes and not sys.stdin.isatty():
        hint = f"Run it in a terminal, or as `{app.command(path_variables())} tour --yes`."
        raise BadRequest("The tour asks questions, but there is no terminal to answer them.", hint=hint)
    scratch = make_scratch()
    screen = Screen()
    ceph = None
    try:
        ceph = app.ceph_scratch(args.ceph, args.pool) if args.ceph else None
    except BaseException:
        clean_up(scratch)
        raise
    tour = Tour(screen, scratch, answers_itself=args.yes, over_rest=args.over_rest, ceph=ceph, conf=args.ceph)
    lost: OutputLost | None = None
    previous = {one: signal.signal(one, tour.interrupt) for one in ENDS}
    try:
        anyio.run(tour.go)
    except* Exception as group:
        if isinstance(error := _innermost(group), OutputLost):
            lost = error
        else:
            tour.failure = tour.describe(error)
    finally:
        clean_up(scratch)
        if ceph:
            ceph.close()
        for one, handler in previous.items():
            signal.signal(one, handler)
    if tour.is_interrupted:
        raise KeyboardInterrupt
    if lost:
        raise lost
    if tour.failure:
        screen.fail(tour.failure)
    return 1 if tour.failure else 0


class Tour:
    """The steps of the tour. `scratch` has the disk, the reference copies and the server's home."""

    def __init__(
        self,
        screen: Screen,
        scratch: Path,
        *,
        answers_itself: bool,
        over_rest: bool = False,
        ceph: "app.Scratch | None" = None,
        conf: Path | None = None,
    ) -> None:
        self.ceph, self.conf = ceph, conf
        self.screen = screen
        self.answers_itself = answers_itself
        self.over_rest = over_rest
        self.failure = ""
        self.is_interrupted = False
        self._cancel: Callable[[], object] | None = None
        self.home = scratch / "home"
        self.disk = scratch / f"{DISK}.img"
        self.original = scratch / "reference-original.img"
        self.changed = scratch / "reference-changed.img"
        self.scratch = scratch
        self.client: Client

    def interrupt(self, signum: int, frame: object) -> None:
        """End the tour. A signal handler that raises, raises anywhere in the event loop, which can then wait for ever."""
        self.is_interrupted = True
        if self._cancel:
            self._cancel()

    async def go(self) -> None:
        """Run all steps, or those before an interruption. Raises TourFailed."""
        with anyio.CancelScope() as scope:
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
            if not self.is_interrupted:
                await self._go()
        self._cancel = None

    async def _go(self) -> None:
        self.screen.begin(
            "snapshot-mcp tour",
            "A scratch disk is backed up, damaged and rolled back by the server, over the protocol that assistants use.\n"
            f"Everything is in {self.scratch}{f' and in the namespace {self.ceph.namespace}' if self.ceph else ''}, which"
            f" {'are' if self.ceph else 'is'} removed at the end.",
        )
        with self.screen.step("Make a disk") as step:
            step.result = await self._make_disk()
        log_path = self.scratch / "server.log"
        with log_path.open("w") as log:
            async with AsyncExitStack() as stack:
                environment = self._environment()
                if self.over_rest:
                    with self.screen.step("Serve the zone over REST") as step:
                        url, environment = await stack.enter_async_context(self._zone_served())
                        step.result = url
                server = StdioServerParameters(command=sys.executable, args=["-m", "snapshot_mcp"], env=environment)
                with self.screen.step("Start the server") as step:
                    client = Client(stdio_client(server, errlog=log), elicitation_callback=self._answer)
                    self.client = await stack.enter_async_context(client)
                    step.result = f"{len((await self.client.list_tools()).tools)} tools"
                await self._story()
        if log_path.read_text().strip():
            raise TourFailed("The server logged something, which it should not.")
        command = app.command(path_variables())
        self.screen.end(
            [
                "Next: name your pool in config.toml (README, “A zone on Ceph”),"
                if self.ceph
                else f"Next: {command} zone add PATH registers one of your disk images,",
                f"      {command} config claude-code (or claude-desktop, vscode, cursor) prints a host's configuration.",
            ]
        )

    def describe(self, error: BaseException) -> str:
        """Return the error as text, with the server's log."""
        log_path = self.scratch / "server.log"
        logged = log_path.read_text().strip() if log_path.exists() else ""
        what = str(error) if isinstance(error, TourFailed) else f"{type(error).__name__}: {error}"
        return f"{what}\nThe server logged:\n{logged[-2000:]}" if logged else what

    async def _story(self) -> None:
        full = await self._back_up("Back up: a full snapshot", "before the upgrade")
        with self.screen.step("An upgrade goes wrong") as step:
            changed = await _in_thread(tour_disk.change_disk, self.disk)
            await self._put()
            await _in_thread(tour_disk.copy_sparse, self.disk, self.changed)
            if await _in_thread(tour_disk.read_letter, self.disk):
                raise TourFailed(f"{LETTER} can still be read from the changed disk.")
            step.result = f"{format_bytes(changed)} overwritten, {Path(LETTER).name} cannot be read"
        incremental = await self._back_up("Back up: an incremental", "after the upgrade")
        with self.screen.step("Look") as step:
            listed = await self._call("list_snapshots", {"resource_id": DISK})
            await self._call("show_chain", {"resource_id": DISK})
            sizes = [row["stored_bytes"] for row in listed["snapshots"]]
            step.result = f"{len(sizes)} restore points in {format_bytes(sum(sizes))}"
        safety = await self._roll_back(full)
        with self.screen.step("Compare it with the original") as step:
            await self._get(DISK, self.disk)
            step.result = await self._compare(self.disk, self.original)
            letter = await _in_thread(tour_disk.read_letter, self.disk)
            if letter != tour_disk.LETTER_TEXT:
                raise TourFailed(f"{LETTER} on the disk reads {letter!r}.")
            self.screen.say(f"{LETTER}: {letter.strip()}", "italic")
        copy = await self._export(incremental)
        with self.screen.step("Compare that with the changed disk") as step:
            step.result = await self._compare(copy, self.changed)
        await self._delete(incremental, [incremental, *safety])

    async def _make_disk(self) -> str:
        with self.screen.bar("write") as move:
            files = await _in_thread(tour_disk.make_disk, self.disk, move)
        await _in_thread(tour_disk.copy_sparse, self.disk, self.original)
        if self.ceph:
            await self._put()
            self.screen.say(f"an image in {self.ceph.pool.name}, which the server finds by itself", "dim")
            return f"{format_bytes(DISK_BYTES)}, {files} files, text, random, zeros"
        async with aclosing(app.open_local_zone(load_settings(self._environment()))) as zone:
            await zone.add_resource(self.disk, DISK)
        self.screen.say(f"$ snapshot-mcp zone add {self.disk.name} --name {DISK}", "dim")
        data = format_bytes(self.disk.stat().st_blocks * 512)
        return f"{format_bytes(DISK_BYTES)}, {data} of it data: {files} files, text, random, zeros"

    async def _back_up(self, title: str, name: str) -> str:
        with self.screen.step(title) as step:
            made = await self._call("create_snapshots", {"resource_ids": [DISK], "name": name})
            await self._wait(made["job_id"], "back up")
            listed = await self._call("list_snapshots", {"resource_id": DISK, "search": name}, is_shown=False)
            if [row["status"] for row in listed["snapshots"]] != ["available"]:
                raise TourFailed(f"After the backup the list is {listed['snapshots']}.")
            (row,) = listed["snapshots"]
            step.result = f"{row['snapshot_id']}, {row['type']}, stores {format_bytes(row['stored_bytes'])}"
            return str(row["snapshot_id"])

    async def _roll_back(self, snapshot_id: str) -> list[str]:
        with self.screen.step("Roll back") as step:
            done = await self._guarded("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]}, "roll back")
            safety = list(done.get("safety_snapshot_ids", []))
            if not safety:
                raise TourFailed("The roll-back took no safety snapshot.")
            step.result = f"at {snapshot_id}; safety snapshot {', '.join(safety)}"
            return safety

    async def _export(self, snapshot_id: str) -> Path:
        with self.screen.step("Export to a new volume") as step:
            made = await self._call("export_to_volume", {"snapshot_id": snapshot_id, "volume_name": f"{DISK}-copy"})
            await self._wait(made["job_id"], "export")
            found = await self._call("list_resources", {"search": f"{DISK}-copy"}, is_shown=False)
            (row,) = found["resources"]
            step.result = f"{row['resource_id']} {row['name']}, {format_bytes(row['disk_bytes'])}"
            if self.ceph:
                await self._get(str(row["name"]), self.scratch / "copy.img")
                return self.scratch / "copy.img"
            return Path(row.get("path") or self.home / "zones" / "local" / "volumes" / f"{row['resource_id']}.raw")

    async def _put(self) -> None:
        """Give the image on Ceph the disk's content."""
        if self.ceph:
            await _in_thread(self.ceph.upload, self.disk, DISK)

    async def _get(self, name: str, path: Path) -> None:
        """Give a file the content of an image on Ceph."""
        if self.ceph:
            await _in_thread(self.ceph.download, name, path)

    async def _delete(self, snapshot_id: str, expected: list[str]) -> None:
        with self.screen.step("Delete the incremental") as step:
            await self._guarded("delete_snapshot", {"snapshot_id": snapshot_id}, "delete")
            await self._call("show_chain", {"resource_id": DISK})
            gone = await self._call("list_snapshots", {"resource_id": DISK, "status": ["deleted"]}, is_shown=False)
            ids = {row["snapshot_id"]: row["name"] for row in gone["snapshots"]}
            if ids.keys() != set(expected):
                raise TourFailed(f"{sorted(ids)} were deleted instead of {sorted(expected)}.")
            self.screen.say("Deleted with it (recover_snapshots brings it back for two hours):")
            for one, name in ids.items():
                self.screen.say(f"  {one}  “{name}”")
            step.result = f"{len(ids)} deleted: it and the safety snapshot built on it"

    async def _guarded(self, tool: str, arguments: dict[str, Any], title: str) -> dict[str, Any]:
        """Call a guarded tool, repeat it while its safety snapshot runs, and wait for its job."""
        done = await self._call(tool, arguments)
        while done["status"] == "safety_running":
            await self._wait(done["safety_job_id"], "safety snapshot")
            done = await self._call(tool, arguments)
        if done["status"] == "declined":
            raise TourFailed("You declined, so nothing was done, and the tour ends here.")
        if done["status"] != "started":
            raise TourFailed(f"{tool} returned {done['status']}; without your consent nothing was done.")
        await self._wait(done["job_id"], title)
        return done

    async def _call(
        self, tool: str, arguments: dict[str, Any], *, is_shown: bool = True, on_progress: Any = None
    ) -> dict[str, Any]:
        if is_shown:
            self.screen.call(tool, arguments)
        result = await self.client.call_tool(tool, arguments, progress_callback=on_progress)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        if result.is_error or result.structured_content is None:
            raise TourFailed(f"{tool} failed: {text}")
        if is_shown:
            self.screen.answer(text)
        content: dict[str, Any] = result.structured_content
        return content

    async def _wait(self, job_id: str, title: str) -> None:
        """Wait for the end of a job as a model does, with repeated bounded waits."""
        waited: dict[str, Any] = {"outcome": "still_running"}
        with self.screen.bar(title) as move:

            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                move(progress, total or 100, message or "" if progress < 100 else "")

            while waited["outcome"] == "still_running":
                ids = {"job_ids": [job_id]}
                waited = await self._call("wait_for_job", ids, is_shown=False, on_progress=on_progress)
        if waited["outcome"] != "successful":
            raise TourFailed(f"Job {job_id} failed: {waited['jobs'][0].get('error')}")

    async def _compare(self, path: Path, reference: Path) -> str:
        with self.screen.bar("compare") as move:
            at = await _in_thread(tour_disk.first_difference, path, reference, move)
        if at is not None:
            raise TourFailed(f"{path.name} differs from {reference.name} at byte {at:,}.")
        return f"all {DISK_BYTES:,} bytes are equal"

    async def _answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
        """Show a question of the server and return the person's answer."""
        if not isinstance(params, ElicitRequestFormParams):
            return ElicitResult(action="decline")
        self.screen.ask(params.message)
        ((field, schema),) = params.requested_schema["properties"].items()
        words = schema.get("enum", [])
        if self.answers_itself:
            if not words:
                return ElicitResult(action="decline")
            agrees = words[-1]  # the first choice declines
            self.screen.say(f"{agrees}   (answered by --yes)", "yellow")
            return ElicitResult(action="accept", content={field: agrees})
        while True:
            self.screen.prompt("your answer: ")
            await anyio.wait_readable(sys.stdin)  # a thread would not end with Ctrl-C
            line = sys.stdin.readline()
            if not line:
                return ElicitResult(action="cancel")
            text = line.strip()
            if not words or text.lower() in words:
                return ElicitResult(action="accept", content={field: text.lower() if words else text})
            self.screen.say(f"Type {' or '.join(words)}.", "dim")

    @asynccontextmanager
    async def _zone_served(self) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """Serve the zone in a process of its own; yield its URL and the environment of a server that uses it."""
        serve = ["zone", "serve", "--http", "127.0.0.1:0", "--until-stdin-closes"]  # whatever ends the tour ends it
        command = [sys.executable, "-m", "snapshot_mcp", *serve]
        self.screen.say("$ snapshot-mcp zone serve --http 127.0.0.1:0", "dim")
        log_path = self.scratch / "zone-serve.log"
        with log_path.open("w") as log:
            face = await anyio.open_process(command, stdout=log, stderr=log, env=self._environment())
        async with face:
            try:
                with anyio.move_on_after(FACE_START_SECONDS):
                    while not (found := SERVED.search(log_path.read_text())):
                        if face.returncode is not None:
                            break
                        await anyio.sleep(0.05)
                if not found:
                    raise TourFailed(f"The REST face did not start:\n{log_path.read_text()[-2000:]}")
                keys = json.loads((self.home / app.SERVICE_KEY_FILE).read_text())[0]
                remote = {
                    "SNAPSHOT_MCP_HOME": str(self.scratch / "client"),
                    "SNAPSHOT_MCP_API_URL": found[1],
                    "SNAPSHOT_MCP_API_CLIENT_ID": keys["client_id"],
                    "SNAPSHOT_MCP_API_CLIENT_SECRET": keys["client_secret"],
                    "SNAPSHOT_MCP_ZONE": "local",
                }
                yield found[1], self._environment() | remote
            finally:
                face.terminate()

    def _environment(self) -> dict[str, str]:
        """Return the server's environment, with a home of its own and without the user's settings."""
        config = self.scratch / "config.toml"
        config.touch()
        if self.ceph:
            conf = str(self.conf and self.conf.absolute())
            where = {"pool": self.ceph.pool_name, "namespace": self.ceph.namespace, "conf": conf}
            lines = [f"{name} = {json.dumps(value)}" for name, value in where.items()]
            config.write_text("\n".join(["[zones.ceph]", 'provider = "ceph"', *lines, ""]), encoding="utf-8")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
        return {**inherited, "SNAPSHOT_MCP_HOME": str(self.home), "SNAPSHOT_MCP_CONFIG": str(config)}


async def _in_thread(work: Any, *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(partial(work, *arguments), abandon_on_cancel=True)


def _innermost(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
