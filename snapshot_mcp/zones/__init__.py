"""The zones by name, a job watcher for each, and finding things in them. Nothing here starts, changes or cancels a job."""

from snapshot_mcp.zones.watcher import JobWatcher
from snapshot_mcp.zones.zones import Zone, Zones

__all__ = ["JobWatcher", "Zone", "Zones"]
