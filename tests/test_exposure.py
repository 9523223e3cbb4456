"""A settings file that other users can read or change is said on stderr, with the command that mends it; it is no error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_mcp.exposure import describe_exposure
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.settings import load_settings
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners")

TOKEN = '[tokens.anna]\ntoken = "hush-hush-hush-hush-hush"\nroles = ["approver"]\n'
API = '[zones.a]\nprovider = "anchcloud"\nurl = "https://a.example"\nclient_id = "key"\nclient_secret = "hush"\n'
PROXY = API.replace('"hush"', '""') + 'proxy = "http://user:hunter2@proxy.example:3128"\n'


def write(folder: Path, text: str, mode: int) -> dict[str, str]:
    """A settings file; the environment that names it."""
    config = folder / "our config.toml"
    config.write_text(text, encoding="utf-8")
    config.chmod(mode)
    return {"SNAPSHOT_MCP_HOME": str(folder / "home"), "SNAPSHOT_MCP_CONFIG": str(config)}


@pytest.mark.parametrize("text", [TOKEN, API, PROXY], ids=["token", "client_secret", "proxy"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_secrets_that_others_can_read(tmp_path: Path, text: str, mode: int) -> None:
    """ "`config.toml` with secrets wants mode 0600 (a warning names the command)"."""
    environ = write(tmp_path, text, mode)
    (line,) = describe_exposure(environ)
    assert f"holds secrets, and other users can read it (mode {mode:04o})" in line
    subprocess.run(line.partition("Run: ")[2], shell=True, check=True)
    assert describe_exposure(environ) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_rules_that_others_can_change(tmp_path: Path, mode: int) -> None:
    """Whoever can write the file decides whose yes counts."""
    (line,) = describe_exposure(write(tmp_path, "read_only = true\n", mode))
    assert line.startswith("Other users can change ")
    assert line.endswith(f"Run: chmod 600 '{tmp_path}/our config.toml'")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_belongs_to_somebody_else(tmp_path: Path) -> None:
    environ = write(tmp_path, "", 0o600)
    os.chown(environ["SNAPSHOT_MCP_CONFIG"], 12345, -1)
    (line,) = describe_exposure(environ)
    assert "belongs to another user (uid 12345)" in line
    subprocess.run(line.partition("Run: sudo ")[2], shell=True, check=True)
    assert describe_exposure(environ) == []


@pytest.mark.parametrize("text", ["", "read_only = true\n", '[zones.a]\nprovider = "local"\n', "[[[", "tokens = 5"])
def test_without_secrets_everybody_may_read_it(tmp_path: Path, text: str) -> None:
    assert describe_exposure(write(tmp_path, text, 0o644)) == []
    assert describe_exposure({"SNAPSHOT_MCP_CONFIG": str(tmp_path / "nowhere")}) == []


@pytest.mark.parametrize("words", [long(["approvals"]), long(["audit", "--json"]), long(["zone", "list"]), ["serve"]])
def test_every_command_says_it_once_and_goes_on(tmp_path: Path, words: list[str]) -> None:
    """A warning on stderr, not an error; what a program reads on stdout is as before."""
    environ = {**os.environ, **write(tmp_path, TOKEN, 0o644)}
    command = [sys.executable, "-m", "snapshot_mcp", *words]
    done = subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.count("chmod 600") == 1
    assert len(done.stderr.splitlines()) == 1
    assert "chmod" not in done.stdout
    assert "hush" not in done.stderr


def test_the_proxys_password_is_printed_nowhere(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, PROXY.replace('""', '"s"'), 0o600))
    zone = settings.zones["a"]
    assert isinstance(zone, AnchCloudZoneSettings)
    assert zone.proxy.get_secret_value() == "http://user:hunter2@proxy.example:3128"
    shown = [str(settings), repr(settings), str(settings.model_dump()), settings.model_dump_json()]
    assert not [text for text in shown if "hunter2" in text]


def test_a_folder_is_no_settings_file_whose_mode_should_change(tmp_path: Path) -> None:
    """Loading the settings says that it is not a file; a changed mode would break the folder."""
    tmp_path.chmod(0o777)
    assert describe_exposure({"SNAPSHOT_MCP_CONFIG": str(tmp_path)}) == []
