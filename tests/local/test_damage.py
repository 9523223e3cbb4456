"""Damage is found before it does harm, remembered, and never built upon (FORMAT.md, "Invariants")."""

from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import Damaged, InternalError
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, hash_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain, SnapshotFile, unpack_places
from tests.disks import MIB, back_up, change, finish, get, make_image, succeed

pytestmark = pytest.mark.anyio


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def file_of(zone: LocalZone, snapshot_id: str) -> Path:
    return zone.folder / "snapshots" / f"{snapshot_id}.snap"


def last_chunk(zone: LocalZone, snapshot_id: str) -> int:
    """The offset of the last stored byte that a roll-back needs."""
    with Chain(zone.folder / "snapshots", snapshot_id) as chain:
        places = [
            place
            for region in range(chain.header.region_count)
            for place in unpack_places(chain.places(region))
            if not place.is_zero
        ]
        assert len(chain.places(0)) % PLACE.size == 0
        return places[-1].offset + places[-1].stored_length - 1


async def test_damage_in_the_last_chunk_leaves_the_disk_as_it_was(local_zone: LocalZone, tmp_path: Path) -> None:
    """An apply verifies everything that it will write before it writes."""
    image = make_image(tmp_path / "disk.img", 16 * MIB)
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    image.write_bytes(bytes(16 * MIB))
    before = image.read_bytes()
    flip(file_of(local_zone, snapshot_id), last_chunk(local_zone, snapshot_id))

    job = await finish(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert (job.status, job.error and job.error.code) == ("failed", "damaged")
    assert snapshot_id in job.info
    assert "full snapshot" in job.info
    assert job.details["resources"] == {volume.id: "unchanged"}
    assert image.read_bytes() == before
    assert (await get(local_zone, snapshot_id)).is_damaged == 1


async def test_after_known_damage_the_next_create_is_full(local_zone: LocalZone, tmp_path: Path) -> None:
    """Otherwise an unchanged disk would silently build on a damaged chunk."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    full = await back_up(local_zone, volume.id)
    incremental = await back_up(local_zone, volume.id)
    flip(file_of(local_zone, full), last_chunk(local_zone, full))
    report = await local_zone.check()
    assert [finding.subject for finding in report.findings if finding.is_damage] == [full]
    after = await back_up(local_zone, volume.id)
    assert (await get(local_zone, after)).is_full
    assert (await get(local_zone, incremental)).parent == full

    flip(file_of(local_zone, full), last_chunk(local_zone, after))
    assert (await local_zone.check()).is_clean
    assert (await get(local_zone, full)).is_damaged == 0


async def test_a_parent_that_turns_out_damaged_makes_the_create_a_full_one(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The map of the parent cannot be read: the backup is taken all the same."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    first = await back_up(local_zone, volume.id)
    file_of(local_zone, first).write_bytes(b"gone")
    second = await back_up(local_zone, volume.id)
    snapshot = await get(local_zone, second)
    assert (snapshot.is_full, snapshot.root_id, snapshot.parent) == (True, second, None)
    before = image.read_bytes()
    change(image, MIB)
    await succeed(local_zone, await local_zone.apply_snapshots([second]))
    assert image.read_bytes() == before


async def test_an_export_of_damage_makes_no_volume(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    flip(file_of(local_zone, snapshot_id), last_chunk(local_zone, snapshot_id))
    job = await finish(local_zone, await local_zone.create_volume(snapshot_id, "copy"))
    assert (job.status, job.error and job.error.code) == ("failed", "damaged")
    assert list((local_zone.folder / "volumes").iterdir()) == []


async def test_no_flipped_byte_of_a_file_goes_unnoticed(local_zone: LocalZone, tmp_path: Path) -> None:
    """Every byte that decides something is under a hash; `zone check` reads them all."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * 70_000)
    volume = await local_zone.add_resource(image)
    path = file_of(local_zone, await back_up(local_zone, volume.id))
    size = path.stat().st_size
    unnoticed = []
    for offset in range(0, size, 3):
        flip(path, offset)
        if (await local_zone.check()).is_clean:
            unnoticed.append(offset)
        flip(path, offset)
    assert (await local_zone.check()).is_clean
    assert unnoticed == []


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
async def test_a_cut_file_is_damage(keep: int, local_zone: LocalZone, tmp_path: Path) -> None:
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    snapshot_id = await back_up(local_zone, volume.id)
    path = file_of(local_zone, snapshot_id)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Damaged):
        Chain(path.parent, snapshot_id)
    assert [finding.subject for finding in (await local_zone.check()).findings] == [snapshot_id]


async def test_another_file_cannot_stand_in_for_the_parent(local_zone: LocalZone, tmp_path: Path) -> None:
    """A child names its parent by the hash of its map, so a file put in its place is found out."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    full = await back_up(local_zone, volume.id)
    child = await back_up(local_zone, volume.id)
    change(image, MIB)
    twin = await back_up(local_zone, volume.id, is_full=True)
    forged = file_of(local_zone, twin).read_bytes().replace(twin.encode(), full.encode())
    file_of(local_zone, full).write_bytes(forged)
    with pytest.raises(Damaged, match=full):
        Chain(local_zone.folder / "snapshots", child)


async def test_a_check_tells_a_parent_that_verifies_and_is_another_file(local_zone: LocalZone, tmp_path: Path) -> None:
    """As long as the right one and whole in itself; yet nothing that builds on it can be restored."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    full = await back_up(local_zone, volume.id)
    await back_up(local_zone, volume.id)
    change(image, MIB)
    twin = await back_up(local_zone, volume.id, is_full=True)
    with SnapshotFile(local_zone.folder / "snapshots", twin) as file:
        header = file.header.model_copy(update={"snapshot_id": full, "chain": (full,)})
        body = file.header.model_dump_json().encode()
    new_body = header.model_dump_json().encode()
    forged = file_of(local_zone, twin).read_bytes()
    forged = forged.replace(body + hash_of(body), new_body + hash_of(new_body))
    file_of(local_zone, full).write_bytes(forged)
    with FolderCatalogue(local_zone.folder) as catalogue, catalogue.transaction() as db:
        db.execute("UPDATE snapshots SET size_bytes = ? WHERE snapshot_id = ?", (len(forged), full))
    for _ in range(2):
        assert [finding.subject for finding in (await local_zone.check()).findings] == [full]
        assert (await get(local_zone, full)).is_damaged == 1


async def test_a_file_without_a_row_is_said_and_left_alone(local_zone: LocalZone, tmp_path: Path) -> None:
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    path = file_of(local_zone, await back_up(local_zone, volume.id))
    stray = path.with_name("ss-unknown1.snap")
    stray.write_bytes(path.read_bytes())
    report = await local_zone.check()
    assert [(finding.subject, finding.is_damage) for finding in report.findings] == [("ss-unknown1.snap", False)]
    await local_zone.purge()
    assert stray.exists()


@pytest.mark.parametrize(
    "content", [bytes(8192), b"SQLite format 3\0" + bytes(range(1, 251)) * 40], ids=["zeros", "junk"]
)
async def test_a_damaged_catalogue_is_said_in_words(content: bytes, zone_folder: Path, tmp_path: Path) -> None:
    """The provider raises errors of the contract and nothing else; sqlite3's own came out."""
    FolderCatalogue(zone_folder).close()
    (zone_folder / "catalogue.sqlite").write_bytes(content)
    zone = LocalZone(zone_folder)
    looks = (zone.list_snapshots(SnapshotFilter()), zone.list_unfinished_jobs(), zone.check())
    for look in (*looks, zone.add_resource(make_image(tmp_path / "disk.img"))):
        with pytest.raises(Damaged, match="catalogue is damaged") as caught:
            await look
        assert "Keep the zone's folder" in caught.value.hint
    await zone.aclose()


async def test_an_unusable_catalogue_is_said_in_words(zone_folder: Path) -> None:
    """Neither a full disk, as a failing one was called, nor a bug."""
    FolderCatalogue(zone_folder).close()
    (zone_folder / "catalogue.sqlite").unlink()
    (zone_folder / "catalogue.sqlite").mkdir()
    zone = LocalZone(zone_folder)
    with pytest.raises(InternalError, match="catalogue cannot be read or written: unable to open") as caught:
        await zone.list_snapshots(SnapshotFilter())
    assert "permissions" in caught.value.hint
    await zone.aclose()
