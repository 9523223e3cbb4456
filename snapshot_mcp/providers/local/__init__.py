"""The embedded zone: real snapshots of disk images on this machine.

`zone` is the Provider, `admission` checks what is asked (`lookup` finds it, or refuses) and enters jobs, `worker` carries them
out (`work`), `catalogue` (tables: `schema`) and `listing` hold and list what there is, `snapshot_file` is the on-disk format,
`capture` and `restore` move the bytes, `disk` and `platform` are the ground. `agreed` compares what was agreed to, `identity`
says which file a disk is, `withdrawal` ends what has had no effect. `registration` (`formats`) decides what may be a disk,
`in_use` (`holders`) says who has one, `room` what a job takes and what stays free.

Invariants that every change here keeps (engine_notes.md):

1. A file is never unlinked while a file that builds on it exists; children go before parents (`work.delete`).
2. A create and a roll-back hold their resource alone, an export holds its snapshot; a deletion that meets one is
   `resource_busy`, decided in the transaction that enters the job (`admission`).
3. A chain with known damage takes no incrementals: the next create is full (`admission.parent_for`, `work.create`).
4. After an interruption: what destroys goes on only if it had begun in its time (`agreed`), a roll-back only onto the file
   that it was writing to and over nothing that came since (`work.resumption`); an export starts again, a create fails
   truthfully (`work`).
5. A snapshot is `available` only when its file is durable; a disk is `available` only when it is whole (`work`).
6. Files are named by id, never by a name from outside. One file is registered once (`admission.register`).
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
