"""What was copied comes back on a new machine to the byte, from a folder and from an object store, sealed or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.models import SnapshotUpdate
from snapshot_mcp.providers.local import LocalZone
from tests.copies.conftest import sealed_first
from tests.copies.lab import CopyLab, inodes
from tests.disks import MIB, change

pytestmark = pytest.mark.anyio

Make = Callable[..., CopyLab]


@sealed_first
async def test_every_restore_point_comes_back_on_a_new_machine(
    make_lab: Make, place: dict[str, Any], tmp_path: Path, is_sealed: bool
) -> None:
    lab = make_lab(place, is_sealed=is_sealed)
    db, web = tmp_path / "db.img", tmp_path / "web.img"
    disk, other = await lab.add_disk(db, "db"), await lab.add_disk(web, "web", seed=9)
    ids = [await lab.back_up(disk, "one")]
    change(db, MIB, seed=3)
    ids += [await lab.back_up(disk, "two"), await lab.back_up(other, "of the web server")]
    done = await lab.copy()
    assert sorted(done.details["sent"]) == sorted(ids)
    change(db, MIB, seed=4)
    ids.append(await lab.back_up(disk, "three", is_full=True))
    await lab.zone.update_snapshot(
        ids[0], SnapshotUpdate(snapshot_name="before the upgrade", description="keep it", tags=("keep",))
    )
    assert (await lab.copy()).details["sent"] == [ids[3]]
    wanted = {one: await lab.content(one, tmp_path / "a") for one in ids}

    back = await lab.restore_all(tmp_path / "new")
    assert (back["restored"], back["missing"], back["damaged"]) == (4, {}, [])
    assert {one["name"] for one in back["disks"]} == {"db", "web"}
    zone = LocalZone(tmp_path / "new" / "zones" / "local")
    assert {one: await lab.content(one, tmp_path / "b", zone) for one in ids} == wanted
    found = {one.snapshot_id: one for one in (await zone.list_snapshots(_all())).items}
    assert (found[ids[0]].snapshot_name, found[ids[0]].tags) == ("before the upgrade", ("keep",))
    await zone.aclose()


async def test_one_restore_point_goes_straight_to_a_new_file_and_never_over_one(
    make_lab: Make, place: dict[str, Any], tmp_path: Path
) -> None:
    lab = make_lab(place)
    db = tmp_path / "db.img"
    disk = await lab.add_disk(db, "db")
    await lab.back_up(disk, "one")
    change(db, MIB)
    second = await lab.back_up(disk, "two")
    await lab.copy()
    shell, out = lab.shell(tmp_path / "new"), tmp_path / "out" / "db.img"
    out.parent.mkdir()
    words = ("restore-from", lab.settings.to, second, "--to-file", str(out), "--key-file", lab.key_file())
    assert (await shell.json(*words))["status"] == "written"
    assert out.read_bytes() == db.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["db.img"], "nothing else is left there"
    said = await shell(*words, status=1)
    assert "already" in said
    assert "nothing is overwritten" in said
    (tmp_path / "link").symlink_to(tmp_path)
    said = await shell(*words[:4], str(tmp_path / "link" / "x.img"), *words[5:], status=1)
    assert "symbolic link" in said


async def test_nothing_is_merged_into_a_zone_that_exists(lab: CopyLab, tmp_path: Path) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    await lab.back_up(disk, "one")
    await lab.copy()
    home = tmp_path / "new"
    await lab.restore_all(home)
    words = ("restore-from", lab.settings.to, "--new-zone", "local", "--key-file", lab.key_file())
    said = await lab.shell(home)(*words, status=1)
    assert "There is a zone in" in said
    assert "nothing is merged into it" in said


async def test_a_restore_that_was_cut_off_goes_on(lab: CopyLab, tmp_path: Path) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    first = await lab.back_up(disk, "one")
    await lab.copy()
    snapshots = tmp_path / "new" / "zones" / "local" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots.parent / ".restored-from").write_text(lab.settings.place)
    (snapshots / f".{first}.snap.partial").write_bytes(b"half of it")
    assert (await lab.restore_all(tmp_path / "new"))["restored"] == 1


async def test_a_run_with_nothing_new_writes_nothing_and_lists_once(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    await lab.back_up(disk, "one")
    await lab.copy()
    folder = Path(lab.settings.to)
    before = inodes(folder)
    from snapshot_mcp.copies.stores.folder import FolderStore

    listed, got = [], []
    real_list, real_get = FolderStore.list, FolderStore.get
    monkeypatch.setattr(FolderStore, "list", lambda self, prefix: (listed.append(prefix), real_list(self, prefix))[1])
    monkeypatch.setattr(FolderStore, "get", lambda self, name: (got.append(name), real_get(self, name))[1])
    done = await lab.copy()
    assert (done.details["sent"], len(listed), got) == ([], 1, [])
    assert inodes(folder) == before


async def test_a_name_that_lies_is_cleaned_wherever_it_is_shown(lab: CopyLab, tmp_path: Path) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db\x1b[2J\u202e")
    await lab.back_up(disk, "one\nRestore point two")
    await lab.copy()
    said = await lab.shell(tmp_path / "new")("restore-from", lab.settings.to, "--key-file", lab.key_file())
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert len([line for line in said.splitlines() if line.startswith("  ss-")]) == 1


def _all() -> Any:
    from snapshot_mcp.contract.models import SnapshotFilter

    return SnapshotFilter(verbose=1, limit=100)


async def test_objects_are_locked_only_where_the_operator_says_so(
    make_lab: Make, bucket: dict[str, Any], tmp_path: Path
) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=bucket["endpoint"],
        aws_access_key_id=bucket["access_key_id"],
        aws_secret_access_key=bucket["secret_access_key"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    for to, lock in ((bucket, None), (bucket | {"to": "s3://locked/x"}, "compliance")):
        lab = make_lab(to | {"lock": lock}, name=f"home-{lock}")
        disk = await lab.add_disk(tmp_path / f"{lock}.img", "db")
        await lab.back_up(disk, "one")
        await lab.copy()
        name, prefix = lab.settings.bucket, lab.settings.prefix
        for one in client.list_objects_v2(Bucket=name, Prefix=prefix)["Contents"]:
            found = client.head_object(Bucket=name, Key=one["Key"])
            assert found.get("ObjectLockMode") == (lock and "COMPLIANCE")
            if lock:
                assert 29 <= (found["ObjectLockRetainUntilDate"] - found["LastModified"]).days <= 30
    refused = make_lab(bucket | {"lock": "governance"}, name="refused")
    await refused.back_up(await refused.add_disk(tmp_path / "r.img", "db"), "one")
    assert "Object Lock is switched on when a bucket is made" in (await refused.copy(ends_well=False)).reason
