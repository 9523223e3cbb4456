"""`MachineCapture`: all disks of one running machine as of one instant, each read as a capture reads a disk (`MachineSource`)."""

import errno
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.capture import THREADS
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.holders import find_writers
from snapshot_mcp.providers.local.image.layers import DEVICE, RAW, Layout
from snapshot_mcp.providers.local.machine import filters, left
from snapshot_mcp.providers.local.machine.devices import Device, find_device, refuse_old
from snapshot_mcp.providers.local.machine.freezing import Freeze
from snapshot_mcp.providers.local.machine.monitor import Monitor, MonitorAbsent, MonitorError, MonitorGone
from snapshot_mcp.providers.local.machine.qmp import QmpMonitor
from snapshot_mcp.providers.local.machine.virsh import VirshMonitor
from snapshot_mcp.providers.local.nbd.disk import NbdDisk
from snapshot_mcp.providers.local.nbd.private import connected
from snapshot_mcp.providers.local.place import shown
from snapshot_mcp.providers.local.snapshot_file.reader import SnapshotFile
from snapshot_mcp.providers.local.source import Span

_ENDED: Final = {errno.EPROTO, errno.EPIPE, errno.ECONNRESET}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One disk of a running machine; `head_id` is the restore point that its content grew from, `parent_id` what is built on."""

    resource_id: str
    path: str
    label: str
    layout: Layout
    snapshot_id: str
    parent_id: str
    head_id: str

    def bitmap(self, snapshot_id: str) -> str:
        """Return the name of the bitmap that records what was written since a restore point."""
        return f"{filters.PREFIX}{self.resource_id}-{snapshot_id}" if snapshot_id else ""


def connect(machine: Machine) -> Monitor:
    """Connect to a machine's monitor. Raises MonitorGone."""
    return VirshMonitor(machine.domain) if machine.domain else QmpMonitor(Path(machine.qmp))


def refuse_unmonitored(machine: Machine, label: str) -> None:
    """Raise ResourceBusy for a running domain that may not be asked through its monitor."""
    if not machine.is_monitored:
        raise ResourceBusy(
            f"Domain {shown(machine.domain)}, which has {label}, is running.",
            hint=f"Shut it down: virsh shutdown {quote(machine.domain)}. Or allow its backup while it runs, by a filter that goes"
            " in through its monitor, for which libvirt marks it as tainted: `zone move ID PATH --domain NAME --monitor`.",
        )


@contextmanager
def explained(label: str) -> Iterator[None]:
    """Say what a failure of the monitor means for a backup."""
    try:
        yield
    except MonitorGone as error:
        raise ResourceBusy(
            f"{label} is in use, and the monitor of its machine cannot be used: {error}.",
            hint="Give the machine a monitor of its own for snapshot-mcp (another -qmp), or shut it down and back it up then.",
        ) from None
    except MonitorError as error:
        raise NotUsable(
            f"QEMU refused what the backup of {label} needs: {error}.",
            hint="The machine goes on as before. Shut it down and back it up then.",
        ) from None


def verify(path: Path, form: str, machine: Machine) -> None:
    """Make sure that a machine has the file as a disk, in this format, if it runs. Raises NotUsable, ResourceBusy."""
    label = f"the disk {shown(path)}"
    if not machine.is_monitored:
        if find_writers(path):
            refuse_unmonitored(machine, label)
        return
    with explained(label):
        try:
            monitor = connect(machine)
        except MonitorAbsent:
            if find_writers(path):
                raise
            return
        try:
            refuse_old(monitor, label)
            find_device(monitor, path, form, label)
        finally:
            monitor.close()


class MachineCapture(Closing):
    """The disks of one machine, held as of one instant until each is closed. Raises NotUsable, ResourceBusy, OSError."""

    def __init__(self, machine: Machine, disks: Sequence[Wanted], folder: Path) -> None:
        self._machine, self._folder, self._disks = machine, folder, disks
        self.sources: list[MachineSource] = []
        self._open: set[int] = set()
        self._scratch: dict[int, int] = {}
        with explained(disks[0].label):
            self._monitor = connect(machine)
            try:
                self._begin()
            except BaseException:
                self.close()
                raise

    def _begin(self) -> None:
        monitor = self._monitor
        refuse_old(monitor, self._disks[0].label)
        filters.undo(monitor)
        devices = [_device_of(monitor, one) for one in self._disks]
        left.note(self._folder, self._machine)
        self._open = set(range(len(devices)))
        pairs = list(enumerate(zip(self._disks, devices, strict=True)))
        for number, (one, device) in pairs:
            kept, new = ("", "") if device.has_snapshots else (one.bitmap(one.head_id), one.bitmap(one.snapshot_id))
            filters.remove_bitmaps(monitor, device.node, one.bitmap("-")[:-1], keep={kept})
            self._scratch[number] = left.scratch_file(self._folder, device.size_bytes)
            filters.insert(monitor, number, device, self._scratch[number], new)
        known = [_known(monitor, one, device) for _, (one, device) in pairs]
        listener, free = connected(sum(THREADS + bool(bitmap) for bitmap in known))
        try:
            with Freeze(self._machine, self._disks[0].label) as freeze:
                filters.take_instant(monitor, len(devices))
            filters.serve(monitor, listener.fileno())  # from now on QEMU waits some seconds for what we connect
            consistency = "frozen" if freeze.is_frozen else "instant"
            for number, (one, device) in pairs:
                name = secrets.token_hex(16)
                filters.export(monitor, number, device, name, known[number])
                taken, free = free[:THREADS], free[THREADS:]
                source = MachineSource(self, number, one, device, consistency, NbdDisk(taken, name))
                self.sources.append(source)
                if known[number]:
                    context = f"qemu:dirty-bitmap:{filters.UNDER}{number}"
                    source.changes = NbdDisk([free.pop()], name, context=context)
        finally:
            for each in (listener, *free):
                each.close()

    def release(self, number: int, device: Device, bitmap: str) -> None:
        """Take one disk's filter out, and remove a bitmap unless it is ""; with the last one disconnect. Never raises."""
        if number not in self._open:
            return
        try:
            if not left.responds(self._folder):
                raise MonitorGone("the disk of the scratch file does not answer, and QEMU would wait for it")
            filters.undo(self._monitor, {number})
            os.ftruncate(self._scratch[number], 0)
            if bitmap:
                filters.remove_bitmaps(self._monitor, device.node, bitmap)
        except MonitorError as error:
            log.warning("%s: QEMU was not put back as it was: %s", device.label, error)
            self._end(is_clean=False)
            return
        self._open.discard(number)
        if not self._open:
            self._end(is_clean=True)

    def close(self) -> None:
        """Release what is open."""
        for source in self.sources:
            source.close()
        if self._open:  # it failed on the way; bitmaps that it left name no restore point, and go with the next backup
            self._end(is_clean=False)
        self._monitor.close()

    def _end(self, *, is_clean: bool) -> None:
        self._open.clear()
        self._monitor.close()
        if is_clean:
            left.forget(self._folder, self._machine)
        else:
            is_clean = left.take_out(self._folder, self._machine, connect)
        for fd in self._scratch.values():
            if is_clean:
                os.ftruncate(fd, 0)  # a paused QEMU keeps it open
            os.close(fd)
        self._scratch.clear()


class MachineSource(Closing):
    """A disk of a running machine as of its instant."""

    def __init__(
        self, capture: MachineCapture, number: int, wanted: Wanted, device: Device, consistency: str, content: NbdDisk
    ) -> None:
        self._capture, self._number, self._wanted, self._device = capture, number, wanted, device
        self.path, self.label, self.consistency = Path(wanted.path), wanted.label, consistency
        self.content = InstantContent(content, wanted.label)
        self.size_bytes = content.size_bytes
        self.changes: NbdDisk | None = None
        self._is_kept = False

    def changed_since(self, parent: SnapshotFile) -> Iterable[Span] | None:
        """Return what was written since the parent's instant, if a bitmap was made for that very parent."""
        header = parent.header
        is_its = (header.snapshot_id, header.virtual_size_bytes) == (self._wanted.parent_id, self.size_bytes)
        return self.content.changes(self.changes) if self.changes and is_its else None

    def remember(self, snapshot_id: str, file_hash: bytes) -> None:
        """Let the bitmap of this restore point go on."""
        self._is_kept = True

    def check(self) -> None:
        """Do nothing: what is read is the instant, or an error."""

    def close(self) -> None:
        """Stop reading, and take the filter out of the machine."""
        for one in (self.content.disk, self.changes):
            if one:
                one.close()
        self._capture.release(
            self._number, self._device, "" if self._is_kept else self._wanted.bitmap(self._wanted.snapshot_id)
        )


class InstantContent:
    """What QEMU serves of the instant, as a `Source`; its errors say what happened to the backup, never to the guest."""

    def __init__(self, disk: NbdDisk, label: str) -> None:
        self.disk, self._label = disk, label

    @property
    def size_bytes(self) -> int:
        """The size of the disk at the instant."""
        return self.disk.size_bytes

    def read(self, length: int, offset: int) -> bytes:
        """Read. Raises NotUsable."""
        with self._explained():
            return self.disk.read(length, offset)

    def data_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield what is not zeros. Raises NotUsable."""
        with self._explained():
            yield from self.disk.data_extents(start, end)

    def changes(self, bitmap: NbdDisk) -> Iterator[Span]:
        """Yield what a bitmap names. Raises NotUsable."""
        with self._explained():
            yield from bitmap.dirty_extents(0, self.size_bytes)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _ENDED:
                raise NotUsable(
                    f"The machine of {self._label} ended during its backup.",
                    hint="Nothing was kept of the backup. Create the snapshot again.",
                ) from None
            raise NotUsable(
                f"QEMU gave up the backup of {self._label} so that the machine could go on writing: what the machine overwrote"
                f" could not be saved in the zone's folder within {filters.CBW_SECONDS} s"
                f" ({clean_text(error, MESSAGE_CHARACTERS)}).",
                hint="The machine was not harmed. Make room in the zone's folder, or back up when the disk is less busy.",
            ) from None


def _known(monitor: Monitor, wanted: Wanted, device: Device) -> str:
    """Return the bitmap that was made for the parent, "" if it is not there (any more)."""
    name = wanted.bitmap(wanted.parent_id)
    return name if name in filters.bitmaps_of(monitor, device.node) else ""


def _device_of(monitor: Monitor, wanted: Wanted) -> Device:
    form = RAW if wanted.layout.format == DEVICE else wanted.layout.format
    return find_device(monitor, Path(wanted.path), form, wanted.label)
