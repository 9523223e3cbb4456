"""`zone add` looks: what is no raw disk, or cannot be backed up and rolled back by this user, is refused with the next step."""

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshot_mcp.cli import main
from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.snapshot_file.format import compress
from tests.disks import MIB, back_up, make_image, succeed
from tests.local.test_in_use import holder

pytestmark = pytest.mark.anyio

SECTOR = 512


def a_tar(name: str, size: int = 3 * SECTOR) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:") as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        archive.addfile(member, io.BytesIO(os.urandom(size)))
    return written.getvalue()


def a_zip() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("disk.raw", os.urandom(4096))
    return written.getvalue()


def a_vhd_footer(kind: int) -> bytes:
    """The last sector of a VHD (its specification, "Hard Disk Footer Format"): a checksum over the other bytes."""
    footer = bytearray(SECTOR)
    footer[:8] = b"conectix"
    footer[60:64] = struct.pack(">I", kind)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


def a_vmdk_extent(descriptor_sector: int) -> bytes:
    return struct.pack("<4sIIQQQ", b"KDMV", 1, 3, 16384, 128, descriptor_sector)


CONVERT = "Convert it and register the copy: qemu-img convert -f {} -O raw {{path}} {{raw}}"
UNPACK = "Unpack it and register the result: {} {{path}} > {{raw}}"
DESCRIPTOR = "by its descriptor and register the copy: qemu-img convert -f vmdk -O raw DESCRIPTOR.vmdk {raw}"
DAMAGED_VHD = "a VHD image with a damaged footer"
COPY_BEFORE = "copy everything before the footer and register the copy: head -c -{} {{path}} > {{raw}}"

NO_DISKS: dict[str, tuple[bytes, str, str]] = {
    "qcow2": (b"QFI\xfb\0\0\0\x03", "a qcow2 image", "add --format qcow2"),
    "qcow": (b"QFI\xfb\0\0\0\x01", "a qcow image", CONVERT.format("qcow")),
    "qed": (b"QED\0\0\0\x01\0", "a QED image", CONVERT.format("qed")),
    "vmdk": (a_vmdk_extent(1), "a VMDK image", CONVERT.format("vmdk")),
    "vmdk extent": (a_vmdk_extent(0), "an extent of a VMDK image", DESCRIPTOR),
    "vmdk of ESX": (b"COWD\1\0\0\0", "an extent of a VMDK image", DESCRIPTOR),
    "vmdk, space-efficient": (struct.pack("<Q", 0xCAFEBABE), "an extent of a VMDK image", DESCRIPTOR),
    "vmdk descriptor": (b"# Disk DescriptorFile\nversion=1\n", "a VMDK descriptor", CONVERT.format("vmdk")),
    "vdi": (
        b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + struct.pack("<II", 0xBEDA107F, 0x10001),
        "a VDI image",
        CONVERT.format("vdi"),
    ),
    "vhd, dynamic": (a_vhd_footer(3) + bytes(4096) + a_vhd_footer(3), "a VHD image", CONVERT.format("vpc")),
    "vhd, fixed": (bytes(1 << 16) + a_vhd_footer(2), "a VHD image", CONVERT.format("vpc")),
    "vhd, fixed, of old": (bytes(1 << 16) + a_vhd_footer(2)[:511], "a VHD image", CONVERT.format("vpc")),
    "vhd, footer damaged": (bytes(1 << 16) + b"conectix".ljust(SECTOR, b"\0"), DAMAGED_VHD, COPY_BEFORE.format(512)),
    "vhd, of old, damaged": (bytes(1 << 16) + b"conectix".ljust(511, b"\0"), DAMAGED_VHD, COPY_BEFORE.format(511)),
    "vhdx": (b"vhdxfile" + "QEMU".encode("utf-16-le"), "a VHDX image", CONVERT.format("vhdx")),
    "parallels": (b"WithoutFreeSpace\2\0\0\0", "a Parallels image", CONVERT.format("parallels")),
    "parallels, larger": (b"WithouFreSpacExt\2\0\0\0", "a Parallels image", CONVERT.format("parallels")),
    "cloop": (
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
        "a cloop image",
        CONVERT.format("cloop"),
    ),
    "dmg": (bytes(8192) + struct.pack(">4sII", b"koly", 4, 512).ljust(SECTOR, b"\0"), "an Apple disk image", "-f dmg"),
    "dmg, only the name": (bytes(8192) + b"koly".ljust(SECTOR, b"\0"), "an Apple disk image", CONVERT.format("dmg")),
    "uml cow": (b"OOOM\0\0\0\3", "a COW file of User-Mode Linux", "uml_moo {path} {raw}"),
    "uml cow, version 1": (b"MOOO\1\0\0\0", "a COW file of User-Mode Linux", "uml_moo {path} {raw}"),
    "gzip": (gzip.compress(os.urandom(4096)), "a gzip file", UNPACK.format("gzip -dc")),
    "a small gzip": (gzip.compress(b"x"), "a gzip file", UNPACK.format("gzip -dc")),
    "xz": (lzma.compress(os.urandom(4096)), "an xz file", UNPACK.format("xz -dc")),
    "bzip2": (bz2.compress(os.urandom(4096)), "a bzip2 file", UNPACK.format("bzip2 -dc")),
    "zstd": (compress(bytes(1 << 20))[1], "a zstd file", UNPACK.format("zstd -dc")),
    "zstd of pzstd": (b"\x50\x2a\x4d\x18\4\0\0\0" + compress(bytes(1 << 20))[1], "a zstd file", "zstd -dc"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "an lz4 file", UNPACK.format("lz4 -dc")),
    "zip": (a_zip(), "a zip archive", "unzip {path}"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive", "7z x {path}"),
    "tar": (a_tar("disk.raw"), "a tar archive", "tar -xf {path}"),
    "a tar that was cut off": (a_tar("disk.raw", MIB)[: MIB // 2], "a tar archive", "tar -xf {path}"),
    "ova": (a_tar("appliance.ovf"), "an OVA archive", "tar -xf {path}; qemu-img convert -O raw DISK {raw}"),
    "a database": (b"SQLite format 3\0", "an SQLite database", "Give the path of a raw disk image."),
}


@pytest.mark.parametrize("kind", NO_DISKS)
async def test_what_wraps_a_disk_is_refused_by_name_with_the_next_step(
    kind: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """`zone add` looks: "formats by magic number are refused by name with the next step"."""
    content, name, step = NO_DISKS[kind]
    path = tmp_path / "a disk.img"
    path.write_bytes(content.ljust(SECTOR, b"\0") if name not in {"a gzip file", "a VHD image"} else content)
    with pytest.raises(BadRequest) as refusal:
        await local_zone.add_resource(path)
    assert refusal.value.message == f"The file {str(path)!r} is {name}, not a raw disk image."
    assert step.format(path=f"'{path}'", raw=f"'{tmp_path}/a disk.raw'") in refusal.value.hint
    assert (await local_zone.list_volumes(ResourceFilter())).total_count == 0


def test_a_full_of_an_overlay_is_never_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The "good full" of an overlay held 1 KiB of a 400 MiB disk: an overlay is refused, in the shell too."""
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    overlay = tmp_path / "overlay.qcow2"
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 104, 8, 16, 400 * MIB)  # with the place of a backing file's name
    overlay.write_bytes(header.ljust(104, b"\0") + b"base.img".ljust(1024, b"\0"))
    assert main(["zone", "add", str(overlay)]) != 0
    assert "is a qcow2 image, not a raw disk image. If that is what it is, add --format qcow2" in " ".join(
        capsys.readouterr().err.split()
    )


def boot_sector(*entries: tuple[int, int]) -> bytes:
    """A partition table of the old kind, as every hybrid ISO image and every GPT has one too."""
    table = b"".join(struct.pack("<B3sB3sII", 0, b"", kind, b"", 1, sectors) for kind, sectors in entries)
    return (bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa").ljust(SECTOR, b"\0")


def made(command: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(16 * MIB)
        subprocess.run([*command.split(), str(path)], check=True, capture_output=True)

    return make


def holding(*parts: tuple[int, bytes]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(8 * MIB)
            for offset, part in parts:
                file.seek(offset)
                file.write(part)

    return make


RAW: dict[str, Callable[[Path], None]] = {
    "zeros": holding(),
    "a partition table": holding((0, boot_sector((0x83, 16000)))),
    "a GPT": holding((0, boot_sector((0xEE, 16383))), (SECTOR, b"EFI PART\0\0\1\0")),
    "ext4": made("mkfs.ext4 -q -F"),
    "swap": made("mkswap"),
    "LUKS": holding((0, b"LUKS\xba\xbe\0\2")),
    "LVM": holding((SECTOR, b"LABELONE\1\0\0\0\0\0\0\0")),
    "an ISO image": holding((0x8000, b"\1CD001\1")),
    "a hybrid ISO image": holding((0, boot_sector((0x17, 16000))), (0x8000, b"\1CD001\1")),
    "SquashFS": holding((0, b"hsqs")),
    "a disk that an archive was written to": holding((0, a_tar("letter.txt"))),
    "names of footers, elsewhere": holding(
        (8 * MIB - 2 * SECTOR, b"conectix"), (8 * MIB - SECTOR + 8, b"koly conectix")
    ),
    "an odd size": lambda path: path.write_bytes(bytes(70_001)) and None,
}


@pytest.mark.parametrize("content", RAW)
async def test_content_that_a_disk_can_have_is_registered(content: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """What is legitimately raw is not refused: tables, filesystems, LUKS, LVM, swap, ISO images."""
    RAW[content](tmp_path / "disk.img")
    volume = await local_zone.add_resource(tmp_path / "disk.img")
    assert volume.size_bytes == (tmp_path / "disk.img").stat().st_size


async def test_what_is_raw_when_it_is_registered_stays_raw(local_zone: LocalZone, tmp_path: Path) -> None:
    """ "…whatever its content is later": a guest may write the header of any image to its disk."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    with image.open("r+b") as file:
        file.write(b"QFI\xfb\0\0\0\x03")
    content = image.read_bytes()
    snapshot_id = await back_up(local_zone, volume.id)
    image.write_bytes(b"")
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == content


@pytest.mark.parametrize(("size", "says"), [(0, "is empty"), (3, "has only 3 bytes"), (511, "has only 511 bytes")])
async def test_less_than_a_sector_is_no_disk(size: int, says: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """A 0-byte and a 3-byte file were registered without a word."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * size)
    with pytest.raises(BadRequest, match=says) as refusal:
        await local_zone.add_resource(path)
    if not size:
        assert f"truncate -s 20G {path}" in refusal.value.hint


def test_an_odd_size_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be an image that was cut off, and is a disk all the same."""
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    (tmp_path / "disk.img").write_bytes(bytes(1025))
    assert main(["zone", "add", str(tmp_path / "disk.img")]) == 0
    assert "Its size is not a multiple of 512 bytes" in capsys.readouterr().err


# what lies in the home folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the guard's files and a disk."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("guard.sqlite", "audit.key", "audit.head", "config.toml", "zone-serve.json", "disk.img"):
        (home / name).write_bytes(os.urandom(4096))
    return home


async def export_in(folder: Path, disk: Path) -> Path:
    """Make a zone with a snapshot and an exported volume; return the volume's path."""
    zone = LocalZone(folder)
    volume = await zone.add_resource(make_image(disk, MIB))
    job = await succeed(zone, await zone.create_volume(await back_up(zone, volume.id), "copy"))
    await zone.aclose()
    return Path(job.details["path"])


async def test_what_lies_in_the_home_folder_is_no_disk(home: Path, tmp_path: Path) -> None:
    """The guard's own files (`guard.sqlite`, `audit.key`) were accepted as disks; a roll-back would overwrite them."""
    assert (await export_in(home / "zones" / "other", tmp_path / "others.img")).is_file()
    zone = LocalZone(home / "zones" / "local", home=home)
    await zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    own = [one for one in home.iterdir() if one.is_file()]
    others = [one for one in (home / "zones" / "other").rglob("*") if one.is_file() and one.stat().st_size]
    zones_own = [one for one in zone.folder.rglob("*") if one.is_file()]
    assert {one.suffix for one in (*others, *zones_own)} >= {".sqlite", ".snap", ".raw"}
    (tmp_path / "link.img").symlink_to(home / "guard.sqlite")
    for path in (*own, *others, *zones_own, tmp_path / "link.img"):
        with pytest.raises(BadRequest, match=r"keeps its own files|belongs to another|belongs to the zone itself"):
            await zone.add_resource(path)
    assert (await zone.list_volumes(ResourceFilter())).total_count == 1
    await zone.aclose()


async def test_another_zones_files_are_no_disks_wherever_it_is(local_zone: LocalZone, tmp_path: Path) -> None:
    other = LocalZone(tmp_path / "elsewhere" / "zone")
    volume = await other.add_resource(make_image(tmp_path / "disk.img", MIB))
    snapshot_id = await back_up(other, volume.id)
    path = other.folder / "snapshots" / f"{snapshot_id}.snap"
    with pytest.raises(BadRequest, match="belongs to another zone of this program"):
        await local_zone.add_resource(path)
    (tmp_path / "linked.img").hardlink_to(path)
    with pytest.raises(BadRequest, match="is a snapshot file of snapshot-mcp"):
        await local_zone.add_resource(tmp_path / "linked.img")
    await other.aclose()


async def test_an_exported_volume_can_be_forgotten_and_registered_again(local_zone: LocalZone, tmp_path: Path) -> None:
    """It is registered by the zone itself, and is a disk in the zone's folder; an image is not overwritten."""
    instance = await local_zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    snapshot_id = await back_up(local_zone, instance.id)
    job = await succeed(local_zone, await local_zone.create_volume(snapshot_id, "copy"))
    path = Path(job.details["path"])
    with pytest.raises(BadRequest, match="already registered"):
        await local_zone.add_resource(path)
    await local_zone.remove_resource(job.resource_ids[0])
    assert (await local_zone.add_resource(path)).path == str(path)
    image = local_zone.folder / "images" / "img-1.raw"
    image.write_bytes(bytes(MIB))
    with pytest.raises(BadRequest, match="is an image that this zone exported") as refusal:
        await local_zone.add_resource(image)
    assert "register the copy" in refusal.value.hint


def test_the_command_knows_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of a home that is in use; the refusal leaves them whole."""
    home = tmp_path / "home"
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(home))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    assert main(["zone", "add", str(make_image(tmp_path / "disk.img", MIB))]) == 0
    files = [one for one in home.iterdir() if one.is_file()]
    assert {"guard.sqlite", "audit.key"} <= {one.name for one in files}
    for path in files:
        assert main(["zone", "add", str(path)]) != 0
        assert "keeps its own files" in " ".join(capsys.readouterr().err.split())
    assert main(["zone", "add", str(make_image(tmp_path / "other.img", MIB))]) == 0


# the operator's settings


SETTINGS = '[tokens.ada]\nroles = ["viewer"]\ntoken = "a token of 24 characters"\n'.ljust(672, "#")
IS_SETTINGS, IN_SETTINGS = "is a settings file of snapshot-mcp", "which holds settings of snapshot-mcp"


@pytest.mark.parametrize("named", [False, True])
def test_the_settings_are_no_disk(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `config.toml` with a token was accepted as a disk: where the platform has it, and where a variable says."""
    own = tmp_path / "config" / "snapshot-mcp"
    (own / "old").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own.parent))
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    named_file = tmp_path / "disks" / "operators.toml"
    named_file.parent.mkdir()
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", str(named_file) if named else "")
    for path in (own / "config.toml", own / "config.toml.orig", own / "old" / "config.toml", named_file):
        path.write_text(SETTINGS)
    used = named_file if named else own / "config.toml"
    (tmp_path / "link.img").symlink_to(used)
    (tmp_path / "hard.img").hardlink_to(used)
    refused = dict.fromkeys((used, tmp_path / "link.img", tmp_path / "hard.img"), IS_SETTINGS)
    refused |= dict.fromkeys((own / "config.toml.orig", own / "old" / "config.toml"), IN_SETTINGS)
    if named:
        refused[own / "config.toml"] = IN_SETTINGS
    for path, says in refused.items():
        assert main(["zone", "add", str(path)]) != 0
        assert says in " ".join(capsys.readouterr().err.split())
        assert path.read_text() == SETTINGS
    beside = make_image((named_file.parent if named else tmp_path) / "disk.img", MIB)
    assert main(["zone", "add", str(beside)]) == 0


async def test_settings_behind_a_link_are_no_disk(tmp_path: Path) -> None:
    """As who keeps them in a repository has them: the file that is there is meant, by its own path too."""
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "config.toml").write_text(SETTINGS)
    (tmp_path / "config.toml").symlink_to(tmp_path / "dotfiles" / "config.toml")
    zone = LocalZone(tmp_path / "zone", configuration=[tmp_path / "config.toml", tmp_path / "missing"])
    for path in (tmp_path / "config.toml", tmp_path / "dotfiles" / "config.toml"):
        with pytest.raises(BadRequest, match=IS_SETTINGS):
            await zone.add_resource(path)
    await zone.add_resource(make_image(tmp_path / "dotfiles" / "disk.img", MIB))
    await zone.aclose()


# what this user cannot read, write, lease or own


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "nobodys").mkdir()
        os.chown(folder / "nobodys", 65534, 65534)
        yield folder


AS_NOBODY = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from snapshot_mcp.contract.errors import ZoneError
    from snapshot_mcp.contract.states import ResourceType
    from snapshot_mcp.providers.local import registration
    from snapshot_mcp.providers.local.folder import FolderCatalogue

    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    with FolderCatalogue(Path(sys.argv[1])) as catalogue:
        try:
            registration.register(catalogue, Path(sys.argv[2]), "", ResourceType.VOLUME)
            print("registered")
        except ZoneError as error:
            print(type(error).__name__, error)
""")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize(
    ("owner", "mode", "says"),
    [
        (0, 0o600, "cannot be opened to read it: Permission denied. Backups must read it. Allow nobody to read it"),
        (
            65534,
            0o444,
            "cannot be opened to write it: Permission denied. Roll-backs must overwrite it. Allow nobody to",
        ),
        (0, 0o666, "belongs to another user (root), and only its owner can make sure"),
        (65534, 0o600, "registered"),
    ],
)
def test_what_this_user_cannot_back_up_and_roll_back_is_refused(owner: int, mode: int, says: str, shared: Path) -> None:
    """An image that this user may not read or lease was registered, and failed at the first backup."""
    image = make_image(shared / "disk.img", MIB)
    os.chown(image, owner, owner)
    image.chmod(mode)
    command = [sys.executable, "-c", AS_NOBODY, str(shared / "nobodys"), str(image)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert says in done.stdout, done
    assert done.stdout.startswith(("NotUsable", "registered"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_disk_on_a_read_only_filesystem_is_refused(local_zone: LocalZone, tmp_path: Path) -> None:
    """The roll-back needs to write."""
    mount_point = tmp_path / "mounted"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount_point)], check=True)
    try:
        make_image(mount_point / "disk.img", MIB)
        subprocess.run(["mount", "-o", "remount,ro", str(mount_point)], check=True)
        with pytest.raises(NotUsable, match="cannot be opened to write it: Read-only file system") as refusal:
            await local_zone.add_resource(mount_point / "disk.img")
        assert "Move it to a writable filesystem" in refusal.value.hint
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.mark.parametrize("mode", ["os.O_RDONLY", "os.O_RDWR"])
async def test_a_disk_in_use_can_be_registered(mode: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """The machine that has it open need not be stopped for that; its backup says later what is in the way."""
    image = make_image(tmp_path / "disk.img", MIB)
    with holder(f"f = os.open({str(image)!r}, {mode})"):
        await local_zone.add_resource(image)


LEASE = "f = os.open({path!r}, os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.{kind})"


@pytest.mark.parametrize("kind", ["F_RDLCK", "F_WRLCK"])
async def test_a_lease_of_another_program_is_not_broken_by_a_registration(
    kind: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Another home's backup or roll-back of the same file goes on: it is found in the kernel's tables, not by opening."""
    image = make_image(tmp_path / "disk.img", MIB)
    code = f"import signal; signal.signal(signal.SIGIO, lambda *_: os._exit(1)); {LEASE.format(path=str(image), kind=kind)}"
    with holder(code) as process:
        with pytest.raises(ResourceBusy, match="holds a lease"):
            await local_zone.add_resource(image)
        assert process.poll() is None
    await local_zone.add_resource(image)


async def test_a_disk_that_a_job_has_is_not_opened_by_a_second_registration(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """Opening it would break the job's lease, so that it is registered already is found first, by any of its names."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    image.write_bytes(b"")
    with pytest.raises(ZoneError, match="already registered"):
        await local_zone.add_resource(image)
