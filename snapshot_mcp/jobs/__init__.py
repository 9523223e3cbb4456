"""Following work to its end: one watcher a zone, any number of waiters, and the zones by name.

It starts nothing and cancels nothing: a wait that ends early leaves its job alone. Nouns: zone, watcher, wait.
"""

from snapshot_mcp.jobs.watcher import JobWatcher
from snapshot_mcp.jobs.zones import Zone, Zones

__all__ = ["JobWatcher", "Zone", "Zones"]
