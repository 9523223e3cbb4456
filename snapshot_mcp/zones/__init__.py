"""The zones by name, and following their jobs to their end: one watcher a zone, any number of waiters.

It starts nothing and cancels nothing: a wait that ends early leaves its job alone. Nouns: zone, watcher, wait.
"""

from snapshot_mcp.zones.watcher import JobWatcher
from snapshot_mcp.zones.zones import Zone, Zones

__all__ = ["JobWatcher", "Zone", "Zones"]
