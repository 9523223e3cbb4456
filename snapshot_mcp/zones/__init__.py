"""The zones by name, waiting for their jobs (one watcher a zone, any number of waiters), and finding things in them.

Nothing here starts, changes or cancels anything: a wait that ends early leaves its job alone. Nouns: zone, watcher, wait.
"""

from snapshot_mcp.zones.watcher import JobWatcher
from snapshot_mcp.zones.zones import Zone, Zones

__all__ = ["JobWatcher", "Zone", "Zones"]
