"""Quote words for a shell, so that a printed command runs as it is printed."""

import os
import shlex


def quote(text: str) -> str:
    """Return `text` as one word of a shell; what cannot be printed, or is not text, as in `$'\\xff'`."""
    if text.isprintable():
        return shlex.quote(text)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(one) if one in plain else f"\\x{one:02x}" for one in os.fsencode(text)) + "'"
