"""One command's conversation with the server in its own process: call a tool, follow the job, print the answer.

Exit statuses: 0 it is so, 1 an error or a refusal (nothing was started), 3 a job was started and failed, or its end is not
known.
"""

import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcp import Client
from mcp.types import Implementation, TextContent

from snapshot_mcp import __version__, app
from snapshot_mcp.cli.out import console, say, say_json, warn
from snapshot_mcp.cli.shell.words import Words, program
from snapshot_mcp.contract.text import clean_line

if TYPE_CHECKING:
    from snapshot_mcp.settings import Settings

FIRST_SECONDS = 1.0
"""How long the call itself waits; then it says which job it has started, and the command can say so when it is interrupted."""

WAIT_SECONDS = 25.0
"""How long one call waits for a job; the command calls again until the job has ended."""

JOB_FAILED = 3
NAME = "shell"
"""The program that the records name as the one through which a person asked."""

SUBMITTED = re.compile(r" and is not done yet\. Follow it with `[^`]*`\.")

REFUSED = {"declined", "refused", "plan_changed", "needs_approval", "safety_running"}
"""Statuses of a guarded call that started nothing."""


@dataclass(frozen=True, slots=True)
class ShellReply:
    """What a tool answered, in a shell's words. `code`: of an error, "" if it is none."""

    lines: tuple[str, ...] = ()
    structure: dict[str, Any] = field(default_factory=dict)
    code: str = ""

    @property
    def job_id(self) -> str:
        """The job that was started, "" for none."""
        return str(self.structure.get("job_id") or "")

    @property
    def is_running(self) -> bool:
        """Whether its job has not ended yet."""
        is_new = bool(self.job_id) and self.structure.get("status") not in REFUSED
        return is_new and self.structure.get("outcome") in {None, "still_running"}

    @property
    def status(self) -> int:
        """The exit status."""
        if self.code or self.structure.get("status") in REFUSED:
            return 1
        return JOB_FAILED if self.structure.get("outcome") in {"failed", "unknown"} else 0


class ShellSession:
    """Calls tools. `started` is the job that the command has started, for whoever interrupts it."""

    def __init__(self, client: Client, words: Words) -> None:
        self._client = client
        self._words = words
        self.started = ""

    async def call(self, tool: str, arguments: dict[str, Any], advance: "Advance | None" = None) -> ShellReply:
        """Call a tool and return its answer; an error is an answer too."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if advance:
                advance(progress, message or "")

        result = await self._client.call_tool(tool, arguments, progress_callback=report)
        text = "\n".join(one.text for one in result.content if isinstance(one, TextContent))
        if result.is_error:
            text = text.removeprefix(f"{tool} failed: ").removeprefix(f"{tool} was not called: ")
        lines = tuple(filter(None, map(self._words.line, text.split("\n"))))
        code = str((result.meta or {}).get("code", "error")) if result.is_error else ""
        reply = ShellReply(lines, self._words.structure(result.structured_content or {}), code)
        self.started = reply.job_id or self.started
        return reply

    async def call_and_wait(self, tool: str, arguments: dict[str, Any]) -> ShellReply:
        """Call a tool that starts a job, and follow the job to its end with a bar."""
        with waiting_bar() as advance:
            reply = await self.call(tool, arguments | {"wait_seconds": FIRST_SECONDS}, advance)
            head, is_first = SUBMITTED.sub(".", "".join(reply.lines[:1])), True
            while not reply.code and reply.is_running:
                zone = {"zone": reply.structure["zone"]} if reply.structure.get("zone") else {}
                asked = {"job_ids": [reply.job_id], "timeout_seconds": WAIT_SECONDS, **zone}
                later = await self.call("wait_for_job", asked, advance)
                reply, is_first = joined(reply, later), False
        return reply if is_first else replace(reply, lines=(head, *reply.lines))


Advance = Callable[[float, str], None]


def joined(first: ShellReply, later: ShellReply) -> ShellReply:
    """Return the answer to a change with what came of its job since. If that is not to be learned, the change still happened."""
    structure = dict(first.structure)
    if "message" in structure:
        structure["message"] = SUBMITTED.sub(".", structure["message"])
    if later.code:
        lines = (*later.lines, f"Job {first.job_id} was started; how it ends is not known here.")
        return ShellReply(lines, structure | {"outcome": "unknown", "hint": " ".join(lines)})
    structure |= {
        key: later.structure[key] for key in ("outcome", "made", "hint") if later.structure.get(key) is not None
    }
    jobs = later.structure.get("jobs") or [{}]
    return ShellReply(later.lines, structure | ({"error": jobs[0]["error"]} if jobs[0].get("error") else {}))


@asynccontextmanager
async def open_session(
    settings: "Settings", ask: "Callable[[app.Question], app.QuestionAnswer] | None" = None
) -> AsyncIterator[ShellSession]:
    """Run the server in this process and yield a session with it; `ask` (blocking) puts the guard's questions."""
    server = app.build_shell(settings, ask, NAME)
    async with Client(server, client_info=Implementation(name=NAME, version=__version__)) as client:
        yield ShellSession(client, Words(program()))


def print_reply(reply: ShellReply, *, as_json: bool) -> int:
    """Print an answer, errors on stderr; return the exit status."""
    if as_json:
        text = " ".join(reply.lines)
        say_json({"code": reply.code, "error": text} if reply.code else reply.structure)
    elif reply.structure.get("status") == "declined":  # by whoever is reading this
        say("Not confirmed: nothing was done.")
    elif reply.code:
        first, *others = reply.lines or ("",)
        warn(f"snapshot-mcp: {first}", *(f"  {line}" for line in others))
    else:
        say(*reply.lines)
    return reply.status


@contextmanager
def waiting_bar() -> Iterator[Advance]:
    """Show how far a job is on stderr, from its first report on: a question comes before that. Nothing without a terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    screen = console(sys.stderr)
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    progress = Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True)
    task = progress.add_task("waiting", total=100)

    def advance(done: float, text: str) -> None:
        progress.start()
        progress.update(task, completed=done, description=clean_line(text))

    try:
        yield advance
    finally:
        progress.stop()
