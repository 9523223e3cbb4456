"""A home on a network filesystem is named: SQLite in WAL mode is not safe there."""

from pathlib import Path

import pytest

from snapshot_mcp import app
from snapshot_mcp.ground import mounts

LINES = r"""22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /mnt/a\040share rw,relatime - nfs4 server:/x rw,vers=4.2
31 22 0:41 / /home rw - fuse.sshfs me@there:/ rw
32 31 259:2 / /home/local rw - xfs /dev/sdb rw
33 22 0:42 / /over rw - nfs server:/y rw
34 22 259:3 / /over rw - ext4 /dev/sdc rw
nonsense
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/x", ""),
        ("/mnt/a share/home/not/there", "nfs4"),
        ("/mnt/a shares", ""),
        ("/home/me/.local/share", "fuse.sshfs"),
        ("/home/local/x", ""),
        ("/over/x", ""),
    ],
)
def test_the_filesystem_of_a_folder_is_that_of_the_nearest_mount(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / "mountinfo").write_text(LINES)
    assert mounts.network_filesystem(Path(folder), tmp_path / "mountinfo") == kind


def test_a_home_on_a_network_filesystem_is_said_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mountinfo").write_text(f"1 1 0:1 / {tmp_path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(mounts.network_filesystem, "__defaults__", (tmp_path / "mountinfo",))
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    app.own_settings()
    assert "nfs4" in caplog.text
    assert "SNAPSHOT_MCP_HOME" in caplog.text
