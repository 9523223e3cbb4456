"""The question that a plan puts to a person, and the answer that comes back. An answer does not prove that a person gave it."""

from dataclasses import dataclass, field
from typing import Literal

KEEP = "keep"
"""The word that answers any question with no."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked: a few lines of plain text, the consequence first.

    `word`: answered with one of `words`; the first destroys, the second keeps. `typed_name`: answered by typing
    `expected_name`; the second of `words` keeps. An answer counts only for exactly this question, so a front end that asks
    in rounds compares all of it.
    """

    message: str
    kind: Literal["word", "typed_name"]
    words: tuple[str, str]
    expected_name: str = ""


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """What came back; `text` is the raw word or name, uncleaned.

    `declined` and `cancelled` are the client's words for its dialog, `unusable` is an answer of the wrong shape, `unanswered`
    is none in time. None of these four is a person's no. `pin`: the operator's PIN, from a terminal only.
    """

    outcome: Literal["answered", "declined", "cancelled", "unusable", "unanswered"]
    text: str = ""
    pin: str = field(default="", repr=False)

    @property
    def is_no(self) -> bool:
        """Whether a person said no: the word for keeping, and nothing else."""
        return self.outcome == "answered" and self.text.strip().casefold() == KEEP
