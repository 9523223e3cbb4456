"""The embedded zone: real snapshots of disk images on this machine. FORMAT.md has its files and their invariants.

A store for `catalogue`, whose rules it fills in (`store`), with a catalogue in its folder (`folder`). `zone` is the Provider,
`worker` the process that carries jobs out (`work`), `snapshot_file` the on-disk format; `capture` and `restore` move the
bytes, `check` reads all of them back. `registration` (`formats`) decides what may be a disk, `disk` opens one, `identity` says
which file it is, `in_use` (`holders`) says who has one, `estimates` says what it will take, `platform` is the system's own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapshot_mcp.providers.local.zone import LocalZone

__all__ = ["LocalZone"]


def __getattr__(name: str) -> Any:
    """`LocalZone`, on first use: the worker imports this package without the Provider's half."""
    if name == "LocalZone":
        from snapshot_mcp.providers.local.zone import LocalZone

        return LocalZone
    raise AttributeError(name)
