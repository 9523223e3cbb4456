"""Put an instant between a machine's devices and their disks, and take it out again.

    device ── pass ── cbw ── node (the disk's own)          before a write the filter copies the old data to the scratch file
                       │└── scratch (a file without a name)
                     access ── the export that is read      the disk as of the instant

All devices get their `pass` first, which changes nothing; then one `blockdev-reopen` puts every `cbw` below its `pass` while all
disks are drained: that is the instant, of all of them. If the old data cannot be saved, QEMU gives up the instant, not the write.

Every node has a fixed name with the disk's number, and a bitmap `under` marks the disk's own node, so `undo` needs nothing but
what QEMU says. It is the only way out: after a success, after a failure, and for what a worker that was killed left behind.
"""

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.providers.local.machine.devices import Device, devices_on
from snapshot_mcp.providers.local.machine.monitor import Monitor, MonitorError, MonitorGone, a_list, text

PREFIX: Final = "snapshot-mcp-"
PASS, CBW, ACCESS, SCRATCH, UNDER, EXPORT = (
    f"{PREFIX}{one}-" for one in ("pass", "cbw", "access", "scratch", "under", "export")
)
CBW_SECONDS = 10
"""How long a guest's write waits at most for its old data to be saved; then the backup is given up."""

DELETE_TRIES, DELETE_SECONDS = 300, 0.01
"""QEMU uses a node for some milliseconds after the export that read it is gone."""


def insert(monitor: Monitor, number: int, device: Device, scratch_fd: int, bitmap: str) -> None:
    """Prepare one disk: everything but the instant. `bitmap` ("": none) records what is written from now on.

    Raises MonitorError.
    """
    node = device.node
    monitor.execute("block-dirty-bitmap-add", {"node": node, "name": f"{UNDER}{number}", "disabled": True})
    if bitmap:
        is_persistent = device.format == "qcow2"
        monitor.execute("block-dirty-bitmap-add", {"node": node, "name": bitmap, "persistent": is_persistent})
    fdset = monitor.execute("add-fd", {"opaque": PREFIX}, scratch_fd)
    if not isinstance(fdset, dict) or not isinstance(fdset.get("fdset-id"), int):
        raise MonitorError("it did not say where it put the scratch file")
    scratch = {"driver": "file", "filename": f"/dev/fdset/{fdset['fdset-id']}", "node-name": f"{SCRATCH}{number}"}
    monitor.execute("blockdev-add", scratch)
    monitor.execute(
        "blockdev-add",
        {
            "driver": "copy-before-write",
            "node-name": f"{CBW}{number}",
            "file": node,
            "target": f"{SCRATCH}{number}",
            "on-cbw-error": "break-snapshot",
            "cbw-timeout": CBW_SECONDS,
            "discard": "unmap",
        },
    )
    monitor.execute("blockdev-add", _pass(number, node))
    monitor.execute("qom-set", {"path": device.qom, "property": "drive", "value": f"{PASS}{number}"})


def take_instant(monitor: Monitor, count: int) -> None:
    """Have all prepared disks keep what they hold now. Raises MonitorError."""
    monitor.execute("blockdev-reopen", {"options": [_pass(number, f"{CBW}{number}") for number in range(count)]})


def serve(monitor: Monitor, listener_fd: int) -> None:
    """Start QEMU's NBD server on a socket that nobody else can connect to. Raises NotUsable, MonitorError."""
    name = (
        f"{PREFIX}{secrets.token_hex(8)}"  # never one that a killed worker gave: QEMU would close what it had under it
    )
    monitor.execute("getfd", {"fdname": name}, listener_fd)
    address = {"type": "fd", "data": {"str": name}}
    try:
        monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
    except MonitorGone:
        raise
    except MonitorError as error:
        raise NotUsable(
            f"QEMU's NBD server is in use, by a migration or another backup: {error}.",
            hint="Try again when it has ended.",
        ) from None


def export(monitor: Monitor, number: int, device: Device, name: str, known: str) -> None:
    """Serve the disk as of the instant under a name, and what was written since the bitmap `known`, unless that is "".

    That bitmap goes on; a copy is served. Raises MonitorError.
    """
    under = f"{UNDER}{number}"
    if known:
        monitor.execute("block-dirty-bitmap-merge", {"node": device.node, "target": under, "bitmaps": [known]})
    access = {"driver": "snapshot-access", "node-name": f"{ACCESS}{number}", "file": f"{CBW}{number}"}
    monitor.execute("blockdev-add", access)
    served = {"type": "nbd", "id": f"{EXPORT}{number}", "node-name": f"{ACCESS}{number}", "name": name}
    with_bitmap = {"bitmaps": [{"node": device.node, "name": under}]} if known else {}
    monitor.execute("block-export-add", served | {"writable": False} | with_bitmap)


def bitmaps_of(monitor: Monitor, node: str) -> list[str]:
    """Return the names of a node's bitmaps that can be used. Raises MonitorError."""
    return [
        text(one, "name")
        for found in _nodes(monitor)
        if text(found, "node-name") == node
        for one in a_list(found.get("dirty-bitmaps", []))
        if one.get("recording") is True and not one.get("inconsistent")
    ]


def remove_bitmaps(monitor: Monitor, node: str, prefix: str, keep: Collection[str] = ()) -> None:
    """Remove the bitmaps of a node whose names begin so, but for some. Raises MonitorError."""
    for found in _nodes(monitor):
        if text(found, "node-name") != node:
            continue
        for name in (text(one, "name") for one in a_list(found.get("dirty-bitmaps", []))):
            if name.startswith(prefix) and name not in keep:
                monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


def undo(monitor: Monitor, numbers: Collection[int] | None = None) -> None:
    """Take out what is ours: of these disks, or everything. Bitmaps of restore points stay. Raises MonitorError.

    The order is that of `insert` backwards; each step is done only if what it removes is there.
    """
    nodes = _nodes(monitor)
    here = {name for one in nodes if (name := text(one, "node-name")).startswith(PREFIX)}
    own = {name: text(one, "node-name") for one in nodes for name in _marks_on(one)}
    found = {_number(one) for one in (*here, *own)} - {-1}
    ours = sorted(found if numbers is None else found & set(numbers))
    exports = [text(one, "id") for one in a_list(monitor.execute("query-block-exports"))]
    for number in ours:
        if (id_ := f"{EXPORT}{number}") in exports:
            monitor.execute("block-export-del", {"id": id_, "mode": "hard"})
            exports.remove(id_)
    if here and found <= set(ours) and not exports:
        _stop_server(monitor)
    for number in ours:
        _take_out(monitor, number, here, own.get(f"{UNDER}{number}", ""))
    for number in ours:
        if node := own.get(f"{UNDER}{number}"):
            monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": f"{UNDER}{number}"})
    _forget_scratch_files(monitor)


def _take_out(monitor: Monitor, number: int, here: Collection[str], own_node: str) -> None:
    """Give one device its own disk back, and delete our nodes."""
    if (access := f"{ACCESS}{number}") in here:
        _delete(monitor, access)
    if (passing := f"{PASS}{number}") in here:
        if own_node:
            monitor.execute("blockdev-reopen", {"options": [_pass(number, own_node)]})
        if qom := devices_on(monitor, [passing]).get(passing):
            monitor.execute("qom-set", {"path": qom, "property": "drive", "value": own_node})
        _delete(monitor, passing)
    for one in (f"{CBW}{number}", f"{SCRATCH}{number}"):
        if one in here:
            _delete(monitor, one)


def _pass(number: int, below: str) -> dict[str, Any]:
    return {"driver": "raw", "node-name": f"{PASS}{number}", "file": below, "discard": "unmap"}


def _delete(monitor: Monitor, node: str) -> None:
    for tries_left in reversed(range(DELETE_TRIES)):
        try:
            monitor.execute("blockdev-del", {"node-name": node})
            return
        except MonitorGone:
            raise
        except MonitorError:
            if not tries_left:
                raise
        time.sleep(DELETE_SECONDS)


def _stop_server(monitor: Monitor) -> None:
    """Stop the NBD server, if it runs: it is ours, since our nodes are there and nothing else is served."""
    try:
        monitor.execute("nbd-server-stop")
    except MonitorGone:
        raise
    except MonitorError:
        pass  # it does not run


def _forget_scratch_files(monitor: Monitor) -> None:
    """Have QEMU close the scratch files that nothing uses any more."""
    for one in a_list(monitor.execute("query-fdsets")):
        if any(text(fd, "opaque") == PREFIX for fd in a_list(one.get("fds", []))):
            monitor.execute("remove-fd", {"fdset-id": one.get("fdset-id")})


def _nodes(monitor: Monitor) -> Sequence[dict[str, Any]]:
    return a_list(monitor.execute("query-named-block-nodes", {"flat": True}))


def _marks_on(node: dict[str, Any]) -> list[str]:
    marks = (text(one, "name") for one in a_list(node.get("dirty-bitmaps", [])))
    return [one for one in marks if one.startswith(UNDER)]


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1
