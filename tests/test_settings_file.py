"""The settings file as editors and systems leave it: with a mark, in another encoding, unreadable."""

from pathlib import Path

import pytest

from snapshot_mcp.exposure import describe_exposure
from snapshot_mcp.settings import SettingsError, load_settings

TEXT = 'read_only = true # "Größe"\n[tokens.anna]\ntoken = "0123456789abcdef01234567"\nroles = ["viewer"]\n'


def environment(path: Path) -> dict[str, str]:
    return {"SNAPSHOT_MCP_CONFIG": str(path), "SNAPSHOT_MCP_HOME": str(path.parent)}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, newline: str) -> None:
    """It was "Invalid statement (line 1, column 1)"; what the file exposes is seen all the same."""
    path = tmp_path / "config.toml"
    path.write_bytes(TEXT.replace("\n", newline).encode("utf-8-sig"))
    path.chmod(0o644)
    assert load_settings(environment(path)).read_only
    assert "holds secrets" in describe_exposure(environment(path))[0]


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("latin-1", "is not UTF-8 text: line 1 has a byte 0xf6"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, says: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(SettingsError, match=says) as refusal:
        load_settings(environment(path))
    assert refusal.value.hint == "Save it as UTF-8."
    assert describe_exposure(environment(path)) == []


def test_what_nests_too_deeply_is_not_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"x = {'[' * 5000}{']' * 5000}\n")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load_settings(environment(path))


def test_a_home_directory_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid without a passwd entry and without HOME: a traceback, even with SNAPSHOT_MCP_HOME set."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    settings = load_settings({"SNAPSHOT_MCP_HOME": str(tmp_path)})
    assert settings.home == tmp_path
    assert settings.variables == {"SNAPSHOT_MCP_HOME": str(tmp_path)}
    assert settings.reread().home == tmp_path
    with pytest.raises(SettingsError, match="no home directory: set SNAPSHOT_MCP_HOME"):
        load_settings({})
    for variables in ({"SNAPSHOT_MCP_HOME": "~/x"}, {"SNAPSHOT_MCP_CONFIG": "~/x", "SNAPSHOT_MCP_HOME": "/x"}):
        with pytest.raises(SettingsError, match=f"{next(iter(variables))}=.*home directory is unknown"):
            load_settings(variables)
    path = tmp_path / "config.toml"
    path.write_text('[zones.local]\nprovider = "local"\nfolder = "~/zone"\n')
    with pytest.raises(SettingsError, match=r"zones.local.folder: the home directory that `~` stands for is unknown"):
        load_settings(environment(path))
