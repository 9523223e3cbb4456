"""Images whose headers lie: no byte of a file that the person did not name is read or written."""

import os
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ZoneError
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import Form
from tests.disks import MIB, back_up, finish, succeed
from tests.local.test_in_use import holder
from tests.qemu import create, needs_qemu, qemu_img, write

pytestmark = [pytest.mark.anyio, needs_qemu]

SECRET = b"a secret of the host\n" * 4000


def based_on(name: str, form: str = "raw") -> Callable[[Path], None]:
    """An image whose header names a base, whatever `qemu-img` would say to it."""

    def make(path: Path) -> None:
        create(path, MIB)
        image = bytearray(path.read_bytes())
        text = name.format(folder=path.parent).encode()
        extension = struct.pack(">II", 0xE2792ACA, len(form)) + form.encode().ljust(8, b"\0") if form else b""
        (length,) = struct.unpack_from(">I", image, 100)
        place = length + len(extension) + 8
        image[length : place + len(text)] = extension + bytes(8) + text
        struct.pack_into(">QI", image, 8, place, len(text))
        path.write_bytes(image)

    return make


def patched(at: int, value: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        create(path, MIB)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(value)

    return make


def data_file(path: Path) -> None:
    """The secret as the image's own data file: QEMU would read and overwrite it."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={path.parent}/other,data_file_raw=on", path, MIB)
    (path.parent / "secret").replace(path.parent / "other")
    os.link(path.parent / "other", path.parent / "secret")


def encrypted(path: Path) -> None:
    qemu_img(
        *("create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o"),
        *("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, MIB),
    )


HOSTILE: dict[str, Callable[[Path], None]] = {
    "an absolute base": based_on("{folder}/secret"),
    "a relative base": based_on("secret"),
    "a base above": based_on("../../../../../../../../etc/passwd"),
    "a base without a format": based_on("secret", ""),
    "a base of another format": based_on("secret", "vmdk"),
    "a base to be guessed": based_on("secret", "auto"),
    "a base by json:": based_on('json:{{"driver":"file","filename":"{folder}/secret"}}'),
    "a base over NBD": based_on("nbd://127.0.0.1:1/x"),
    "a base over HTTP": based_on("https://example.org/x"),
    "a base of a protocol": based_on("file:{folder}/secret"),
    "a base that is a device": based_on("/dev/zero"),
    "itself as its base": based_on("disk.qcow2", "qcow2"),
    "an empty name of a base": patched(8, struct.pack(">QI", 104, 0)),
    "a name of 4 GiB": patched(8, struct.pack(">QI", 104, 0xFFFFFFFF)),
    "a name beyond its cluster": patched(8, struct.pack(">QI", 65530, 100)),
    "a data file": data_file,
    "a data file by its bit alone": patched(72, struct.pack(">Q", 4)),
    "unknown features": patched(72, struct.pack(">Q", 1 << 40)),
    "the mark of corruption": patched(72, struct.pack(">Q", 2)),
    "encryption": encrypted,
    "an absurd size": patched(24, struct.pack(">Q", (1 << 63) - 512)),
    "no size": patched(24, struct.pack(">Q", 0)),
    "a huge table": patched(36, struct.pack(">I", 0xFFFFFFFF)),
    "clusters of 2 EiB": patched(20, struct.pack(">I", 61)),
    "clusters of a byte": patched(20, struct.pack(">I", 0)),
    "a header of 4 GiB": patched(100, struct.pack(">I", 0xFFFFFFFF)),
    "version 9": patched(4, struct.pack(">I", 9)),
}


@pytest.fixture
async def beside_a_secret(unused_zone: LocalZone, tmp_path: Path) -> AsyncIterator[Path]:
    """A folder with another file of the host, which is neither opened nor changed by the end."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    os.utime(secret, (1_000_000, 2_000_000))
    yield tmp_path
    assert secret.stat().st_mtime == 2_000_000, "it was written to"
    assert secret.stat().st_atime == 1_000_000, "it was read"
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_header_is_refused_and_leads_nowhere(
    what: str, unused_zone: LocalZone, beside_a_secret: Path
) -> None:
    image = beside_a_secret / "disk.qcow2"
    HOSTILE[what](image)
    os.utime(beside_a_secret / "secret", (1_000_000, 2_000_000))
    before = image.read_bytes()
    with pytest.raises((BadRequest, NotUsable)) as refusal:
        await unused_zone.add_resource(image, form=Form("qcow2"))
    assert refusal.value.hint
    assert image.read_bytes() == before
    assert not (await unused_zone.list_volumes(ResourceFilter())).items


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_header_that_turns_hostile_later_is_refused_too(
    what: str, local_zone: LocalZone, beside_a_secret: Path
) -> None:
    """The file is replaced in place after it was registered; capture and roll-back refuse it."""
    image = create(beside_a_secret / "disk.qcow2", MIB)
    disk = (await local_zone.add_resource(image, form=Form("qcow2"))).id
    snapshot_id = await back_up(local_zone, disk)
    other = beside_a_secret / "later"
    other.mkdir()
    os.link(beside_a_secret / "secret", other / "secret")
    HOSTILE[what](other / "disk.qcow2")
    image.write_bytes((other / "disk.qcow2").read_bytes())
    os.utime(beside_a_secret / "secret", (1_000_000, 2_000_000))
    before = image.read_bytes()
    for act in (local_zone.create_snapshots([disk], ""), local_zone.apply_snapshots([snapshot_id])):
        with pytest.raises(ZoneError):
            await finish(local_zone, await act)
    await local_zone.list_volumes(ResourceFilter(verbose=1))
    assert image.read_bytes() == before


async def test_a_raw_disk_into_which_its_guest_writes_a_header_stays_raw(
    local_zone: LocalZone, beside_a_secret: Path
) -> None:
    """The classic: the next probe would serve a file of the host to the guest, and overwrite it."""
    image = beside_a_secret / "disk.img"
    image.write_bytes(os.urandom(2 * MIB))
    disk = (await local_zone.add_resource(image)).id
    first, before = await back_up(local_zone, disk), image.read_bytes()
    evil = beside_a_secret / "evil"
    based_on("{folder}/secret")(evil)
    with image.open("r+b") as file:
        file.write(evil.read_bytes())
    second, after = await back_up(local_zone, disk), image.read_bytes()
    assert (await local_zone.list_volumes(ResourceFilter())).items[0].format is None
    for snapshot_id, content in ((first, before), (second, after)):
        await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
        assert image.read_bytes() == content
    moved = image.rename(image.with_name("moved.img"))
    await local_zone.move_resource(await local_zone.plan_move(disk, moved))
    await back_up(local_zone, disk)
    assert (await local_zone.list_volumes(ResourceFilter())).items[0].format is None


async def test_a_person_may_say_that_it_is_raw(unused_zone: LocalZone, beside_a_secret: Path) -> None:
    image = beside_a_secret / "disk.img"
    based_on("{folder}/secret")(image)
    added = await unused_zone.add_resource(image, form=Form("raw"))
    assert (added.size_bytes, added.format) == (image.stat().st_size, None)


async def test_bases_that_lead_in_a_circle_are_refused(unused_zone: LocalZone, tmp_path: Path) -> None:
    one, two = tmp_path / "disk.qcow2", tmp_path / "two.qcow2"
    based_on("two.qcow2", "qcow2")(one)
    based_on("disk.qcow2", "qcow2")(two)
    with pytest.raises(BadRequest, match="circle"):
        await unused_zone.add_resource(one, form=Form("qcow2", (two, one)))


async def test_a_base_and_the_disk_on_it_are_not_two_disks(unused_zone: LocalZone, tmp_path: Path) -> None:
    """A roll-back of the base would change the disk that builds on it."""
    base = create(tmp_path / "base.qcow2", MIB)
    image = create(tmp_path / "disk.qcow2", None, base)
    await unused_zone.add_resource(image, form=Form("qcow2", (base,)))
    with pytest.raises(BadRequest, match="is a base of"):
        await unused_zone.add_resource(base, form=Form("qcow2"))


async def test_a_base_that_is_a_pipe_or_a_link_elsewhere_is_refused(unused_zone: LocalZone, tmp_path: Path) -> None:
    image, pipe = tmp_path / "disk.qcow2", tmp_path / "pipe"
    os.mkfifo(pipe)
    based_on("pipe")(image)
    with pytest.raises(BadRequest, match="not a regular file"):
        await unused_zone.add_resource(image, form=Form("qcow2", (pipe,)))
    other = tmp_path / "other"
    other.write_bytes(SECRET)
    with pytest.raises(BadRequest, match="not on"):
        await unused_zone.add_resource(image, form=Form("qcow2", (other,)))


async def test_damaged_tables_are_an_error_and_nothing_is_written(local_zone: LocalZone, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    write(image, "write -P 1 0 4M")
    disk = (await local_zone.add_resource(image, form=Form("qcow2"))).id
    snapshot_id = await back_up(local_zone, disk)
    (table,) = struct.unpack(">Q", image.read_bytes()[40:48])
    with image.open("r+b") as file:
        file.seek(table)
        file.write(struct.pack(">Q", (1 << 63) | 0x7FFFFFFF0000))
    before = image.read_bytes()
    job = await finish(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert (job.status, job.error and job.error.code) == ("failed", "not_usable")
    assert "is damaged" in job.info
    job = await finish(local_zone, await local_zone.create_snapshots([disk], ""))
    assert "is damaged" in job.info
    assert image.read_bytes() == before


async def test_a_base_that_is_being_written_is_in_use(unused_zone: LocalZone, tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", MIB)
    image = create(tmp_path / "disk.qcow2", None, base)
    disk = (await unused_zone.add_resource(image, form=Form("qcow2", (base,)))).id
    with holder(f"f = os.open({str(base)!r}, os.O_RDWR)"), pytest.raises(ZoneError, match="in use"):
        await unused_zone.create_snapshots([disk], "")
