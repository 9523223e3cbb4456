"""The standard streams of a command, usable whatever the caller did to them (closed them, chose an encoding, left).

A character that a stream's encoding lacks is written in ASCII, never refused: our own signs as what they stand for, all
others as a backslash and their code.
"""

import codecs
import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

SPELLED = "snapshot_mcp.spelled"
"""The name of the error handler that spells a character out."""

ASCII_SIGNS = str.maketrans(
    {
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("─━–", "-"),
        **dict.fromkeys("│├└╭╮╰╯", "|"),
        **{"…": "...", "→": "->", "◀": "<-", "✓": "+", "✗": "x", "●": "*", "◉": "@", "○": "o", "·": "-", "•": "*"},
        **{"—": "--", "×": "x"},
    }
)
"""Signs of our own texts and drawings, and their ASCII form."""

GONE = {errno.EPIPE, errno.ECONNRESET}
"""What a write to a reader that has gone away fails with."""


class OutputLost(Exception):
    """What was printed did not arrive; the message says why, "" if the reader has gone away and needs no message."""


def insist_on_utf8() -> None:
    """Start this command anew in UTF-8 mode if the locale's encoding is another one: only UTF-8 mode keeps every path.

    What is printed keeps the locale's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8":
        encoding = sys.stdout.encoding if sys.stdout else "ascii"
        inherited = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], inherited)


def settle() -> None:
    """Open what the caller closed, and let no stream fail for its encoding."""
    codecs.register_error(SPELLED, _spell)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        _open_if_closed(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, errors=SPELLED, closefd=False))  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, SPELLED), (sys.stderr, SPELLED)):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def as_shown(text: str) -> str:
    """Return the text as stdout shows it: with what its encoding lacks spelled out."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, SPELLED).decode(encoding)


def finish() -> None:
    """Write out what is buffered. Raises OutputLost; whatever happens, nothing is left that fails at the exit."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError as error:
        raise lost(error) from None


def lost(error: OSError) -> OutputLost:
    """Return the error for output that could not be written, and discard what is buffered."""
    discard(sys.stdout)
    return OutputLost("" if error.errno in GONE else f"The output could not be written: {error.strerror}.")


def end_interrupted() -> int:
    """Return the exit status after Ctrl-C; exit at once if a thread still works, since the exit would wait for it.

    No thread of a command holds what a kill would break: a change is one transaction.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once, and without a traceback
    with suppress(OutputLost):
        finish()
    if any(not one.daemon for one in threading.enumerate() if one is not threading.current_thread()):
        os._exit(130)
    return 130


def _open_if_closed(number: int) -> None:
    """Open /dev/null where the caller closed the descriptor, so that no other file takes its place.

    Output is opened for reading, so that writing fails as it does on the closed one; messages vanish.
    """
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), True)


def discard(stream: TextIO) -> None:
    """Discard what a stream has buffered and will get: else the exit fails once more."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle a character that an encoding lacks (`codecs.register_error`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    out = error.object[error.start : error.end].translate(ASCII_SIGNS)
    return out.encode("ascii", "backslashreplace").decode(), error.end
