"""The registry of providers, with one folder and one line each; no other module names them.

To add one, write a folder with `settings.py` (a subclass of `ZoneSettings`) and `zone.py` (the `Provider`), and add its line to
`PROVIDERS`, its row to README's settings table, and `tests/NAME/subject.py`, which gives the contract suite a zone. Every
server start loads `settings.py`, so it does no I/O and imports only pydantic. `zone.py` must not block the event loop.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from snapshot_mcp.contract.provider import Provider

PROVIDERS = {
    "local": "LocalZoneSettings",
    "anchcloud": "AnchCloudZoneSettings",
    "ceph": "CephZoneSettings",
}
"""The folder of each provider, which is its name in the settings, and the class in its `settings.py`."""

MAX_RECOVERY_HOURS = 87_600
"""Ten years; a longer grace period is no grace period but a disk that fills up."""


@dataclass(frozen=True, slots=True)
class WorkerProgram:
    """The process that is a zone's worker: a module, its function, and variables that it has beside those of its starter."""

    module: str
    function: str
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """What a zone needs besides its own settings.

    `name`: the zone's name; `home`: the data folder; `configuration`: files and folders that must never become disks.
    `copies`: the names of the copies elsewhere that follow its backups.
    `worker`: what a zone's worker is started as; None for the provider's own.
    """

    name: str
    home: Path
    configuration: Sequence[Path] = ()
    worker: WorkerProgram | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """Marks a field that an environment variable can set, for one zone described by the environment alone.

    `name` has no prefix. The needed variables must be set together; the one that `names_zone` also gives the zone its name.
    """

    name: str
    is_needed: bool = True
    names_zone: bool = False


class ZoneSettings(BaseModel):
    """The `[zones.NAME]` table of one zone. A subclass adds `provider: Literal["FOLDER"]` and the provider's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    runs_on_windows: ClassVar[bool] = True
    is_own: ClassVar[bool] = False
    """Whether it is a zone of ours, with our rules and a worker of ours."""

    provider: str
    production: bool = False

    @abstractmethod
    def place(self, site: Site) -> str:
        """Return what identifies the zone within the provider: two names of the same zone have the same place."""

    @abstractmethod
    def build(self, site: Site) -> "Provider":
        """Build the zone, without I/O; its code is imported here. Raises ZoneError for unusable settings."""

    @classmethod
    def variables(cls) -> dict[str, Variable]:
        """Return the fields that have a variable, with that variable."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Variable)
        }


def zone_models() -> dict[str, type[ZoneSettings]]:
    """Return each provider's settings model, by the provider's name."""
    return {folder: getattr(import_module(f"{__name__}.{folder}.settings"), name) for folder, name in PROVIDERS.items()}
