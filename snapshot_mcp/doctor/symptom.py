"""One line of the examination. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How a thing is; `LOOK` is worth a look and no fault."""

    WELL = "ok"
    LOOK = "look"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Symptom:
    """What was found of a thing; `next_step` is "" or what to do, a command as it runs."""

    about: str
    state: Health
    text: str
    next_step: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return {"about": self.about, "state": self.state.lower(), "text": self.text, "next": self.next_step}


def well(about: str, text: str) -> Symptom:
    """Return that a thing is as it should be."""
    return Symptom(about, Health.WELL, text)


def look(about: str, text: str, next_step: str = "") -> Symptom:
    """Return what is worth a look."""
    return Symptom(about, Health.LOOK, text, next_step)


def wrong(about: str, text: str, next_step: str = "") -> Symptom:
    """Return what is wrong."""
    return Symptom(about, Health.WRONG, text, next_step)
