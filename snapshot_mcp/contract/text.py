"""Cleaning of untrusted text (names, descriptions, errors), and text forms that several parts share.

A name can contain line breaks, terminal codes, bidirectional marks or an imitation of a question. `clean_text` returns one
line of visible characters of bounded length; `quoted` sets it off from our own words.
"""

import re
import unicodedata
from datetime import datetime
from functools import lru_cache

NAME_CHARACTERS = 80
"""Longest name that a person compares at a glance; the contract allows 255."""

MESSAGE_CHARACTERS = 400
"""Longest error text from outside that is worth a model's context."""

LINE_CHARACTERS = 5000
"""Longest line that is printed; a path has up to 4,096 bytes."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK_LETTERS = {"\u115f", "\u1160", "\u3164", "\uffa0", "\u2800"}
"""Letters and symbols without a glyph, which would let different names look alike."""
_QUOTE_NAMES = ("QUOTATION MARK", "PRIME", "APOSTROPHE", "DITTO MARK")
"""Parts of the Unicode names of quotation marks and of characters that look like one."""
_QUOTES_BY_LOOK = frozenset("\u02dd\u02f6\u05f4\u1425")
"""Characters that look like a quotation mark but are not named like one."""

_APOSTROPHES = re.compile("''+")
"""Two or more apostrophes, which look like a quotation mark."""

EACH_FOR_ITSELF = "each disk for itself"
"""Follows a kind of consistency if several disks were not captured at one instant."""

CONSISTENCIES = {
    "frozen": "consistent: the guest had stopped writing",
    **dict.fromkeys(("instant", "unchanged", "held"), "consistent as after a power cut"),
    "fuzzy": "may be a mixture of states: the disk was in use",
}
"""Meaning of each kind of `consistency` (CONTRACT.md, "What our own face adds")."""

_LONE = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which no encoder accepts: JSON can spell it, and `os.fsdecode` uses it for bytes that are not text."""

_BLANKS = re.compile("  +")

_MARKS_A_LETTER = 2
"""Combining marks kept on one letter; more would cover the lines around it."""


def encodable(text: str) -> str:
    """Return `text` as it can be stored and sent: a path's bytes that are not text as `\\xff`, other half pairs as U+FFFD."""
    return text if text.isascii() else _LONE.sub(_spell_lone, text)


def _spell_lone(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


def clean_text(text: object, limit: int = NAME_CHARACTERS) -> str:
    """Return `text` as one line of at most `limit` visible characters, ending in an ellipsis if it was cut.

    Control, format (bidi, zero-width, tags), surrogate and private characters become U+FFFD; line breaks and runs of
    blanks of every kind become a single space.
    """
    return _cleaned(str(text)[: limit * 4], limit)


@lru_cache(maxsize=4096)  # the rows of a list repeat the same texts
def _cleaned(given: str, limit: int) -> str:
    if not (given.isascii() and given.isprintable()):  # else the common case: nothing to replace
        given = _visible(given)
    return _capped(_BLANKS.sub(" ", given).strip(), limit)


def clean_line(text: object) -> str:
    """Return `text` as one line of visible characters, with its blanks as they are; an absurdly long one is cut.

    It is for output whose parts were capped before.
    """
    line = str(text)[: LINE_CHARACTERS + 1]
    if not (line.isascii() and line.isprintable()):
        line = _visible(line)
    return _capped(line, LINE_CHARACTERS)


def _visible(given: str) -> str:
    """Replace what is not visible: blanks of every kind by a space, a path's bytes by `\\xff`, the rest by U+FFFD."""
    given = encodable(given)
    out: list[str] = []
    marks = 0
    for character in given:
        category = unicodedata.category(character)
        if character in "\t\n\v\f\r\x85" or category in {"Zs", "Zl", "Zp"}:
            character = " "
        elif category in _INVISIBLE or character in _BLANK_LETTERS:
            character = "\ufffd"
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if marks <= _MARKS_A_LETTER:
            out.append(character)
    return "".join(out)


def _capped(line: str, limit: int) -> str:
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def quoted(text: object, limit: int = NAME_CHARACTERS) -> str:
    """Return `clean_text` in typographic quotes; quotes inside become apostrophes, so that it cannot end early."""
    line = clean_text(text, limit)
    inner = line.replace('"', "'") if line.isascii() else "".join("'" if _is_quote(one) else one for one in line)
    return "“" + _APOSTROPHES.sub("'", inner) + "”"


@lru_cache(maxsize=1024)
def _is_quote(character: str) -> bool:
    """Return whether it is a quotation mark or looks like one."""
    name = unicodedata.name(character, "")
    return any(part in name for part in _QUOTE_NAMES) or character in _QUOTES_BY_LOOK


@lru_cache(maxsize=64)
def consistency_in_words(consistency: str | None) -> str:
    """Return a restore point's consistency in plain words, "" if the zone does not report it.

    What is not the contract's is quoted, and never worded as good.
    """
    text = clean_text(consistency or "")
    kind, _, rest = (part.strip().lower() for part in text.partition(","))
    is_known = kind in CONSISTENCIES and rest in {"", EACH_FOR_ITSELF}
    shown = text if is_known else text and quoted(text)
    return f"{CONSISTENCIES[kind]} ({shown})" if is_known or kind == "fuzzy" else shown


CLOCK_SKEW_SECONDS = 300.0
"""How far a zone's clock may run ahead of this machine's; what lies further ahead has a wrong clock."""


def age_in_words(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was, for people: `2 h ago`; one that lies ahead by a wrong clock is called so."""
    seconds = (now - moment).total_seconds()
    minutes = int(abs(seconds) // 60)
    if minutes < 1 or -CLOCK_SKEW_SECONDS <= seconds < 0:
        return "just now"
    span = (
        f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
    )
    return f"{span} ago" if seconds > 0 else f"{span} AHEAD of the clock"


def format_bytes(size_bytes: int) -> str:
    """Return a size in binary units, for people: `1.5 GiB`."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
