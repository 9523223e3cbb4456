"""Parse TOML as editors write it: with a byte order mark, or by mistake in another encoding than UTF-8."""

import codecs
import tomllib
from typing import Any


class NotUtf8(ValueError):
    """A settings file in another encoding; the message says what was found."""


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse TOML, with or without a byte order mark. Raises NotUtf8, ValueError, RecursionError."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise NotUtf8("is UTF-16 or UTF-32 text, and must be UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotUtf8(f"is not UTF-8 text: line {line} has a byte {content[error.start]:#04x}") from None
