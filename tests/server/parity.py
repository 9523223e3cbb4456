"""Compares the two forms of a result: hosts show a model either the text or the structure, so both must say everything.

Human sizes, ages and words like `head` are the text's form of bytes, times and flags.
"""

import re
from collections.abc import Iterator
from typing import Any

from mcp.types import CallToolResult

from snapshot_mcp.contract.text import format_bytes
from tests.server.lab import text_of

FLAGS = {"is_head": "head", "is_damaged": "DAMAGED"}
"""The text's word for a flag that is set."""

WORDS = {("status", "exists"): "nothing new was started", ("filter", "kind “image”"): "image"}
"""Other fields that the text says in words of its own."""

PAGE = re.compile(r"; \d+ to \d+:")
"""Which rows a page shows: the caller has given the offset."""
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?: UTC|Z)?")
AGE = re.compile(r"\(?\b(?:\d+ (?:min|h|days) ago|in \d+ (?:min|h|days)|just now)\b\)?")
SIZE = re.compile(r"\d+(?:\.\d)? (?:bytes|KiB|MiB|GiB|TiB)\b")
ID = re.compile(r"\b(?:ss|vol|ins|img|ap)-[a-z0-9]+\b|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22,27}\b")
COMMAND = re.compile(r"`([^`]+)`|^(SNAPSHOT_MCP_\S+=.*|\S*python -m snapshot_mcp .*)$", re.MULTILINE)
PLACE = re.compile(r"(?:https?:/|(?<![\w/]))/[\w.+:/-]{3,}")
NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a structure that is no container, with the name of its field."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one, name)
    else:
        yield name, value


def lengths(value: Any) -> Iterator[int]:
    """How many items each list of a structure has."""
    if isinstance(value, list):
        yield len(value)
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from lengths(one)


def says(text: str, name: str, part: str) -> bool:
    """Whether the text says it, at the beginning of a sentence or inside of one."""
    part = WORDS.get((name, part), part)
    return any(f"{first}{part[1:]}" in text for first in (part[0], part[0].swapcase()))


def human(name: str, value: Any) -> list[str]:
    """The parts in which the text says a field."""
    if isinstance(value, bool):
        return [FLAGS[name]] if value else []
    if isinstance(value, int) and name.endswith("_bytes"):
        return [format_bytes(value)]
    if isinstance(value, float):
        return [f"{value:g}"]
    return [line for line in str(value).splitlines() if line]


def only_in_structure(result: CallToolResult) -> list[str]:
    """What the structure says and the text does not."""
    text = text_of(result)
    return [
        f"{name}: {part}"
        for name, value in leaves(result.structured_content)
        for part in human(name, value)
        if not says(text, name, part)
    ]


def only_in_text(result: CallToolResult) -> list[str]:
    """The ids, sizes, times, commands, places and figures that the text says and the structure does not."""
    structure = result.structured_content
    said = "\n".join(part for name, value in leaves(structure) for part in (*human(name, value), str(value)))
    text, missing = PAGE.sub(":", text_of(result)), []
    for pattern in (COMMAND, PLACE, TIME, AGE, SIZE, ID):
        found = [
            next(filter(None, match.groups()), match[0]) if match.groups() else match[0]
            for match in pattern.finditer(text)
        ]
        missing += [] if pattern is AGE else [one for one in found if one.rstrip(".") not in said]
        text = pattern.sub(" ", text)
    counts = {str(one) for one in lengths(structure)} | {
        str(sum(str(value).count("◉") for _, value in leaves(structure)))
    }
    numbers = counts | set(NUMBER.findall(said))
    return missing + [one for one in NUMBER.findall(text) if one not in numbers]


def is_lean(value: Any) -> bool:
    """Whether nothing in a structure is false, null or empty, but for the counts and lists that say so."""
    if isinstance(value, dict):
        kept = {"snapshots", "resources", "jobs", "lines"}
        return all(
            one not in (None, "", False) or (isinstance(one, int) and one is not False) for one in value.values()
        ) and all(is_lean(one) and (one != [] or key in kept) for key, one in value.items())
    return all(map(is_lean, value)) if isinstance(value, list) else True


def differences(result: CallToolResult) -> list[str]:
    """What only one form of a result says, or what its structure could leave out; an error has one form."""
    if result.is_error:
        assert result.structured_content is None
        assert (result.meta or {})["code"]
        return []
    found = [f"only in the structure: {one}" for one in only_in_structure(result)]
    found += [f"only in the text: {one}" for one in only_in_text(result)]
    return found + ([] if is_lean(result.structured_content) else [f"not lean: {result.structured_content}"])
