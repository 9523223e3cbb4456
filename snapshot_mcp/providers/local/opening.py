"""Open a registered disk as what it was registered as (`image.layers.Layout`), for a capture or for a roll-back."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.contract.text import EACH_FOR_ITSELF, MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.clones import Clones
from snapshot_mcp.providers.local.device import DeviceSource, DeviceTarget, other_size, size_at
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.holders import describe, find_writers
from snapshot_mcp.providers.local.image.disk import ImageSource, ImageTarget
from snapshot_mcp.providers.local.image.layers import DEVICE, QCOW2, Layout
from snapshot_mcp.providers.local.machine.disk import MachineCapture, MachineSource, Wanted, refuse_unmonitored


def open_source(resource: Row, *, allow_fuzzy: bool = False, clones: Clones | None = None) -> CaptureSource:
    """Open a disk to read it as of one moment, with what is kept of former moments. Raises ResourceBusy, NotUsable.

    `allow_fuzzy` is for raw images alone: a mixture of the tables of an image that is being written is no disk at all.
    """
    layout = Layout.parse(resource["layout"])
    if layout.format == QCOW2:
        return ImageSource(resource["path"], label_of(resource), layout)
    if layout.format == DEVICE:
        return DeviceSource(resource["path"], label_of(resource), layout.identity)
    return CaptureSource(resource["path"], label_of(resource), allow_fuzzy=allow_fuzzy, clones=clones)


def is_running(resource: Row) -> bool:
    """Return whether the disk has a machine, and that runs: something has its file open for writing.

    Raises ResourceBusy for a running one that may not be asked for an instant.
    """
    machine = Layout.parse(resource["layout"]).machine
    if machine is None or not find_writers(Path(resource["path"])):
        return False
    refuse_unmonitored(machine, label_of(resource))
    return True


def open_sources(
    folder: Path, pairs: Sequence[tuple[Row, Row]], stack: ExitStack, *, allow_fuzzy: bool, clones: Clones
) -> list[CaptureSource | MachineSource]:
    """Open the disks of snapshots that are to be taken (each with its disk) until the stack ends; `folder` is the zone's.

    The disks of a running machine are opened together, as of one instant. Raises ResourceBusy, NotUsable.
    """
    opened: dict[str, CaptureSource | MachineSource] = {}
    together: dict[Machine, list[Wanted]] = {}
    for snapshot, resource in pairs:
        layout, id_ = Layout.parse(resource["layout"]), resource["resource_id"]
        if layout.machine and is_running(resource):
            ids = snapshot["snapshot_id"], snapshot["parent_id"] or "", resource["head_id"] or ""
            one = Wanted(id_, resource["path"], label_of(resource), layout, *ids)
            together.setdefault(layout.machine, []).append(one)
        else:
            opened[id_] = stack.enter_context(open_source(resource, allow_fuzzy=allow_fuzzy, clones=clones))
    for machine, disks in together.items():
        capture = stack.enter_context(MachineCapture(machine, disks, folder))
        for one, source in zip(disks, capture.sources, strict=True):
            opened[one.resource_id] = source
            if len(disks) < len(pairs):
                source.consistency += f", {EACH_FOR_ITSELF}"
    return [opened[resource["resource_id"]] for _, resource in pairs]


def open_target(resource: Row, *, is_patient: bool = True) -> TargetDisk:
    """Hold a disk to overwrite it. Raises ResourceBusy, NotUsable."""
    layout = Layout.parse(resource["layout"])
    if layout.format == QCOW2:
        return ImageTarget(resource["path"], label_of(resource), layout, is_patient=is_patient)
    if layout.format == DEVICE:
        return DeviceTarget(resource["path"], label_of(resource), layout.identity)
    return TargetDisk(resource["path"], label_of(resource), is_patient=is_patient)


def refuse_running(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> None:
    """Raise ResourceBusy, with how to stop it, if the machine of one of these restore points runs; we never stop one."""
    for snapshot in map(catalogue.snapshot, snapshot_ids):
        resource = snapshot and catalogue.resource(snapshot["resource_id"])
        if resource and (machine := Layout.parse(resource["layout"]).machine):
            users = clean_text(describe(find_writers(Path(resource["path"]))), MESSAGE_CHARACTERS)
            if not users:
                continue
            raise ResourceBusy(
                f"The machine of {label_of(resource)} is running, so its disk cannot be rolled back: {users}.",
                hint=f"Nothing was changed. Shut it down from inside, or with: {how_to_stop(machine)}",
            )


def how_to_stop(machine: Machine) -> str:
    """Return the command that asks a machine to shut down."""
    if machine.domain:
        return f"virsh shutdown {quote(machine.domain)}"
    ask = '{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}'
    return f"echo '{ask}' | socat -t 5 - {quote(f'UNIX-CONNECT:{machine.qmp}')}"


def refuse_other_sizes(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> None:
    """Raise NotUsable if one of these restore points is of a block device and has another size than that has now."""
    for snapshot in map(catalogue.snapshot, snapshot_ids):
        resource = snapshot and catalogue.resource(snapshot["resource_id"])
        if snapshot and resource and Layout.parse(resource["layout"]).format == DEVICE:
            size = size_at(Path(resource["path"]))
            if size and size != snapshot["virtual_bytes"]:
                raise other_size(label_of(resource), snapshot["virtual_bytes"], size)
