"""Write a restore point's content into a file that somebody else has created, outside of the zone."""

import errno

from snapshot_mcp.catalogue.lookup import find_usable
from snapshot_mcp.catalogue.report import Advance
from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.restore import export
from snapshot_mcp.providers.local.snapshot_file.reader import Chain

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def read_out(catalogue: FolderCatalogue, snapshot_id: str, fd: int, advance: Advance) -> int:
    """Write the verified content into a new, empty file and sync it; return its size in bytes.

    Raises NotFound, NotUsable, StorageFull, DamagedSnapshot, OSError. Blocking.
    """
    find_usable(catalogue, snapshot_id)
    with Chain(catalogue.store.snapshots, snapshot_id) as chain:
        size, done = chain.header.virtual_size_bytes, 0

        def count(byte_count: int) -> None:
            nonlocal done
            done += byte_count
            advance(done, size)

        try:
            export(fd, chain, count)
        except OSError as error:
            if error.errno in NO_ROOM:
                hint = "Give a path with more room."
                raise StorageFull(f"The file does not fit there ({format_bytes(size)}).", hint=hint) from None
            raise
    return size
