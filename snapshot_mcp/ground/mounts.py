"""Which filesystem and which drive a file lies on, as far as the system says (Linux). Blocking; it opens nothing there."""

import os
import re
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|ocfs2|fuse\.(sshfs|glusterfs|rclone|davfs2?|ceph|s3fs|juicefs)"
)
"""Types whose files other machines can change: SQLite's shared memory works on one machine only (sqlite.org/wal.html)."""


def network_filesystem(folder: Path, mountinfo: Path = MOUNTINFO) -> str:
    """Return the type of the network filesystem that a folder, which need not exist, lies on; "" for a local one."""
    try:
        lines = mountinfo.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    path, best, kind = folder.resolve(), -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        mount_point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4]))
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= best:
            best, kind = len(mount_point.parts), after.split(" ")[0]
    return kind if NETWORK.fullmatch(kind) else ""


def drive_of(path: Path) -> str:
    """Return what tells drives apart: the device that a file's filesystem is a part of, or the filesystem. Raises OSError."""
    number = path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    device = Path("/sys/dev/block", name)
    if not device.exists():
        return name
    found = device.resolve()
    return str(found.parent if (found / "partition").exists() else found)
