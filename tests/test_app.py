"""The composition root says what cannot be had."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.settings import SettingsError, load_settings
from tests.marks import long


def test_on_windows_the_embedded_zone_says_that_it_does_not_work_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing set there is one zone, `local` (README.md, "Settings")."""
    settings = load_settings({"SNAPSHOT_MCP_HOME": str(tmp_path)})
    monkeypatch.setattr(app.os, "name", "nt")
    with pytest.raises(Unsupported, match="Windows"):
        app.open_local_zone(settings)


@pytest.mark.parametrize(
    "command",
    [long(["approvals"]), long(["audit", "verify"]), long(["zone", "list"]), long(["zone", "keys"]), ["serve"]],
)
@pytest.mark.parametrize("place", ["file", long("file/below")])
def test_a_home_that_is_a_file_is_an_error_of_every_command(tmp_path: Path, command: list[str], place: str) -> None:
    tmp_path.joinpath("file").write_text("not a folder")
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(tmp_path / place)}
    done = subprocess.run(
        [sys.executable, "-m", "snapshot_mcp", *command],
        env=environ,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"The data folder '{tmp_path / place}' cannot be used: Not a directory." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="not configured: only root can become another user")
def test_a_home_of_another_user_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "private"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    os.seteuid(65534)
    try:
        with pytest.raises(SettingsError, match="cannot be used: Permission denied"):
            app.own_settings()
    finally:
        os.seteuid(0)
    assert app.own_settings().home == home
