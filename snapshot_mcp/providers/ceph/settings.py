"""Settings of a zone on Ceph. No I/O, but that the cluster's configuration file is read for what tells it from others."""

import re
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
        """Return the cluster and the pool, so that all names of one pool share `production`."""
        return f"ceph:{cluster_of(self.conf)}:{self.images}"

    def build(self, site: Site) -> "CephZone":
        """Return the zone; nothing is connected before the first call."""
        from snapshot_mcp.providers.ceph.zone import CephZone

        return CephZone(site.name, self, site.home)


def cluster_of(conf: Path) -> str:
    """Return what a configuration file says of its cluster: its id, else its monitors; the file itself where it says neither."""
    try:
        text = conf.read_text("utf-8", "replace")
    except OSError:
        text = ""
    said: dict[str, str] = {}
    section = "[global]"
    for line in text.splitlines():
        bare = re.split("[#;]", line, maxsplit=1)[0].strip()
        name, equals, value = bare.partition("=")
        if bare.startswith("["):
            section = bare
        elif equals and section == "[global]":
            said[re.sub(r"[\s_-]+", " ", name.strip())] = value.strip().strip("\"'")
    if number := said.get("fsid"):
        return number.lower()
    hosts = (one.strip("[]") for one in re.split(r"[\s,]+", said.get("mon host", "")))
    places = {re.sub(r"^v\d:|(:3300|:6789)?(/\d+)?$", "", one) for one in hosts} - {""}
    return ",".join(sorted(places)) or str(conf.resolve())
