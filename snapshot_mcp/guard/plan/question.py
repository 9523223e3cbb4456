"""The question that a plan puts to a person, and the answer that comes back. An answer proves no human."""

from dataclasses import dataclass
from typing import Literal

KEEP = "keep"
"""The word that answers every question with no."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked: plain text of a few lines, the consequence first.

    `word`: answered with one of `words`, the first of which destroys and the second keeps. `typed_name`: answered by typing
    `expected_name`; the second of `words` keeps here too. An answer counts for exactly this question, so a front end that
    asks in rounds compares the whole of it.
    """

    message: str
    kind: Literal["word", "typed_name"]
    words: tuple[str, str]
    expected_name: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `text` is the raw word or name, uncleaned.

    `declined` and `cancelled` are what the client reports of its dialog, `unusable` an answer of the wrong shape,
    `unanswered` none within the time. None of these four is a person's no.
    """

    outcome: Literal["answered", "declined", "cancelled", "unusable", "unanswered"]
    text: str = ""

    @property
    def is_no(self) -> bool:
        """Whether a person said no: the word for keeping, and nothing else."""
        return self.outcome == "answered" and self.text.strip().casefold() == KEEP
