"""A namespace of a pool for a while, with images that are files elsewhere: for the tour."""

import contextlib
import secrets
from pathlib import Path
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.names import OBJECT

BLOCK: Final = 4 << 20


class Scratch(Closing):
    """A new namespace in `pool`, which is removed at the end with all that is in it. Blocking; raises CephError, Unsupported."""

    def __init__(self, conf: Path, pool: str) -> None:
        self.pool_name, self.namespace = pool, f"snapshot-mcp-tour-{secrets.token_hex(4)}"
        self._cluster = Cluster(conf, "admin", None)
        self._outside = self._cluster.pool(pool)
        self._outside.add_namespace(self.namespace)
        self.pool = self._cluster.pool(pool, self.namespace)

    def close(self) -> None:
        """Remove everything; what a dying client still holds is left, and said by `rbd ls`."""
        with contextlib.suppress(CephError):
            for image_id, name in self.pool.list_images().items():
                with self.pool.open_image(image_id, is_read_only=False) as image:
                    for one in image.snapshots():
                        image.drop(one)
                self.pool.remove_image(name)
            self.pool.remove_object(OBJECT)
        self.pool.close()
        with contextlib.suppress(CephError):
            self._outside.remove_namespace(self.namespace)
        self._outside.close()
        self._cluster.close()

    def upload(self, path: Path, name: str) -> None:
        """Write a file's content to an image, which is made if it is not there."""
        if name not in self.pool.list_images().values():
            self.pool.create_image(name, path.stat().st_size)
        with path.open("rb") as file, self.pool.open_by_name(name) as image:
            offset = 0
            while data := file.read(BLOCK):
                if data != image.read(offset, len(data)):
                    image.write(offset, data)
                offset += len(data)

    def download(self, name: str, path: Path) -> None:
        """Write an image's content to a file."""
        with path.open("wb") as file, self.pool.open_by_name(name) as image:
            for offset in range(0, image.size, BLOCK):
                data = image.read(offset, min(BLOCK, image.size - offset))
                if any(data):
                    file.write(data)
                else:
                    file.seek(len(data), 1)
            file.truncate(image.size)
