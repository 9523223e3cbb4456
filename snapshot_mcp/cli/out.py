"""The one door through which commands print. What comes from outside is cleaned here, whoever forgot it before.

One argument is one line: a line break in a name does not begin another. What Rich draws is made of `text`.
"""

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from snapshot_mcp.cli import streams
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_line, clean_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


def say(*lines: str) -> None:
    """Print lines on stdout. Raises OutputLost."""
    for line in lines:
        print(clean_line(line), file=_outlet())


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON in ASCII, which every terminal and program can read. Raises OutputLost."""
    print(json.dumps(value, indent=indent), file=_outlet())


def warn(*lines: str) -> None:
    """Print lines on stderr; a message that does not arrive is not worth failing for."""
    try:
        for line in lines:
            print(clean_line(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        streams.discard(sys.stderr)


def draw(*drawn: "RenderableType") -> None:
    """Print what Rich draws, made of `text`. Raises OutputLost."""
    for one in drawn:
        console().print(one)


def console(stream: TextIO | None = None, **options: Any) -> "Console":
    """Return Rich's console on a stream (stdout by default), which raises OutputLost."""
    from rich.console import Console

    return Console(file=_outlet(stream), highlight=False, **options)


def text(content: str, style: str = "") -> "Text":
    """Return lines for Rich, each cleaned; markup in them has no effect."""
    from rich.text import Text

    return Text("\n".join(clean_line(line) for line in content.split("\n")), style=style)


def ask(question: str) -> str:
    """Print a question, read one line from stdin and return it without blanks around it. Raises EOFError."""
    print(clean_line(question), end=" ", flush=True, file=_outlet())
    return input().strip()


def is_answer(typed: str, wanted: str) -> bool:
    """Return whether a person typed what was asked for, as it is or as their terminal shows it."""
    return typed in {wanted, streams.as_shown(clean_line(wanted))}


class Parser(argparse.ArgumentParser):
    """An argument parser whose messages, with the arguments that they repeat, are cleaned."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        said = f"{self.prog}: error: {clean_text(message, MESSAGE_CHARACTERS)}"
        near = _meant(self, message)
        warn(*self.format_usage().splitlines(), said, *([f"  Did you mean {' or '.join(near)}?"] if near else []))
        sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or version; argparse itself ignores that it does not arrive."""
        say(*message.splitlines())


def _meant(parser: argparse.ArgumentParser, message: str) -> list[str]:
    """Return the choices or options near to the wrong word that a message names."""
    from snapshot_mcp.zones.finding import near_names

    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return near_names(found[1], re.findall(r"[\w.-]+", found[2]))
    if found := re.search(r"unrecognized arguments: (--[\w-]+)", message):
        return near_names(found[1], _options(parser))
    return []


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a parser and of the commands below it."""
    found = []
    for action in parser._actions:
        found += [one for one in action.option_strings if one.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            found += [one for sub in action.choices.values() for one in _options(sub)]
    return list(dict.fromkeys(found))


class _Outlet:
    """A stream whose writes raise OutputLost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, content: str) -> int:
        try:
            return self._stream.write(content)
        except OSError as error:
            raise streams.lost(error) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise streams.lost(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _outlet(stream: TextIO | None = None) -> TextIO:
    return cast(TextIO, _Outlet(stream or sys.stdout))
