"""`Monitor`: what the monitor of a QEMU is asked, however it is reached.

Its answers are untrusted: bounded, and checked by shape. Only the commands below are ever sent.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text

COMMANDS: Final = frozenset(
    {
        "add-fd",
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-merge",
        "block-dirty-bitmap-remove",
        "block-export-add",
        "block-export-del",
        "blockdev-add",
        "blockdev-del",
        "blockdev-reopen",
        "getfd",
        "nbd-server-start",
        "nbd-server-stop",
        "qom-get",
        "qom-set",
        "query-block",
        "query-block-exports",
        "query-fdsets",
        "query-named-block-nodes",
        "query-version",
        "remove-fd",
    }
)

MAX_ANSWER_BYTES: Final = 4 << 20
"""`query-named-block-nodes` of a machine with a hundred disks takes a fifth of it."""

MAX_ITEMS: Final = 10_000
"""Most items of a list in an answer."""

ANSWER_SECONDS: Final = 60.0
"""How long QEMU may take: while its disks are drained it answers nothing, and a slow disk takes seconds."""


class MonitorError(Exception):
    """QEMU refused a command, or its answer is not one; the text is cleaned."""

    def __init__(self, text: object) -> None:
        super().__init__(clean_text(text, MESSAGE_CHARACTERS).rstrip("."))


class MonitorGone(MonitorError):
    """The monitor cannot be reached, or the connection ended."""


class MonitorAbsent(MonitorGone):
    """There is no QEMU behind the monitor's address."""


class Monitor(Protocol):
    """A connection to the monitor of one QEMU. `pid` is its process, 0 if that is unknown."""

    pid: int

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, fd: int = -1) -> Any:
        """Send one of `COMMANDS`, with a descriptor if it takes one, and return the answer. Raises MonitorError."""

    def close(self) -> None:
        """End the connection."""


def refuse_other_commands(command: str) -> None:
    """Raise ValueError for a command that is not on the list."""
    if command not in COMMANDS:
        raise ValueError(command)


def a_list(answer: Any) -> list[dict[str, Any]]:
    """Return an answer that is a list of objects. Raises MonitorError for any other."""
    if not isinstance(answer, list) or len(answer) > MAX_ITEMS or not all(isinstance(one, dict) for one in answer):
        raise MonitorError("its answer is not a list of objects")
    return answer


def text(answer: Mapping[str, Any], *names: str) -> str:
    """Return the text at a path in an answer, "" if there is none."""
    found: Any = answer
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


def number(answer: Any, *names: str) -> int:
    """Return the number at a path in an answer, -1 if there is none."""
    found: Any = answer
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else -1
