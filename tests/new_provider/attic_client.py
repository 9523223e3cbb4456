"""In the place of a vendor's client library, outside of the package: its zones are the embedded zone's by another name."""

from snapshot_mcp.providers.local import LocalZone


class AtticZone(LocalZone):
    """A zone that says itself where it is."""

    @property
    def location(self) -> str:
        return f"attic:{self.folder}"
