"""Open a registered disk as what it was registered as (`image.layers.Layout`), for a capture or for a roll-back."""

from collections.abc import Sequence
from pathlib import Path

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.providers.local.clones import Clones
from snapshot_mcp.providers.local.device import DeviceSource, DeviceTarget, other_size, size_at
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
from snapshot_mcp.providers.local.image.disk import ImageSource, ImageTarget
from snapshot_mcp.providers.local.image.layers import DEVICE, QCOW2, Layout


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


def open_target(resource: Row, *, is_patient: bool = True) -> TargetDisk:
    """Hold a disk to overwrite it. Raises ResourceBusy, NotUsable."""
    layout = Layout.parse(resource["layout"])
    if layout.format == QCOW2:
        return ImageTarget(resource["path"], label_of(resource), layout, is_patient=is_patient)
    if layout.format == DEVICE:
        return DeviceTarget(resource["path"], label_of(resource), layout.identity)
    return TargetDisk(resource["path"], label_of(resource), is_patient=is_patient)


def refuse_other_sizes(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> None:
    """Raise NotUsable if one of these restore points is of a block device and has another size than that has now."""
    for snapshot in map(catalogue.snapshot, snapshot_ids):
        resource = snapshot and catalogue.resource(snapshot["resource_id"])
        if snapshot and resource and Layout.parse(resource["layout"]).format == DEVICE:
            size = size_at(Path(resource["path"]))
            if size and size != snapshot["virtual_bytes"]:
                raise other_size(label_of(resource), snapshot["virtual_bytes"], size)
