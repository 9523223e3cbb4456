"""A verification finds a flipped bit anywhere in a chain and changes nothing else; coverage is what the plain list says."""

import random
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.models import Coverage, ResourceFilter, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.tree import is_fuzzy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.disks import MIB, back_up, change, finish, make_image, succeed
from tests.local.test_crash import kill_worker
from tests.local.test_damage import file_of

pytestmark = pytest.mark.anyio
KIB = 1024


async def chain_of(zone: LocalZone, image: Path, length: int = 3) -> tuple[str, list[str]]:
    volume = (await zone.add_resource(image)).id
    made = []
    for number in range(length):
        change(image, 4 * KIB, seed=number, count=1)
        made.append(await back_up(zone, volume))
    return volume, made


async def everything(zone: LocalZone) -> list[Snapshot]:
    """All snapshots, without what a verification may change."""
    page = await zone.list_snapshots(SnapshotFilter(status=tuple(SnapshotStatus), verbose=1, limit=100))
    return [one.model_copy(update={"is_damaged": 0, "verified_at": None}) for one in page.items]


async def test_a_bit_that_flips_anywhere_in_a_chain_is_found(local_zone: LocalZone, tmp_path: Path) -> None:
    """Header, chunks, maps and footer of each file; what is sound again is found sound; nothing else changes."""
    image = make_image(tmp_path / "disk.img", 128 * KIB)
    _, made = await chain_of(local_zone, image)
    content, before = image.read_bytes(), await everything(local_zone)
    chance = random.Random(1)
    for snapshot_id in made:
        path = file_of(local_zone, snapshot_id)
        sound = path.read_bytes()
        for at in (0, 9, len(sound) - 1, *(chance.randrange(len(sound)) for _ in range(7))):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << chance.randrange(8)]) + sound[at + 1 :])
            job = await finish(local_zone, await local_zone.verify_snapshots([made[-1]]))
            assert job.error, (snapshot_id, at)
            assert job.error.code == "damaged"
            assert snapshot_id in job.details["damaged"]
        path.write_bytes(sound)
    await succeed(local_zone, await local_zone.verify_snapshots([made[-1]]))
    assert (await local_zone.check()).is_clean
    assert await everything(local_zone) == before
    assert image.read_bytes() == content


async def test_a_mark_stays_while_the_bytes_cannot_be_read(local_zone: LocalZone, tmp_path: Path) -> None:
    """An incremental behind a damaged full snapshot was not read back, so its own damage is not over."""
    image = make_image(tmp_path / "disk.img", 128 * KIB)
    _, (full, last) = await chain_of(local_zone, image, 2)
    for snapshot_id, place in ((last, 0.5), (full, 0.999)):  # a chunk; the footer, without which no file is read
        path = file_of(local_zone, snapshot_id)
        sound = bytearray(path.read_bytes())
        sound[int(len(sound) * place)] ^= 1
        path.write_bytes(sound)
        await finish(local_zone, await local_zone.verify_snapshots([last]))
    with FolderCatalogue(local_zone.folder) as catalogue:
        marks = {row["snapshot_id"]: row["is_damaged"] for row in catalogue.rows("SELECT * FROM snapshots")}
    assert marks == {full: 1, last: 1}


async def test_it_runs_beside_a_backup_and_keeps_its_snapshot_from_deletion(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "disk.img", 8 * MIB)
    volume, made = await chain_of(local_zone, image)
    change(image, MIB, seed=9)
    backup, verification = (
        await local_zone.create_snapshots([volume], "beside"),
        await local_zone.verify_snapshots(made),
    )
    for job in (verification, backup):
        await succeed(local_zone, job)


async def test_a_verification_whose_worker_is_killed_is_done_again(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    _, made = await chain_of(local_zone, image, 1)
    job = await local_zone.verify_snapshots(made)
    await anyio.sleep(0.05)
    await kill_worker(local_zone.folder)
    done = await succeed(local_zone, job)
    assert done.details["verified"] == made


async def test_an_equal_verification_is_the_one_that_waits(local_zone: LocalZone, tmp_path: Path) -> None:
    """The tool says that it can be repeated; twelve of one snapshot took every place of the worker."""
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    _, made = await chain_of(local_zone, image, 1)
    jobs = [await local_zone.verify_snapshots(made) for _ in range(3)]
    assert len({job.job_id for job in jobs}) == 1
    await succeed(local_zone, jobs[0])
    assert (await local_zone.verify_snapshots(made)).job_id != jobs[0].job_id


async def test_a_waiting_verification_can_be_cancelled(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    _, made = await chain_of(local_zone, image, 1)
    job = await local_zone.verify_snapshots(made)
    await local_zone.cancel_job(job.job_id)
    ended = await finish(local_zone, job)
    assert ended.error
    assert ended.error.code == "cancelled"


def expected(snapshots: list[Snapshot]) -> tuple[str, int, int, int, int]:
    """What protects a disk, from its plain list."""
    by_id = {one.snapshot_id: one for one in snapshots}

    def is_affected(one: Snapshot) -> bool:
        return bool(one.is_damaged) or (one.parent is not None and is_affected(by_id[one.parent]))

    there = [one for one in snapshots if one.is_available]
    good = [one for one in there if not is_affected(one) and not is_fuzzy(one)]
    damaged = sum(map(is_affected, there))
    stored = sum(one.stored_bytes for one in there)
    return good[0].snapshot_id if good else "", len(good), damaged, len(there) - len(good) - damaged, stored


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
async def test_the_counts_are_what_the_plain_list_says(local_zone: LocalZone, tmp_path: Path, seed: int) -> None:
    """Through creates, deletions, recoveries, purges, damage and its end, in a random order."""
    chance = random.Random(seed)
    image = make_image(tmp_path / "disk.img", 64 * KIB)
    volume = (await local_zone.add_resource(image)).id
    for _ in range(40):
        query = SnapshotFilter(resource_id=volume, status=tuple(SnapshotStatus), verbose=1, limit=100)
        listed = list((await local_zone.list_snapshots(query)).items)
        there = [one.snapshot_id for one in listed if one.is_available]
        gone = [one.snapshot_id for one in listed if one.status == "deleted"]
        act = chance.choice(["create", "create", "create", "delete", "recover", "purge", "damage", "sound", "fuzzy"])
        if act == "create":
            change(image, 512, seed=chance.randrange(99), count=1)
            await back_up(local_zone, volume, is_full=chance.random() < 0.3)
        elif act == "delete" and len(there) > 2:
            await succeed(local_zone, await local_zone.delete_snapshot(chance.choice(there)))
        elif act == "recover" and gone:
            with suppress(NotUsable):  # what it builds on was deleted by another act
                await finish(local_zone, await local_zone.recover_snapshots([gone[0]]))
        elif act == "purge" and chance.random() < 0.5:
            await local_zone.purge()
        elif act in {"damage", "sound"} and there:
            with FolderCatalogue(local_zone.folder) as catalogue, catalogue.transaction():
                catalogue.mark_damaged(chance.choice(there), is_damaged=act == "damage")
        elif act == "fuzzy" and there:
            with FolderCatalogue(local_zone.folder) as catalogue, catalogue.transaction() as db:
                db.execute("UPDATE snapshots SET consistency = 'fuzzy' WHERE snapshot_id = ?", (chance.choice(there),))
        listed = list((await local_zone.list_snapshots(query)).items)
        (found,) = (await local_zone.list_volumes(ResourceFilter(verbose=1))).items
        assert isinstance(found.coverage, Coverage)
        counts = found.coverage
        newest, *numbers = expected(listed)
        assert [counts.good_count, counts.damaged_count, counts.fuzzy_count, counts.stored_bytes] == numbers, act
        assert counts.newest_good_id == newest
