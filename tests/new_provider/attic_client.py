"""In the place of a vendor's client library, outside of the package: its zones are the embedded zone's by another name."""

from snapshot_mcp.providers.local import LocalZone as Client

__all__ = ["Client"]
