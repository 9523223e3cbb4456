"""The embedded zone: real snapshots of disk images on this machine (FORMAT.md has its files and their invariants).

`zone` is the Provider, `worker` the process that carries out jobs (`work`). `store` has the hooks of `catalogue`, `folder` opens
the catalogue. `snapshot_file` is the on-disk format; `capture` and `restore` move the bytes from and to a `source`, `check`
verifies all of them.
`clones` (`extents`) keeps what tells the next capture what was written since.
`registration` (`formats`) decides what may be a disk, `moving` (`likeness`) takes one to another path, `own_file` deletes an
export's file. `disk` opens a disk, `identity` says which file it is, `place` what is at its path instead, `in_use` (`holders`)
who uses it, and `platform` wraps the operating system.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapshot_mcp.providers.local.zone import LocalZone

__all__ = ["LocalZone"]


def __getattr__(name: str) -> Any:
    """Import `LocalZone` on first use, since the worker does not need the Provider."""
    if name == "LocalZone":
        from snapshot_mcp.providers.local.zone import LocalZone

        return LocalZone
    raise AttributeError(name)
