"""Settings of an embedded zone. No I/O."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from snapshot_mcp.contract.keep_free import KeepFree, parse_keep_free
from snapshot_mcp.providers import MAX_RECOVERY_HOURS, Site, ZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.providers.local.zone import LocalZone


class LocalZoneSettings(ZoneSettings):
    """The embedded zone: real snapshots of disk images on this machine."""

    runs_on_windows: ClassVar[bool] = False
    is_own: ClassVar[bool] = True

    provider: Literal["local"] = "local"
    folder: Path | None = None
    """Where its snapshots are stored; HOME/zones/NAME by default."""
    recovery_hours: float = Field(default=2, ge=0, le=MAX_RECOVERY_HOURS)
    """How long a deleted snapshot can be recovered."""
    allow_fuzzy: bool = False
    """Take snapshots of disks that are in use, although their content may be inconsistent."""
    keep_free: Annotated[KeepFree, BeforeValidator(parse_keep_free)] = KeepFree()
    """Free space that backups and exports leave on a filesystem: "20GiB", "5%", or 0."""

    export_format: Literal["raw", "qcow2"] = "raw"
    """The format of exported volumes and images."""

    @field_validator("folder")
    @classmethod
    def _expand(cls, folder: Path | None) -> Path | None:
        try:
            return folder.expanduser() if folder else None
        except RuntimeError:
            raise ValueError("the home directory that `~` stands for is unknown; write the whole path") from None

    def place(self, site: Site) -> str:
        """Return the zone's folder, with links resolved."""
        return str(self._folder(site).resolve())

    def build(self, site: Site) -> "LocalZone":
        """Return the zone; its folder is created with the first change."""
        from snapshot_mcp.providers.local.zone import LocalZone

        return LocalZone(
            self._folder(site),
            zone=site.name,
            recovery_seconds=round(self.recovery_hours * 3600),
            allow_fuzzy=self.allow_fuzzy,
            keep_free=self.keep_free,
            home=site.home,
            configuration=site.configuration,
            export_format=self.export_format,
            worker=site.worker,
            copies=site.copies,
        )

    def _folder(self, site: Site) -> Path:
        return self.folder or site.home / "zones" / site.name
