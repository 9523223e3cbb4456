"""Open a registered disk as what it was registered as (`image.layers.Layout`), for a capture or for a roll-back."""

from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
from snapshot_mcp.providers.local.image.disk import ImageSource, ImageTarget
from snapshot_mcp.providers.local.image.layers import QCOW2, Layout


def open_source(resource: Row, *, allow_fuzzy: bool = False) -> CaptureSource:
    """Open a disk to read it as of one moment. Raises ResourceBusy, NotUsable.

    `allow_fuzzy` is for raw images alone: a mixture of the tables of an image that is being written is no disk at all.
    """
    layout = Layout.parse(resource["layout"])
    if layout.format == QCOW2:
        return ImageSource(resource["path"], label_of(resource), layout)
    return CaptureSource(resource["path"], label_of(resource), allow_fuzzy=allow_fuzzy)


def open_target(resource: Row, *, is_patient: bool = True) -> TargetDisk:
    """Hold a disk to overwrite it. Raises ResourceBusy, NotUsable."""
    layout = Layout.parse(resource["layout"])
    if layout.format == QCOW2:
        return ImageTarget(resource["path"], label_of(resource), layout, is_patient=is_patient)
    return TargetDisk(resource["path"], label_of(resource), is_patient=is_patient)
