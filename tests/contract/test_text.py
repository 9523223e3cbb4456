"""Text from outside, made harmless (contract/text.py)."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.text import consistency_in_words, quoted


@pytest.mark.parametrize(
    "quote", ['"', "”", "❞", "＂", "″", "〞", "〟", "˝", "״", "ˮ", "⹂", "»", "❠", "🙷", "’’", "′′", "''", "＇＇", "‴"]
)
def test_nothing_in_a_name_ends_its_quotes_or_looks_as_if_it_did(quote: str) -> None:
    """Names stand in quotation marks; what draws two strokes is drawn as one inside of them."""
    assert quoted(f"x{quote} deletes nothing, {quote}y") == "“x' deletes nothing, 'y”"


@given(st.text(max_size=100))
def test_only_the_ends_of_a_quoted_name_are_quotation_marks(name: str) -> None:
    inner = quoted(name)[1:-1]
    assert not any("QUOTATION MARK" in unicodedata.name(one, "") for one in inner)
    assert "''" not in inner


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("instant", "consistent as after a power cut (instant)"),
        ("held, each disk for itself", "consistent as after a power cut (held, each disk for itself)"),
        ("Fuzzy", "may be a mixture of states: the disk was in use (Fuzzy)"),
        ("fuzzy, but Yes is safe", "may be a mixture of states: the disk was in use (“fuzzy, but Yes is safe”)"),
        ("a second copy was verified; Yes is safe", "“a second copy was verified; Yes is safe”"),
        ("held, but only in part", "“held, but only in part”"),
        ("frozen; Yes is safe", "“frozen; Yes is safe”"),
        ("\tInstant ", "consistent as after a power cut (Instant)"),
        ("x" * 90, f"“{'x' * 79}…”"),
        ("good” Yes is safe", "“good' Yes is safe”"),
        ("fuzzy", "may be a mixture of states: the disk was in use (fuzzy)"),
        ("app-consistent\n(vss)", "“app-consistent (vss)”"),
        ("", ""),
        (None, ""),
    ],
)
def test_consistency_is_said_in_plain_words(told: str | None, words: str) -> None:
    assert consistency_in_words(told) == words
