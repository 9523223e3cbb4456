"""Settings of a zone on Ceph. No I/O."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from snapshot_mcp.providers import MAX_RECOVERY_HOURS, Site, ZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.zone import CephZone

NO_SLASH = r"[^/@\s]+"
"""What the name of a pool or of a namespace may be."""


class CephZoneSettings(ZoneSettings):
    """A pool of RBD images, or one namespace of it; every image there is a disk of the zone."""

    runs_on_windows: ClassVar[bool] = False
    is_own: ClassVar[bool] = True

    provider: Literal["ceph"]
    pool: str = Field(pattern=f"^{NO_SLASH}$")
    """The images' pool."""
    namespace: str = Field(default="", pattern=f"^({NO_SLASH})?$")
    """The RBD namespace in the pool; none by default."""
    conf: Path = Path("/etc/ceph/ceph.conf")
    user: str = Field(default="admin", pattern=f"^{NO_SLASH}$")
    """The name after `client.`."""
    keyring: Path | None = None
    """Where the user's key is; where `conf` says by default."""
    image_pool: str = Field(default="", pattern=f"^({NO_SLASH})?$")
    """Where exported images are put; the images' own pool by default."""
    recovery_hours: float = Field(default=2, ge=0, le=MAX_RECOVERY_HOURS)
    """How long a deleted snapshot can be recovered."""

    @field_validator("conf", "keyring")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        try:
            return path.expanduser() if path else None
        except RuntimeError:
            raise ValueError("the home directory that `~` stands for is unknown; write the whole path") from None

    @property
    def images(self) -> str:
        """The pool and its namespace, as Ceph writes them."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def place(self, site: Site) -> str:
        """Return the cluster's configuration file and the pool, so that all names of one pool share `production`."""
        return f"ceph:{self.conf.resolve()}:{self.images}"

    def build(self, site: Site) -> "CephZone":
        """Return the zone; nothing is connected before the first call."""
        from snapshot_mcp.providers.ceph.zone import CephZone

        return CephZone(site.name, self, site.home)
