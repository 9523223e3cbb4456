"""Find the device of a running machine that has a registered disk, or say why there is none that can be used."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.providers.local.machine.monitor import Monitor, MonitorError, a_list, number, text
from snapshot_mcp.providers.local.place import shown

TESTED: Final = {"virtio-blk-device": "virtio-blk", "scsi-hd": "scsi-hd", "ide-hd": "ide-hd"}
"""The kinds of device that take a filter while the machine runs, as QEMU's object model and as a person names them."""

MIN_VERSION: Final = (7, 1)
"""The first QEMU whose filter gives the backup up instead of the guest's write."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the machine, the node that it reads and writes, and the format and the size of that.

    `has_snapshots`: its image has internal snapshots, and QEMU reverts to none while the image has a bitmap; so it gets none.
    """

    qom: str
    node: str
    format: str
    size_bytes: int
    label: str
    has_snapshots: bool


def refuse_old(monitor: Monitor, label: str) -> None:
    """Raise NotUsable for a QEMU that lacks what keeps its guest from harm."""
    known = monitor.execute("query-version")
    version = number(known, "qemu", "major"), number(known, "qemu", "minor")
    if version < MIN_VERSION:
        raise NotUsable(
            f"The machine of {label} runs in QEMU {version[0]}.{version[1]}; the backup of a running one needs QEMU 7.1.",
            hint="Shut the machine down and back it up then.",
        )


def find_device(monitor: Monitor, path: Path, form: str, label: str) -> Device:
    """Return the device whose disk is the file, by identity. Raises NotUsable, MonitorError."""
    found = [one for one in a_list(monitor.execute("query-block")) if _is_of(one, path)]
    if not found or not _is_open(monitor.pid, path):
        raise NotUsable(
            f"The machine behind the monitor of {label} does not have the file {shown(path)} as a disk.",
            hint="Check that the socket is that machine's, and that the file was not replaced since it was started.",
        )
    if len(found) > 1:
        raise NotUsable(f"The machine has {label} as several devices.", hint="Shut it down and back it up then.")
    (one,) = found
    qom, node, its_form = text(one, "qdev"), text(one, "inserted", "node-name"), text(one, "inserted", "drv")
    kind = _type_of(monitor, qom)
    if kind not in TESTED:
        raise NotUsable(
            f"The machine has {label} as a device of type {shown(kind or 'unknown')}; a running one is backed up only through"
            f" {', '.join(TESTED.values())}.",
            hint="Shut the machine down and back it up then.",
        )
    if its_form != form:
        raise NotUsable(
            f"{label} is registered as {form}, and its machine uses it as {shown(its_form or 'unknown')}.",
            hint=f"Register it as what it is: `zone remove` it, then `zone add PATH --format {form_words(its_form)}`.",
        )
    size = number(one, "inserted", "image", "virtual-size")
    if not node or size <= 0:
        raise MonitorError("its answer lacks the node or the size of the disk")
    return Device(qom, node, its_form, size, label, has_snapshots=bool(one["inserted"]["image"].get("snapshots")))


def form_words(form: str) -> str:
    """Return a format for a command line, FORMAT for one that is not ours."""
    return form if form in ("raw", "qcow2") else "FORMAT"


def devices_on(monitor: Monitor, nodes: Sequence[str]) -> dict[str, str]:
    """Return the devices that use one of these nodes directly, by node."""
    used = {text(one, "inserted", "node-name"): text(one, "qdev") for one in a_list(monitor.execute("query-block"))}
    return {node: qom for node, qom in used.items() if node in nodes and qom}


def _is_of(block: Mapping[str, Any], path: Path) -> bool:
    """Return whether a device's disk is the file. The name that QEMU gives is compared by what it leads to, never opened."""
    name = text(block, "inserted", "file")
    try:
        return bool(name.startswith("/")) and os.path.samefile(name, path)  # noqa: PTH121 (no Path of an untrusted text)
    except (OSError, ValueError):
        return False


def _is_open(pid: int, path: Path) -> bool:
    """Return whether the process has the very file open; also if that cannot be seen. Its name may lead to another one now."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        names = os.listdir(folder)  # noqa: PTH208 (names, as fast as they come)
    except OSError:
        return True
    for name in names:
        try:
            if (folder / name).samefile(path):
                return True
        except OSError:
            continue
    return False


def _type_of(monitor: Monitor, qom: str) -> str:
    if not qom:
        return ""
    try:
        kind = monitor.execute("qom-get", {"path": qom, "property": "type"})
    except MonitorError as error:
        if type(error) is not MonitorError:
            raise
        return ""
    return clean_text(kind, MESSAGE_CHARACTERS) if isinstance(kind, str) else ""
