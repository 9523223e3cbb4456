"""Random sequences of operations over a network that fails in every way, and the truth afterwards."""

import random
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.contract.errors import OutcomeUnknown, ZoneError
from snapshot_mcp.contract.models import Job, ResourceFilter, Snapshot, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.providers.anchcloud.lookup import FOUND_JOB_PREFIX
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from tests.disks import finish, ids, make_image
from tests.faulty_proxy import Fault, FaultyProxy, at_random, faulty_proxy
from tests.rest_face import HASTY, Served, client_of, served

pytestmark = pytest.mark.anyio

OPERATIONS_EACH = 10
AT_ONCE = 6

IMPATIENT = replace(
    HASTY, read_seconds=0.4, change_seconds=0.25, token_seconds=0.4, total_seconds=2, lookup_seconds=0.25,
    first_pause_seconds=0.01, longest_pause_seconds=0.05,
)  # fmt: skip

FAULTS = [fault for fault in Fault if fault != Fault.NONE]


@dataclass
class Told:
    """What the caller was told, and nothing else: names of what was made, ids of what was deleted."""

    created: set[str] = field(default_factory=set)
    maybe_created: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    maybe_deleted: set[str] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)
    maybe_copied: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    jobs: list[str] = field(default_factory=list)
    unknowns: list[tuple[str, str]] = field(default_factory=list)
    """The error's text, and what it must name."""
    outcomes: list[str] = field(default_factory=list)


@dataclass
class Sequence:
    """One caller with disks of its own."""

    number: int
    chance: random.Random
    local: LocalZone
    client: AnchCloudZone
    proxy: FaultyProxy
    volumes: list[str]
    told: Told = field(default_factory=Told)

    async def run(self) -> None:
        operations = [self.create, self.delete, self.export, self.apply, self.rename, self.look]
        for step in range(OPERATIONS_EACH):
            operation = self.chance.choices(operations, [5, 3, 1, 1, 1, 1])[0] if step else self.create
            try:
                await operation(f"s{self.number}-{step}")
            except ZoneError as error:
                self.told.outcomes.append(error.code)

    async def attempt(self, change: Awaitable[Job | None], key: str, certain: set[str], maybe: set[str]) -> None:
        """Ask for it; `key` goes to what is certain or to what may be."""
        try:
            job = await change
        except OutcomeUnknown as unknown:
            self.told.unknowns.append((str(unknown), key))
            self.told.outcomes.append("unknown")
            maybe.add(key)
            return
        certain.add(key)
        self.told.outcomes.append("carried out")
        self.told.jobs += [job.job_id] if job else []
        if job is not None and not job.is_finished and self.chance.random() < 0.8:  # else the next comes in between
            job = await finish(self.local, job)
            assert job.is_successful, job.info

    async def create(self, name: str) -> None:
        resources = self.chance.sample(self.volumes, self.chance.choice([1, 1, 2]))
        change = self.client.create_snapshots(resources, name, is_full=self.chance.random() < 0.3)
        await self.attempt(change, name, self.told.created, self.told.maybe_created)

    async def target(self) -> str:
        page = await self.local.list_snapshots(SnapshotFilter(resource_id=self.chance.choice(self.volumes), limit=100))
        return self.chance.choice(page.items).snapshot_id if page.items else "ss-nothere0"

    async def delete(self, name: str) -> None:
        target = await self.target()
        await self.attempt(self.client.delete_snapshot(target), target, self.told.deleted, self.told.maybe_deleted)

    async def export(self, name: str) -> None:
        change = self.client.create_volume(await self.target(), name)
        await self.attempt(change, name, self.told.copied, self.told.maybe_copied)

    async def apply(self, name: str) -> None:
        target = await self.target()
        await self.attempt(self.client.apply_snapshots([target]), target, self.told.changed, set())

    async def rename(self, name: str) -> None:
        target = await self.target()
        change = self.client.update_snapshot(target, SnapshotUpdate(description=name))
        await self.attempt(change, target, self.told.changed, set())

    async def look(self, name: str) -> None:
        """What was there before and after must be seen in between."""
        query = {"resource_id": self.volumes[0], "status": ("available",)}
        before = await ids(self.local, **query)
        seen = await ids(self.client, **query)
        assert seen >= before & await ids(self.local, **query)
        self.told.outcomes.append("carried out")

    async def check(self) -> None:
        """The zone holds exactly what the caller was told of, and beside it only what was reported unknown."""
        await self.proxy.settle()
        for job in await self.local.list_unfinished_jobs():
            await finish(self.local, job)
        ends = [await self._job(job_id) for job_id in self.told.jobs]
        assert [(job.action, job.info, job.error) for job in ends if not job.is_successful] == []
        assert [text for text, key in self.told.unknowns if key not in text] == []
        every: list[Snapshot] = []
        statuses = ("available", "pending", "deleted", "ceased", "suspended")
        for volume in self.volumes:
            page = await self.local.list_snapshots(SnapshotFilter(resource_id=volume, status=statuses, limit=100))
            assert page.total_count <= 100
            every += page.items
        made = {(snapshot.resource.resource_id, snapshot.snapshot_name) for snapshot in every}
        assert len(made) == len(every), "a create ran twice"
        names = {snapshot.snapshot_name for snapshot in every}
        assert self.told.created <= names
        assert names <= self.told.created | self.told.maybe_created
        gone = {snapshot.snapshot_id for snapshot in every if snapshot.status == "deleted"}
        must_be_gone = self._with_below(self.told.deleted, every)
        may_be_gone = must_be_gone | self._with_below(self.told.maybe_deleted, every)
        assert must_be_gone <= gone, "a deletion that was told did not happen"
        assert gone <= may_be_gone, "a delete touched something else"
        assert not [snapshot for snapshot in every if snapshot.status in {"pending", "ceased"}]
        exported = await self.local.list_volumes(ResourceFilter(search_word=f"s{self.number}-", limit=100))
        copies = [volume.name for volume in exported.items if volume.name.startswith(f"s{self.number}-")]
        assert len(set(copies)) == len(copies), "an export ran twice"
        assert self.told.copied <= set(copies) <= self.told.copied | self.told.maybe_copied

    async def _job(self, job_id: str) -> Job:
        """Read a job past the faults; one that a look-up found, and the zone lists no more, only the client knows."""
        is_made_up = job_id.startswith(FOUND_JOB_PREFIX)
        return await (self.client if is_made_up else self.local).get_job(job_id)

    @staticmethod
    def _with_below(ids: set[str], every: list[Snapshot]) -> set[str]:
        below = set(ids)
        for _ in every:
            below |= {snapshot.snapshot_id for snapshot in every if snapshot.parent in below}
        return below


async def run_sequences(count: int, seed: int, folder: Path, disks: Path) -> list[str]:
    local = LocalZone(folder)
    outcomes: list[str] = []
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(face: Served, number: int) -> None:
        async with limiter:
            chance = random.Random(seed + number)
            decide = at_random(chance, chance.choice([0.1, 0.25, 0.4]), FAULTS)
            images = [make_image(disks / f"{number}-{side}", 1 << 16, seed=number) for side in "ab"]
            volumes = [(await local.add_resource(image, f"disk of {number}")).id for image in images]
            async with faulty_proxy(face.url, decide) as proxy:
                proxy.late_seconds = 0.5
                client = client_of(proxy.url, patience=IMPATIENT)
                sequence = Sequence(number, chance, local, client, proxy, volumes)
                try:
                    await sequence.run()
                    await sequence.check()
                except Exception as error:
                    error.add_note(f"seed {seed + number}, outcomes {sequence.told.outcomes}")
                    raise
                finally:
                    await client.aclose()
            outcomes.extend(sequence.told.outcomes)

    async with served(local) as face, anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(one, face, number)
    await local.aclose()
    return outcomes


@pytest.mark.long
async def test_sequences_over_a_failing_network_end_as_told(zone_folder: Path, tmp_path: Path) -> None:
    """A few of the random sequences."""
    outcomes = await run_sequences(6, 1, zone_folder, tmp_path)
    assert outcomes.count("carried out") > len(outcomes) / 4


@pytest.mark.long
async def test_500_sequences_over_a_failing_network_end_as_told(zone_folder: Path, tmp_path: Path) -> None:
    """500 random sequences."""
    outcomes = await run_sequences(500, 1_000, zone_folder, tmp_path)
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(f"500 sequences, {len(outcomes)} operations: {counts}")
    assert counts["carried out"] > len(outcomes) / 4
    assert counts["unknown"] > 0
