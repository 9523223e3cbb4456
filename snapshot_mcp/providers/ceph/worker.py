"""The worker of a zone on Ceph: one process a home, of any number on any number of machines (CEPH.md, "Jobs").

A job is taken by a commit that names its owner. While it works, a counter of it goes on; where that stands still by the
observer's own clock, another worker takes the job over. Its late owner is fenced twice: each commit compares the owner, and who
takes an image's lock from a dead client locks that client out of the cluster.
"""

import logging
import os
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import deletion, jobs
from snapshot_mcp.catalogue.agreement import DESTRUCTIVE, expired
from snapshot_mcp.catalogue.database import IS_UNFINISHED
from snapshot_mcp.catalogue.jobs import RETRY_SECONDS, end_failed
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.catalogue.worker import IDLE_SECONDS, Worker
from snapshot_mcp.contract.errors import Unavailable, ZoneError
from snapshot_mcp.ground.clock import running_since
from snapshot_mcp.ground.detached import say_who, shorten_log, start_detached, take_lock
from snapshot_mcp.ground.files import make_private_folder
from snapshot_mcp.providers.ceph.catalogue import Fenced, PoolCatalogue
from snapshot_mcp.providers.ceph.clib import ECANCELED, CephError
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.errors import GONE, CommittedFirst
from snapshot_mcp.providers.ceph.names import OBJECT, PARTIAL, snapshot_name
from snapshot_mcp.providers.ceph.settings import CephZoneSettings
from snapshot_mcp.providers.ceph.store import PoolStore, remove_partial
from snapshot_mcp.providers.ceph.work import Again, carry_out

LOCK_NAME: Final = "worker.lock"
LOG_NAME: Final = "worker.log"

BEAT_SECONDS: Final = 2.5
"""Interval of the sign of life of a job."""

TAKE_OVER_SECONDS: Final = 10.0
"""How long it stands still before the job is taken over."""

OTHERS_SECONDS: Final = 0.2
"""Interval of looks at the catalogue, each of which asks the cluster, while this home enters no job."""

LOOK_SECONDS: Final = 1.0
"""Interval of looks at others' jobs."""

LATE_SECONDS: Final = 4.0
"""After how long without a look an observer begins to count anew."""

log = logging.getLogger(__name__)


def machine_of(folder: Path) -> str:
    """Return what tells this home, on this machine since its boot, from every other."""
    return f"{running_since()[0]}:{folder}"


def ensure_worker(folder: Path, settings: CephZoneSettings) -> None:
    """Start this home's worker of the zone unless one is running. Raises Unavailable if it does not start."""
    try:
        make_private_folder(folder)
        fd = take_lock(folder / LOCK_NAME)
        if fd is None:
            os.utime(folder / LOCK_NAME)  # the worker that runs looks at once
            return
        try:
            os.ftruncate(fd, 0)
            environ = {name: value for name, value in os.environ.items() if not name.startswith("SNAPSHOT_MCP_API_")}
            arguments = [str(folder), str(fd), settings.model_dump_json()]
            start_detached((__name__, "main"), arguments, keep=[fd], log=folder / LOG_NAME, environ=environ)
        finally:
            os.close(fd)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"The worker of the zone on Ceph could not be started: {error}.",
            hint=f"Jobs that were entered here wait for it. See {folder / LOG_NAME}.",
        ) from None


def main(folder_name: str, lock_fd: str, settings: str) -> None:
    """Be the worker's process, with the lock that it inherited. An unexpected error ends it at once, as a SIGKILL does."""
    folder = Path(folder_name)
    shorten_log(folder / LOG_NAME)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    try:
        run(folder, CephZoneSettings.model_validate_json(settings), IDLE_SECONDS, int(lock_fd))
    except BaseException:
        log.exception("unexpected error, the worker exits")
        os._exit(1)
    os._exit(0)  # Ceph's threads have ended with the connection; nothing of Python's is left to be saved


def run(folder: Path, settings: CephZoneSettings, idle_seconds: float, lock_fd: int | None = None) -> None:
    """Carry out the zone's jobs until there were none that this machine could do for `idle_seconds`."""
    while True:
        fd = take_lock(folder / LOCK_NAME) if lock_fd is None else lock_fd
        if fd is None:
            return
        say_who(fd)
        has_more = _serve(folder, settings, idle_seconds)
        os.close(fd)
        lock_fd = None
        if not has_more:
            return


def _serve(folder: Path, settings: CephZoneSettings, idle_seconds: float) -> bool:
    """Be the worker until idle; return whether there is a job again."""
    with (
        _connected(settings) as cluster,
        cluster.pool(settings.pool, settings.namespace) as pool,
        cluster.pool(settings.image_pool or settings.pool, settings.namespace) as image_pool,
        PoolCatalogue(pool, PoolStore(pool, image_pool), machine_of(folder)) as catalogue,
    ):
        _PoolWorker(catalogue, folder, idle_seconds).serve()
        catalogue.refresh()
        return catalogue.row(f"SELECT 1 FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending'") is not None


def _connected(settings: CephZoneSettings) -> Cluster:
    """Connect, as long as that takes."""
    while True:
        try:
            return Cluster(settings.conf, settings.user, settings.keyring, is_patient=True)
        except CephError as error:
            if error.errno not in GONE:
                raise
            log.warning("the cluster does not answer yet: %s", error)
            time.sleep(RETRY_SECONDS)


class _PoolWorker(Worker[PoolCatalogue]):
    """Takes jobs, those of machines that are gone too."""

    def __init__(self, catalogue: PoolCatalogue, folder: Path, idle_seconds: float) -> None:
        super().__init__(catalogue, idle_seconds)
        self.folder = folder
        self.name = uuid.uuid4().hex
        self._looked_at = 0.0
        self._is_over = threading.Event()
        self._mine: set[str] = set()
        self._called: int = _called_at(folder)
        self._seen: dict[str, tuple[tuple[bytes, bytes], float]] = {}

    def wait(self) -> None:
        """Wait until a server of this home says that it has entered a job; not long, since others enter jobs too."""
        deadline = time.monotonic() + OTHERS_SECONDS
        while time.monotonic() < deadline:
            time.sleep(self.poll_seconds)
            called = _called_at(self.folder)
            if called != self._called or self._mine:
                self._called = called
                return

    def prepare(self) -> None:
        """Remove what is left of deleted restore points and of exports whose jobs have ended."""
        catalogue, pool = self.catalogue, self.catalogue.pool
        catalogue.refresh()
        catalogue.discover()
        threading.Thread(target=self._give_signs, name="signs", daemon=True).start()
        self.in_thread("remains", lambda: _remove_remains(catalogue))
        log.info("worker %s of pool %s", self.name, pool.number)

    def claim(self, job: Row) -> bool:
        """A destructive job is begun only by the machine that entered it."""
        return not job["begin_until"] or self.catalogue.has_entered(job["job_id"])

    def note_taken(self, job_id: str) -> None:
        """Name this worker as the job's owner, in the commit that takes it."""
        self.catalogue.put_with_commit(f"owner/{job_id}", self.name.encode())

    def start(self, job_id: str) -> None:
        """Run a job in a thread, and give its sign of life from now on."""
        self._mine.add(job_id)
        super().start(job_id)

    def run_job(self, job_id: str) -> None:
        """Carry a job out, unless another worker has it by now."""
        try:
            with self.catalogue.working_on(job_id, self.name):
                while _is_to_be_run_again(self.catalogue, job_id):
                    time.sleep(RETRY_SECONDS)
        except Fenced:
            log.warning("job %s was taken over by another worker", job_id)
        except BaseException:
            log.exception("job %s could not be followed, the worker exits", job_id)
            os._exit(1)
        finally:
            self._mine.discard(job_id)

    def upkeep(self) -> None:
        """Purge, and forget what ended long ago."""
        for one in deletion.purge(self.catalogue):
            log.info("purged %s", one)
        jobs.forget_old(self.catalogue)

    def leave(self) -> None:
        """End the thread that gives the signs of life."""
        self._is_over.set()

    def look_around(self) -> bool:
        """Take over what stands still; return whether others' jobs are being watched."""
        now = time.monotonic()
        if now - self._looked_at > LOOK_SECONDS:
            if now - self._looked_at > LATE_SECONDS:
                self._seen = {}  # while this worker was held up nobody was seen to stand still
            self._looked_at = now
            self._look_at_others(now)
        return bool(self._seen)

    def _give_signs(self) -> None:
        """Give the sign of life of each job, in a thread of its own: the catalogue may be locked by a client that died."""
        beat = 0
        try:
            while not self._is_over.wait(BEAT_SECONDS):
                beat += 1
                for job_id in tuple(self._mine):
                    self._give_sign(job_id, beat)
        except BaseException:
            log.exception("no sign of life can be given, the worker exits")
            os._exit(1)

    def _give_sign(self, job_id: str, beat: int) -> None:
        owner = {f"owner/{job_id}": self.name.encode()}
        try:
            self.catalogue.pool.write_keys(OBJECT, owner, {f"beat/{job_id}": str(beat).encode()})
        except CephError as error:
            if error.errno in GONE:
                raise
            if error.errno != ECANCELED:  # the job has ended, or is another's
                log.warning("no sign of life could be given for job %s: %s", job_id, error)

    def _look_at_others(self, now: float) -> None:
        working = self.catalogue.rows(f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'working'")
        others = {row["job_id"] for row in working} - self._mine
        self._seen = {job_id: one for job_id, one in self._seen.items() if job_id in others}
        if not others:
            return
        signs = self.catalogue.pool.read_keys(OBJECT, [f"{kind}/{one}" for one in others for kind in ("owner", "beat")])
        for job_id in others:
            sign = signs.get(f"owner/{job_id}", b""), signs.get(f"beat/{job_id}", b"")
            before, since = self._seen.get(job_id, (sign, now))
            if not sign[0]:  # it has ended since the copy was read
                self._seen.pop(job_id, None)
            elif sign != before:
                self._seen[job_id] = sign, now
            elif now - since > TAKE_OVER_SECONDS:
                del self._seen[job_id]
                self._take_over(job_id, sign)
            else:
                self._seen[job_id] = before, since

    def _take_over(self, job_id: str, sign: tuple[bytes, bytes]) -> None:
        try:
            with self.catalogue.transaction():
                row = self.catalogue.row(f"SELECT * FROM jobs WHERE job_id = ? AND {IS_UNFINISHED}", job_id)
                if row is None:
                    return
                log.warning("job %s (%s) stands still: it is taken over", job_id, row["action"])
                self.catalogue.compare_with_commit(f"owner/{job_id}", sign[0])
                self.catalogue.compare_with_commit(f"beat/{job_id}", sign[1])
                has_begun = row["has_effect"] or row["action"] not in DESTRUCTIVE
                if not has_begun and not self.catalogue.has_entered(job_id):
                    end_failed(self.catalogue, row, expired(row))
                    return
                self.catalogue.set_job(job_id, run_count=row["run_count"] + 1)
                self.note_taken(job_id)
        except (CommittedFirst, ZoneError) as error:
            log.info("job %s was not taken over: %s", job_id, error)
            return
        self.start(job_id)


def _called_at(folder: Path) -> int:
    """Return when a server of this home has last called its worker."""
    try:
        return (folder / LOCK_NAME).stat().st_mtime_ns
    except OSError:
        return 0


def _is_to_be_run_again(catalogue: PoolCatalogue, job_id: str) -> bool:
    """Carry a job out; return whether a commit of it was refused. Every job can be run again from where it is."""
    try:
        carry_out(catalogue, job_id)
    except Again:
        log.info("job %s is run again: another commit came first", job_id)
        catalogue.refuse_fenced()
        return True
    return False


def _remove_remains(catalogue: PoolCatalogue) -> None:
    """Remove the RBD snapshots of restore points that have ceased, and the unfinished images of exports that have ended."""
    try:
        ceased = {
            snapshot_name(row["snapshot_id"]): row["snapshot_id"]
            for row in catalogue.rows("SELECT snapshot_id FROM snapshots WHERE status = 'ceased'")
        }
        disks = catalogue.rows(
            "SELECT DISTINCT r.path FROM snapshots JOIN resources r USING (resource_id) WHERE r.removed_at IS NULL"
        )
        for row in disks if ceased else []:
            with catalogue.pool.open_image(row["path"]) as image:
                left = [ceased[name] for name in image.snapshots() if name in ceased]
            catalogue.store.remove(left)
        _remove_partials(catalogue)
    except CephError as error:
        log.warning("what a worker left could not be removed yet: %s", error)


def _remove_partials(catalogue: PoolCatalogue) -> None:
    for pool in {catalogue.store.pool, catalogue.store.image_pool}:
        for name in pool.list_images().values():
            prefix, _, new_id = name.rpartition(".")
            # only what a job of this zone has left: the image may be another zone's, or anybody's
            query = f"SELECT 1 FROM jobs WHERE NOT {IS_UNFINISHED} AND json_extract(request, '$.new_id') = ?"
            if prefix == PARTIAL and catalogue.row(query, new_id):
                remove_partial(pool, new_id)
