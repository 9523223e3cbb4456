"""Settings of a zone of the throw-away provider. No I/O."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from snapshot_mcp.providers import Site, ZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.contract.provider import Provider


class AtticZoneSettings(ZoneSettings):
    """A zone on a shelf of the attic."""

    provider: Literal["attic"] = "attic"
    shelf: Path
    lock_code: SecretStr = SecretStr("")

    def place(self, site: Site) -> str:
        return str(self.shelf)

    def build(self, site: Site) -> "Provider":
        from snapshot_mcp.providers.attic.zone import AtticZone

        return AtticZone(self.shelf, zone=site.name)
