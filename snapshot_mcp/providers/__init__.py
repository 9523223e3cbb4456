"""The providers, one folder and one line each; no other module names them.

To add one: write a folder with `settings.py`, which holds a subclass of `ZoneSettings`, and `zone.py`, which holds the
`Provider`; add its line to `PROVIDERS`, its row to README's settings table, and `tests/NAME/subject.py`, which gives the
contract suite a zone to run over. Every start of the server loads each `settings.py`, so it does no I/O and imports no
library but pydantic; all that `zone.py` calls on the event loop must not block.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from snapshot_mcp.contract.provider import Provider

PROVIDERS = {
    "local": "LocalZoneSettings",
    "anchcloud": "AnchCloudZoneSettings",
}
"""Each provider's folder here, which is its name in the settings, and the class in its `settings.py`."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a zone is built from beside its own settings.

    `name`: the zone's name; `home`: the data folder; `configuration`: paths that are snapshot-mcp's own, so never disks.
    """

    name: str
    home: Path
    configuration: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """Marks a field that an environment variable sets when the environment alone describes one zone of the provider.

    `name` has no prefix. Variables that are needed must be set together; the one that `names_zone` is also the zone's name.
    """

    name: str
    is_needed: bool = True
    names_zone: bool = False


class ZoneSettings(BaseModel):
    """The `[zones.NAME]` table of one zone. A subclass adds `provider: Literal["FOLDER"]` and the provider's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    runs_on_windows: ClassVar[bool] = True

    provider: str
    production: bool = False

    @abstractmethod
    def place(self, site: Site) -> str:
        """Return what tells this zone's place from all others of the provider: two names of one zone have the same place."""
        raise NotImplementedError

    @abstractmethod
    def build(self, site: Site) -> "Provider":
        """Build the zone; imports its code here, and does no I/O. Raises ZoneError for settings that cannot be used."""
        raise NotImplementedError

    @classmethod
    def variables(cls) -> dict[str, Variable]:
        """Return the fields that a variable can set, with their variables."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Variable)
        }


def zone_models() -> dict[str, type[ZoneSettings]]:
    """Return each provider's settings model, by the provider's name."""
    return {folder: getattr(import_module(f"{__name__}.{folder}.settings"), name) for folder, name in PROVIDERS.items()}
