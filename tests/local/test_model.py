"""Random sequences of write, snapshot, apply, delete, recover and export against a model in memory."""

import random
import shutil
import tempfile
import threading
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.models import Job, SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.disks import succeed
from tests.patience import PATIENCE_SECONDS

CHUNK = 65536
LIMIT = 4


class Zone(RuleBasedStateMachine):
    """One disk. The model: what each snapshot held, its parent, which act deleted it, and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="snapshot-model-"))
        self.image = self.folder / "disk.img"
        self.image.write_bytes(bytes(CHUNK))  # later it may shrink to nothing; an empty file is not registered
        (self.folder / "zone").mkdir()
        self.worker = threading.Thread(target=run_worker, args=(self.folder / "zone", 3600.0), daemon=True)
        self.worker.start()
        self.zone = LocalZone(self.folder / "zone", chain_limit=LIMIT)
        self.content: dict[str, bytes] = {}
        self.parent: dict[str, str | None] = {}
        self.deleted: dict[str, str] = {}
        self.heads: dict[str, str | None] = {}
        self.head: str | None = None
        self.volume = anyio.run(self.zone.add_resource, self.image).id

    def teardown(self) -> None:
        assert anyio.run(self.zone.check).is_clean
        anyio.run(self.zone.aclose)
        gone = self.folder.rename(self.folder.with_name(f"{self.folder.name}-gone"))  # its worker sees that and ends
        self.worker.join(PATIENCE_SECONDS)
        shutil.rmtree(gone)

    def job(self, start: object, *arguments: object) -> Job:
        async def run() -> Job:
            return await succeed(self.zone, await start(*arguments))  # type: ignore[operator]

        return anyio.run(run)

    def available(self) -> list[str]:
        """In the order they were made, which is the same whenever hypothesis runs a sequence again."""
        return [one for one in self.content if one not in self.deleted]

    def root(self, snapshot_id: str) -> str:
        while parent := self.parent[snapshot_id]:
            snapshot_id = parent
        return snapshot_id

    def is_below(self, snapshot_id: str | None, top: str) -> bool:
        while snapshot_id and snapshot_id != top:
            snapshot_id = self.parent[snapshot_id]
        return snapshot_id == top

    @rule(
        at=st.integers(0, 6 * CHUNK),
        length=st.sampled_from([1, 100, CHUNK, 2 * CHUNK + 5]),
        kind=st.sampled_from("rz"),
        seed=st.integers(0, 99),
    )
    def write(self, at: int, length: int, kind: str, seed: int) -> None:
        with self.image.open("r+b") as file:
            file.seek(at)
            file.write(random.Random(seed).randbytes(length) if kind == "r" else bytes(length))

    @rule(size=st.sampled_from([0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 7, 9 * CHUNK]))
    def resize(self, size: int) -> None:
        with self.image.open("r+b") as file:
            file.truncate(size)

    @rule(is_full=st.booleans())
    def create(self, is_full: bool) -> None:
        job = self.job(lambda: self.zone.create_snapshots([self.volume], "", is_full=is_full))
        (new,) = job.resource_ids
        chain = [one for one in self.available() if self.head and self.root(one) == self.root(self.head)]
        self.parent[new] = None if is_full or self.head is None or len(chain) >= LIMIT else self.head
        self.content[new] = self.image.read_bytes()
        self.head = new

    @precondition(lambda self: self.available())
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.available()))
        self.job(self.zone.apply_snapshots, [chosen])
        assert self.image.read_bytes() == self.content[chosen]
        self.head = chosen

    @precondition(lambda self: self.available())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.available()))
        job = self.job(self.zone.delete_snapshot, chosen)
        going = [one for one in self.available() if self.is_below(one, chosen)]
        assert set(job.resource_ids) == set(going)
        self.heads[job.job_id] = self.head
        self.deleted |= dict.fromkeys(going, job.job_id)
        while self.head in self.deleted:
            self.head = self.parent[self.head]

    @precondition(lambda self: self.deleted)
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([one for one in self.content if one in self.deleted]))
        act = self.deleted[chosen]
        coming = [one for one, deleted_by in self.deleted.items() if deleted_by == act]
        top = next(one for one in coming if self.parent[one] not in coming)
        if self.parent[top] in self.deleted:
            with pytest.raises(NotUsable, match=str(self.parent[top])):
                anyio.run(self.zone.recover_snapshots, [chosen])
            return
        self.job(self.zone.recover_snapshots, [chosen])
        self.deleted = {one: by for one, by in self.deleted.items() if by != act}
        if self.head is None:
            newest = [one for one in self.content if one in coming][-1]
            self.head = self.heads[act] if self.heads[act] in coming else newest

    @precondition(lambda self: self.available())
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.available()))
        job = self.job(self.zone.create_volume, chosen, "copy")
        path = Path(job.details["path"])
        assert path.read_bytes() == self.content[chosen]

    @invariant()
    def lists_what_the_model_has(self) -> None:
        page = anyio.run(self.zone.list_snapshots, SnapshotFilter(limit=100))
        assert {one.snapshot_id: one.parent for one in page.items} == {
            one: self.parent[one] for one in self.available()
        }
        assert [one.snapshot_id for one in page.items if one.is_head] == ([self.head] if self.head else [])


SHORT = settings(max_examples=4, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_random_sequences_keep_every_byte() -> None:
    run_state_machine_as_test(Zone, settings=SHORT)


@pytest.mark.long
def test_long_random_sequences_keep_every_byte() -> None:
    run_state_machine_as_test(Zone, settings=settings(SHORT, max_examples=60, stateful_step_count=50))
