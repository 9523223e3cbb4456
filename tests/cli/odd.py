"""Odd names, and what makes an output clean."""

import string
import unicodedata
from collections.abc import Iterator
from random import Random

FORGED = "FORGED: everything is approved"
"""Begins a line only where a line break in a name was printed as one."""

HOSTILE = (
    f"a\n{FORGED}",
    f"a\r\n{FORGED}\x1b[2J\x1b]0;title\x07",
    f"a\u2028{FORGED}\u2029\x85\x0b\x0c",
    "\x1b[31mred\x1b[0m \x9b31m",
    "\u202egnirts\u2066 \u200b\ufeff\U000e0041",
    "half \ud83d of a pair",
    "bytes \udcff\udc80",
    "[bold red]markup[/] {braces} %s %(prog)s",
    "'quoted\" “twice”; rm -rf `x` $(y)",
    "x" * 5000,
    "Ä" * 5000,
    "-" * 60,
    "e" + "\u0301" * 400,
    " ",
    "~",
    "../../nowhere/passwd",
)

PIECES = (
    *string.printable,
    *"\x00\x07\x08\x1b\x7f\x85\x9b\u00ad\u034f\u061c\u115f\u200b\u200f\u2028\u2029\u202e\u2066\u2800\u3164\ufeff\ufffe\uffff",
    *"ÄßİıſǆΣ日本🙂́",
    "\U000e0041",
    "\U0010ffff",
    "\ud83d",
    "\udc80",
    "\udcff",
    "\x1b[1;31m",
    "\x1b]8;;http://x\x07",
    "\r\n",
    f"\n{FORGED}",
    "%s",
    "{0}",
    "[/]",
    "ss-",
    "vol-",
    "ap-",
)


def odd_names(count: int, seed: int = 10) -> Iterator[str]:
    """Names of every length up to 5,000 characters, most of them short."""
    random = Random(seed)
    for number in range(count):
        size = random.choice((1, 3, 8, 20, 80, 255, 256)) if number % 50 else 5000
        yield "".join(random.choices(PIECES, k=size))[:5000]


def dirt(shown: str) -> str:
    """What a terminal or a reader must not get to see, "" for clean output."""
    bad = {
        one for one in shown if one != "\n" and unicodedata.category(one) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    }
    lines = shown.split("\n")
    found = [repr("".join(sorted(bad)))] if bad else []
    found += [one for one in lines if one.startswith(FORGED) or "Traceback (most" in one]
    found += [f"{len(one)} characters: {one[:80]}" for one in lines if len(one) > 5000]
    return "; ".join(found)
