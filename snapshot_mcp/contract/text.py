"""Hostile text made harmless: names, descriptions and error texts from outside are cleaned and capped here.

A name can hold line breaks, terminal codes, bidirectional marks or an imitation of a question. What leaves
`clean_text` is one line of visible characters of bounded length; `quoted` sets it off from our own words.
"""

import re
import unicodedata
from functools import lru_cache

NAME_CHARACTERS = 80
"""As much of a name as a person can compare at a glance; the contract allows 255."""

MESSAGE_CHARACTERS = 400
"""As much of a foreign error text as is worth a model's context."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK_LETTERS = {"\u115f", "\u1160", "\u3164", "\uffa0", "\u2800"}
"""Letters and symbols that draw nothing, so that two names could look alike."""
_QUOTE_NAMES = ("QUOTATION MARK", "PRIME", "APOSTROPHE", "DITTO MARK")
"""What the names of quotation marks, and of characters that are drawn like one, have in them."""
_QUOTES_BY_LOOK = frozenset("\u02dd\u02f6\u05f4\u1425")
"""Double acute accents and the Hebrew gershayim are two strokes as well."""

_APOSTROPHES = re.compile("''+")
"""Two of them look like a quotation mark."""

CONSISTENCIES = {
    "frozen": "consistent as after a power cut",
    "instant": "consistent as after a power cut",
    "unchanged": "consistent as after a power cut",
    "held": "consistent as after a power cut",
    "fuzzy": "may be a mixture of states: the disk was in use",
}
"""What each kind of `consistency` means (CONTRACT.md, "What our own face adds")."""

_MARKS_A_LETTER = 2
"""More combining marks than this on one letter are a tower that hides the lines around it."""


def clean_text(text: object, limit: int = NAME_CHARACTERS) -> str:
    """Return `text` as one line of at most `limit` visible characters; what was cut shows as an ellipsis.

    Control, format (bidi, zero-width, tags), surrogate and private characters become U+FFFD where they could change
    the meaning, line breaks and blanks of every kind become a single space.
    """
    return _cleaned(str(text)[: limit * 4], limit)


@lru_cache(maxsize=4096)  # the rows of a list say the same over and over
def _cleaned(given: str, limit: int) -> str:
    if given.isascii() and given.isprintable() and "  " not in given:  # all that most texts are: nothing to replace
        return _capped(given.strip(), limit)
    out: list[str] = []
    marks = 0
    for character in given:
        category = unicodedata.category(character)
        if character in "\t\n\v\f\r\x85" or category in {"Zs", "Zl", "Zp"}:
            character = " "
        elif category in _INVISIBLE or character in _BLANK_LETTERS:
            character = "\ufffd"
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if marks > _MARKS_A_LETTER or (character == " " and out and out[-1] == " "):
            continue
        out.append(character)
    return _capped("".join(out).strip(), limit)


def _capped(line: str, limit: int) -> str:
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def quoted(text: object, limit: int = NAME_CHARACTERS) -> str:
    """Return `clean_text` between typographic quotes; quotes inside become plain apostrophes, so it cannot end early."""
    line = clean_text(text, limit)
    inner = line.replace('"', "'") if line.isascii() else "".join("'" if _is_quote(one) else one for one in line)
    return "“" + _APOSTROPHES.sub("'", inner) + "”"


@lru_cache(maxsize=1024)
def _is_quote(character: str) -> bool:
    """Whether it is a quotation mark, or drawn like one."""
    name = unicodedata.name(character, "")
    return any(part in name for part in _QUOTE_NAMES) or character in _QUOTES_BY_LOOK


@lru_cache(maxsize=64)
def consistency_in_words(consistency: str | None) -> str:
    """Return how far a restore point is one state of its disk, in plain words; "" where the zone does not say."""
    told = clean_text(consistency or "")
    meaning = CONSISTENCIES.get(told.partition(",")[0].strip())
    return f"{meaning} ({told})" if meaning else told


def format_bytes(size_bytes: int) -> str:
    """Return a size for people, in binary units: `1.5 GiB`."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
