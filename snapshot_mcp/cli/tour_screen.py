"""The tour's output: steps, calls, progress bars, and a table at the end; for a terminal or a pipe."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from snapshot_mcp.cli import out

PIPE_COLUMNS = 100
"""The width in a pipe, which has none of its own."""
INDENT = 3
Move = Callable[..., None]
"""Takes how much is done and the total, in any unit, and a `detail` to show."""


@dataclass
class TourStep:
    """A row of the table: what was done, its result, and how long it took."""

    title: str
    result: str = ""
    seconds: float = 0.0


class Screen:
    """Writes to stdout. Raises OutputLost."""

    def __init__(self) -> None:
        is_terminal = sys.stdout.isatty()
        self.console = out.console(width=None if is_terminal else PIPE_COLUMNS, soft_wrap=False)
        self.steps: list[TourStep] = []
        self._began = monotonic()

    def begin(self, title: str, text: str) -> None:
        """Print the title and the introduction."""
        self.console.print(
            Panel(out.text(text), title=Text(title, style="bold"), title_align="left", border_style="cyan")
        )

    @contextmanager
    def step(self, title: str) -> Iterator[TourStep]:
        """Announce a step and time it; the block sets its `result`."""
        step = TourStep(title)
        self.steps.append(step)
        self.console.print()
        heading = Text.assemble((f" {len(self.steps)} ", "bold cyan"), (title, "bold"))
        self.console.print(Rule(heading, align="left", style="dim"))
        began = monotonic()
        yield step
        step.seconds = monotonic() - began
        if step.result:
            self.say(Text("✓ ", "bold green").append_text(out.text(step.result)))

    def say(self, text: str | Text, style: str = "", indent: int = INDENT) -> None:
        """Print an indented text."""
        line = text if isinstance(text, Text) else out.text(text, style)
        self.console.print(Padding(line, (0, 0, 0, indent), expand=False))

    def call(self, tool: str, arguments: dict[str, Any]) -> None:
        """Print a tool call."""
        words = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
        self.say(Text(f"→ {tool}", "cyan").append_text(out.text(f"({words})", "dim")))

    def answer(self, text: str) -> None:
        """Print the server's answer."""
        for line in text.splitlines():
            self.say(line, indent=INDENT + 2)

    def ask(self, message: str) -> None:
        """Print a question of the server in a box, as a host shows it."""
        box = Panel(out.text(message), title="the server asks", title_align="left", border_style="yellow")
        self.console.print(Padding(box, (0, 0, 0, INDENT), expand=False))

    def prompt(self, text: str) -> None:
        """Print a prompt for an answer."""
        self.console.print(Text(" " * INDENT + text, style="yellow"), end="")

    @contextmanager
    def bar(self, title: str) -> Iterator[Move]:
        """Show a progress bar, which remains when it is full; yield the function that moves it."""
        columns = (
            TextColumn(" " * INDENT + "{task.description:<16}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.elapsed:.1f} s"),
            TextColumn("{task.fields[detail]}", style="dim"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=1.0, detail="")
            yield lambda done, total, detail="": progress.update(task, completed=done, total=total, detail=detail)

    def end(self, lines: Sequence[str]) -> None:
        """Print the table of all steps, then `lines`."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", justify="right", style="cyan")
        table.add_column("Step")
        table.add_column("Result")
        table.add_column("Time", justify="right")
        for number, step in enumerate(self.steps, 1):
            table.add_row(str(number), Text(step.title), out.text(step.result), f"{step.seconds:.1f} s")
        table.add_section()
        table.add_row(
            "", "", Text("Everything is correct to the byte.", style="bold green"), f"{monotonic() - self._began:.1f} s"
        )
        self.console.print()
        self.console.print(table)
        for line in lines:
            self.console.print(out.text(line), soft_wrap=True)

    def fail(self, message: str) -> None:
        """Print why the tour failed."""
        self.console.print()
        self.console.print(Text("✗ ", "bold red").append_text(out.text(message)))
