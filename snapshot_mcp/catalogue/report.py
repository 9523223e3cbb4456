"""What a check of a whole zone found."""

from collections.abc import Callable
from dataclasses import dataclass

Advance = Callable[[int, int], None]
"""Called with the bytes done and the total."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem; `is_damage` if bytes are lost, otherwise it needs attention."""

    subject: str
    text: str
    is_damage: bool


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How much a check read, and the problems that it found."""

    snapshot_count: int
    byte_count: int
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Return whether nothing was found."""
        return not self.findings
