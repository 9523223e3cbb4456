"""Parse server-sent events, as far as the contract uses them: pure. Lines end with LF, CR LF or CR; a chunk may end anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 1 << 20
"""A job has less than 10 KB."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    data: str


class EventReader:
    """Turns bytes into events. Raises ValueError for an event of more than MAX_EVENT_BYTES."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_first_line = True
        self._is_after_cr = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that end in this non-empty chunk; a comment counts as a heartbeat."""
        if self._is_after_cr:  # the CR ended the line at once, so an LF that follows is part of it
            chunk = chunk.removeprefix(b"\n")
        self._is_after_cr = chunk.endswith(b"\r")
        lines = (self._rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        self._size += len(chunk)
        if self._size > MAX_EVENT_BYTES:
            raise ValueError(f"an event has more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            text = line.decode("utf-8", "replace")
            yield from self._line(text.removeprefix("\ufeff") if self._is_first_line else text)
            self._is_first_line = False

    def _line(self, line: str) -> Iterator[Event]:
        if not line:
            if self._data or self._name:
                yield Event(self._name or "message", "\n".join(self._data))
            self._name, self._data, self._size = "", [], 0
            return
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "":
                self._size = 0
                yield Event("hb", value)
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
