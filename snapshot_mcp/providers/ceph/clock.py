"""The zone's clock is the cluster's: the machines of a zone need not agree on the time, and none may be an hour off."""

import uuid
from typing import TYPE_CHECKING, ClassVar

from snapshot_mcp.ground.clock import Moment, SystemClock
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.names import PREFIX

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.pool import Pool


class ClusterClock:
    """The cluster's time, asked for once and carried on by this machine's uptime, which nobody sets.

    Ceph tells its time only of what it makes, so an empty image is made and removed. Who may not do that has this machine's time.
    """

    _asked: ClassVar[dict[str, Moment]] = {}
    """What each cluster has said, by its id."""

    def __init__(self, pool: "Pool") -> None:
        self._pool, self._own = pool, SystemClock()
        self._cluster = pool.cluster.id

    def read(self) -> Moment:
        """Return the present moment."""
        now = self._own.read()
        if not now.boot:
            return now
        asked = self._asked.get(self._cluster)
        if asked is None:
            wall = self._ask(now.wall)
            asked = self._asked[self._cluster] = Moment(wall, now.boot, self._own.read().uptime)
        return Moment(asked.wall + now.uptime - asked.uptime, now.boot, now.uptime)

    def _ask(self, otherwise: float) -> float:
        name = f"{PREFIX}clock.{uuid.uuid4().hex}"
        try:
            self._pool.create_image(name, 0)
            try:
                with self._pool.open_by_name(name) as image:
                    return image.created_at
            finally:
                self._pool.remove_image(name)
        except CephError:
            return otherwise
