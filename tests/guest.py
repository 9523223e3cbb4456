"""A real guest for the long tests: Debian's kernel and busybox in an initramfs, which works on ext4 or says whether all is right.

At work it writes files, syncs each, and only then records its sum, synced too: so in any restore point every recorded sum is of a
file that is there and right.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.machines import QEMU, Monitor
from tests.patience import PATIENCE_SECONDS

MODULES: Final = (
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)

INIT: Final = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt /run /var/run /tmp
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for again in 1 2 3; do for one in MODULES; do insmod /modules/$one.ko 2>/dev/null; done; done
mount -t ext4 /dev/vda /mnt || { echo GUEST no filesystem; poweroff -f; }
touch /mnt/sums
if grep -q check /proc/cmdline; then
    wrong=0; right=0
    while read -r sum name; do
        [ ${#sum} = 32 ] || continue
        if [ "$(md5sum < "/mnt/$name" | cut -c1-32)" = "$sum" ]; then right=$((right+1)); else wrong=$((wrong+1)); fi
    done < /mnt/sums
    umount /mnt
    echo "GUEST right $right wrong $wrong"
    poweroff -f
fi
for port in /dev/vport*; do [ -e "$port" ] && qemu-ga -m virtio-serial -p "$port" -t /run -f /run/ga.pid >/dev/null 2>&1 & done
echo GUEST works
number=$(wc -l < /mnt/sums)
while true; do
    name=f$((number % 40)).$number
    dd if=/dev/urandom of=/mnt/$name bs=4k count=$((number % 17 + 1)) conv=fsync 2>/dev/null
    sum=$(md5sum < /mnt/$name | cut -c1-32)
    echo "$sum $name" >> /mnt/sums; sync
    number=$((number+1))
    echo "GUEST synced $number"
done
umount /mnt; poweroff -f
""".replace("MODULES", " ".join(MODULES))


def why_not() -> str:
    """Why there can be no guest here, "" if there can."""
    missing = [one for one in (QEMU, "apt-get", "dpkg-deb", "busybox", "mkfs.ext4") if not shutil.which(one)]
    return f"{', '.join(missing)} missing (Debian: qemu-system-x86, busybox-static, e2fsprogs)" if missing else ""


def build(folder: Path) -> None:
    """Fetch Debian's kernel and the guest's agent, and make an initramfs of them."""
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
    ).stdout
    kernel = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line)
    for package in (kernel, "qemu-guest-agent"):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True)
    (image,) = (folder / "unpacked" / "boot").glob("vmlinuz*")
    image.rename(folder / "kernel")
    found = {one.stem: one for one in (folder / "unpacked").rglob("*.ko")}
    agent = folder / "unpacked" / "usr" / "sbin" / "qemu-ga"
    files = {f"modules/{name}.ko": found[name] for name in MODULES} | {"bin/qemu-ga": agent}
    files["bin/busybox"] = Path(shutil.which("busybox") or "")
    for line in subprocess.run(["ldd", str(agent)], check=True, capture_output=True, text=True).stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                files[word.lstrip("/")] = Path(word)
    (folder / "init").write_text(INIT)
    (folder / "initramfs").write_bytes(_archive(files | {"init": folder / "init"}))
    (folder / "accelerator").write_text(accelerator(folder))


def _archive(files: dict[str, Path]) -> bytes:
    """A cpio archive (newc), as the kernel unpacks it."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    entries = [(name, 0o40755, b"") for name in folders]
    entries += [(name, 0o100755, path.read_bytes()) for name, path in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    archive = b""
    for number, (name, mode, data) in enumerate(entries):
        fields = [number + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + "".join(f"{one:08x}" for one in fields).encode() + name.encode() + b"\0"
        archive += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return archive


def accelerator(built: Path) -> str:
    """KVM where it works: there are machines where it opens, and no guest ever starts."""
    words = [
        "-machine",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]
    words += ["-kernel", str(built / "kernel"), "-initrd", str(built / "initramfs"), "-serial", "stdio"]
    try:
        tried = [QEMU, *words, "-append", "console=ttyS0 panic=-1"]
        done = subprocess.run(tried, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)
        return "kvm" if b"GUEST" in done.stdout else "tcg"
    except subprocess.TimeoutExpired:
        return "tcg"


class Guest:
    """A guest that runs on disks; `said` is what it has written to its console."""

    def __init__(
        self, built: Path, folder: Path, *disks: tuple[Path, str], mode: str = "", has_agent: bool = False
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.socket, self.agent, self._console = folder / "qmp", folder / "agent", folder / "console"
        own = folder / "own"
        for old in (self.socket, own, self.agent):
            old.unlink(missing_ok=True)
        words = ["-machine", "q35", "-accel", (built / "accelerator").read_text(), "-cpu", "max", "-m", "256"]
        words += ["-nodefaults", "-no-reboot"]
        words += ["-display", "none", "-serial", f"file:{self._console.name}", "-kernel", str(built / "kernel")]
        words += ["-initrd", str(built / "initramfs"), "-append", f"console=ttyS0 quiet panic=-1 {mode}"]
        for name in (self.socket.name, own.name):
            words += ["-qmp", f"unix:{name},server=on,wait=off"]
        if has_agent:
            words += ["-device", "virtio-serial-pci", "-chardev", "socket,id=ga,path=agent,server=on,wait=off"]
            words += ["-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"]
        for number, (path, form) in enumerate(disks):
            words += ["-drive", f"file={path},format={form},if=none,id=d{number},cache=writeback"]
            words += ["-device", f"virtio-blk-pci,drive=d{number},id=v{number}"]
        self._console.write_bytes(b"")
        self.process = subprocess.Popen([QEMU, *words], cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._own = own

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def said(self) -> list[str]:
        lines = self._console.read_text(errors="replace").splitlines()
        return [line.partition("GUEST ")[2] for line in lines if "GUEST " in line]

    @property
    def synced_count(self) -> int:
        return max((int(line.split()[1]) for line in self.said if line.startswith("synced")), default=0)

    def wait_for(self, count: int) -> None:
        """Wait until it has synced so many files in all."""
        until = time.monotonic() + PATIENCE_SECONDS * 3
        while self.synced_count < count:
            assert self.process.poll() is None, self._console.read_text(errors="replace")[-2000:]
            assert time.monotonic() < until
            time.sleep(0.05)

    def monitor(self) -> Monitor:
        return Monitor(self._own)

    def wait(self) -> list[str]:
        """Wait until it has powered off, and return what it said."""
        self.process.wait(PATIENCE_SECONDS * 3)
        return self.said


def make_disk(path: Path, form: str, size_mib: int = 128) -> Path:
    """An ext4 filesystem in an image."""
    raw = path.with_suffix(".fresh")
    with raw.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(raw)], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, str(raw), str(path)], check=True)
    raw.unlink()
    return path


def verdict(built: Path, folder: Path, disk: Path, form: str = "raw") -> tuple[int, int]:
    """How many files a guest that boots from a disk finds right and wrong; (0, -1) if it does not boot."""
    with Guest(built, folder, (disk, form), mode="check") as guest:
        for line in guest.wait():
            words: Sequence[str] = line.split()
            if words[0] == "right":
                return int(words[1]), int(words[3])
    return 0, -1


def is_marked_clean(disk: Path) -> bool:
    """Whether the filesystem of a raw disk needs no recovery."""
    said = subprocess.run(["dumpe2fs", "-h", str(disk)], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" not in said
