"""Limits for the texts of an answer: pure.

A zone's texts end up in plans, records and logs, so a long one is cut when it is read, and ends with an ellipsis. An id is
never cut, because a part of it could name another thing: an answer with too long an id is rejected.
"""

from typing import Any

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS
from snapshot_mcp.contract.text import encodable

MAX_ID_CHARACTERS = 255

MAX_TEXT_CHARACTERS = 4096
"""For descriptions, reasons and all else but names: the longest description of the contract."""

MAX_SECRET_CHARACTERS = 16_384
"""For a token; servers accept headers of 8 to 16 KB."""

MAX_EXTRA_CHARACTERS = 65_536
"""For a job's `extra` that a provider sends as JSON text; a longer one is dropped, because a part of it is not JSON."""

MAX_DEPTH = 20
"""For nested lists and objects; deeper ones are dropped."""

_THINGS = ("snapshot", "volume", "instance", "image", "job", "root", "parent", "resource")
IDS = frozenset({f"{thing}_id" for thing in _THINGS} | {"resource_ids"})


def is_within_bounds(body: bytes) -> bool:
    """Return True if no text in the JSON can be too long: a cheap check that usual answers pass.

    Without escaped quotes each text lies between two quotes, and UTF-8 and escapes only make it longer. So every quote must
    be followed by another within the limit; the search continues from the last of those.
    """
    if b'\\"' in body or b"\\ud" in body or b"\\uD" in body:
        return False
    longest = min(MAX_NAME_CHARACTERS, MAX_ID_CHARACTERS)
    quote = -1
    while quote + longest + 1 < len(body):
        quote = body.rfind(b'"', quote + 1, quote + longest + 2)
        if quote < 0:
            return False
    return True


def bounded(value: Any, what: str) -> Any:
    """Return decoded JSON with its texts cut. Raises Unavailable for an id that is too long; `what` names the request."""
    return _bounded("", value, what, 0)


def _bounded(key: str, value: Any, what: str, depth: int) -> Any:
    if isinstance(value, str):
        return _text(key, value, what)
    if isinstance(value, (list, dict)) and depth >= MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [_bounded(key, one, what, depth + 1) for one in value]
    if isinstance(value, dict):
        short = {encodable(name): one for name, one in value.items() if len(name) <= MAX_NAME_CHARACTERS}
        return {name: _bounded(name, one, what, depth + 1) for name, one in short.items()}
    return value


def _text(key: str, text: str, what: str) -> str | None:
    text = encodable(text)
    if key in IDS:
        if len(text) > MAX_ID_CHARACTERS:
            raise Unavailable(
                f"{what}: a {key} in the answer has {len(text)} characters; an id has at most {MAX_ID_CHARACTERS}.",
                hint="The answer was rejected. Report this to the operator of the zone.",
            )
        return text
    if key == "extra":
        return text if len(text) <= MAX_EXTRA_CHARACTERS else None
    if key == "access_token":
        return text if len(text) <= MAX_SECRET_CHARACTERS else None
    longest = MAX_NAME_CHARACTERS if key.endswith("name") or key in {"tags", "status"} else MAX_TEXT_CHARACTERS
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
