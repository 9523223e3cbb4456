"""How long the texts of an answer may be: pure.

What a zone sends travels on into plans, records and logs, so it is cut when it is read. A text that is too long is cut and
shows it with an ellipsis. An id is taken whole or not at all, because a part of it would be another thing's.
"""

from typing import Any

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS

MAX_ID_CHARACTERS = 255

MAX_TEXT_CHARACTERS = 4096
"""Of descriptions, reasons and what else is no name: the longest description of the contract."""

MAX_SECRET_CHARACTERS = 16_384
"""Of a token; servers accept headers of 8 to 16 KB."""

MAX_EXTRA_CHARACTERS = 65_536
"""Of a job's `extra` where a provider sends it as JSON text; a longer one is left out, because a part of it is no JSON."""

MAX_DEPTH = 20
"""Of lists and objects in each other. What lies deeper is left out."""

IDS = frozenset(
    {
        "snapshot_id",
        "volume_id",
        "instance_id",
        "image_id",
        "job_id",
        "root_id",
        "parent_id",
        "resource_id",
        "resource_ids",
    }
)


def is_within_bounds(body: bytes) -> bool:
    """Whether no text in the JSON can be too long, for a cheap look at what is as usual.

    Without escaped quotes each text lies between two quotes; UTF-8 and escapes only make it longer than it is. So from
    each quote there must be another one near enough, and the last of those is looked from next.
    """
    if b'\\"' in body:
        return False
    longest = min(MAX_NAME_CHARACTERS, MAX_ID_CHARACTERS)
    quote = -1
    while quote + longest + 1 < len(body):
        quote = body.rfind(b'"', quote + 1, quote + longest + 2)
        if quote < 0:
            return False
    return True


def bounded(value: Any, what: str) -> Any:
    """Return decoded JSON with its texts cut. Raises Unavailable for an id that is too long; `what` was asked for."""
    return _bounded("", value, what, 0)


def _bounded(key: str, value: Any, what: str, depth: int) -> Any:
    if isinstance(value, str):
        return _text(key, value, what)
    if isinstance(value, (list, dict)) and depth >= MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [_bounded(key, one, what, depth + 1) for one in value]
    if isinstance(value, dict):
        return {
            name: _bounded(name, one, what, depth + 1)
            for name, one in value.items()
            if len(name) <= MAX_NAME_CHARACTERS
        }
    return value


def _text(key: str, text: str, what: str) -> str | None:
    if key in IDS:
        if len(text) > MAX_ID_CHARACTERS:
            raise Unavailable(
                f"{what}: a {key} of the answer has {len(text)} characters, and an id has at most {MAX_ID_CHARACTERS}.",
                hint="The answer was not used. Report this to the operator of the zone.",
            )
        return text
    if key == "extra":
        return text if len(text) <= MAX_EXTRA_CHARACTERS else None
    if key == "access_token":
        return text if len(text) <= MAX_SECRET_CHARACTERS else None
    longest = MAX_NAME_CHARACTERS if key.endswith("name") or key in {"tags", "status"} else MAX_TEXT_CHARACTERS
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
