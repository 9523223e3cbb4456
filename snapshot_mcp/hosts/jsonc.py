"""Change one value in a JSON file that people edit: comments, trailing commas, order and layout of all else stay."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(
    r"""(?P<blank>[\s\ufeff]+|//[^\r\n]*|/\*.*?\*/)
    | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*")
    | (?P<mark>[{}\[\]:,])
    | (?P<word>[-+.\w]+)""",
    re.VERBOSE | re.DOTALL,
)

_REST_OF_LINE = re.compile(r"[ \t]*(?://[^\r\n]*|/\*(?:(?!\*/)[^\r\n])*\*/)?[ \t]*(?=\r?\n)")
"""What belongs to the line before: a comment beside the last value."""

MAX_DEPTH = 100
"""Deepest nesting that is read; settings files have five levels."""


@dataclass(slots=True)
class _Member:
    key: str
    start: int
    value: "_Value"


@dataclass(slots=True)
class _Value:
    """A value and its place in the text; `members` of an object, `last` the end of what stands before its closing brace."""

    start: int
    end: int = 0
    data: Any = None
    members: list[_Member] | None = None
    last: int = 0
    has_comma: bool = False
    items: list[Any] = field(default_factory=list)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind = ""
        self._start = 0
        self._token = ""
        self._next()

    def read(self) -> _Value:
        value = self._value(0)
        if self._kind:
            raise self._wrong()
        return value

    def _next(self) -> None:
        while True:
            if self._at >= len(self._text):
                self._kind, self._token, self._start = "", "", self._at
                return
            found = _TOKEN.match(self._text, self._at)
            if not found:
                self._start = self._at
                raise self._wrong()
            self._kind, self._token, self._start = found.lastgroup or "", found[0], self._at
            self._at = found.end()
            if self._kind != "blank":
                return

    def _wrong(self) -> ValueError:
        line = self._text.count("\n", 0, self._start) + 1
        return ValueError(f"line {line} is not JSON")

    def _take(self, mark: str) -> int:
        """Take a mark and return where it ends."""
        if self._token != mark:
            raise self._wrong()
        end = self._start + 1
        self._next()
        return end

    def _value(self, depth: int) -> _Value:
        if depth > MAX_DEPTH:
            raise self._wrong()
        if self._token == "{":
            return self._object(depth)
        if self._token == "[":
            return self._array(depth)
        if self._kind not in {"string", "word"}:
            raise self._wrong()
        value = _Value(self._start, self._start + len(self._token))
        try:
            value.data = json.loads(self._token)
        except ValueError:
            raise self._wrong() from None
        self._next()
        return value

    def _object(self, depth: int) -> _Value:
        value = _Value(self._start, members=[])
        value.last = self._take("{")
        members: list[_Member] = []
        while self._token != "}":
            if self._kind != "string":
                raise self._wrong()
            start, key = self._start, json.loads(self._token)
            self._next()
            self._take(":")
            member = _Member(key, start, self._value(depth + 1))
            members.append(member)
            value.last, value.has_comma = member.value.end, self._token == ","
            if value.has_comma:
                value.last = self._take(",")
            elif self._token != "}":
                raise self._wrong()
        value.end = self._take("}")
        value.members = members
        value.data = {one.key: one.value.data for one in members}
        return value

    def _array(self, depth: int) -> _Value:
        value = _Value(self._start)
        self._take("[")
        while self._token != "]":
            value.items.append(self._value(depth + 1).data)
            if self._token == ",":
                self._take(",")
            elif self._token != "]":
                raise self._wrong()
        value.end = self._take("]")
        value.data = value.items
        return value


def read(text: str) -> Any:
    """Return the data of a JSON text, which may have comments and trailing commas. Raises ValueError, naming the line."""
    return _Reader(text).read().data


def put(text: str, path: tuple[str, ...], data: Any) -> str:
    """Return the text with `data` at the path; missing objects are made. Raises ValueError if an object is something else."""
    at = _Reader(text).read()
    for number, key in enumerate(path):
        if at.members is None:
            where = ".".join(path[:number])
            raise ValueError(f"{where or 'the file'} is not an object")
        found = [one.value for one in at.members if one.key == key]
        if len(found) > 1:
            raise ValueError(f"{key} is there twice")
        if not found:
            for missing in reversed(path[number + 1 :]):
                data = {missing: data}
            return _insert(text, at, key, data)
        at = found[0]
    return text[: at.start] + _written(data, _indent_at(text, at.start), _unit(text), text) + text[at.end :]


def _insert(text: str, parent: _Value, key: str, data: Any) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    outer, members = _indent_at(text, parent.start), parent.members or []
    inner = _indent_at(text, members[0].start) if members else outer
    inner = inner if len(inner) > len(outer) else outer + _unit(text)
    head, tail = text[: parent.last], text[parent.last :]
    head += "," if members and not parent.has_comma else ""
    if rest := _REST_OF_LINE.match(tail):
        head, tail = head + rest[0], tail[rest.end() :]
    if "\n" not in text[parent.last : parent.end]:
        tail = newline + outer + tail.lstrip(" \t")
    comma = "," if parent.has_comma else ""
    return f"{head}{newline}{inner}{json.dumps(key)}: {_written(data, inner, _unit(text), text)}{comma}{tail}"


def _written(data: Any, indent: str, unit: str, text: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    return json.dumps(data, indent=unit, ensure_ascii=False).replace("\n", newline + indent)


def _indent_at(text: str, at: int) -> str:
    """Return the indentation of the line that holds this place."""
    line = text[text.rfind("\n", 0, at) + 1 : at].lstrip("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """Return what the text indents by."""
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found[1] if found and (found[1][0] == "\t" or len(found[1]) <= 8) else "  "
