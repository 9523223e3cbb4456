"""The operator's file is read again when it has changed, however it was changed, and only then."""

import os
from pathlib import Path

import pytest

from snapshot_mcp.operator_file import OperatorFile
from snapshot_mcp.settings import SettingsError, load_settings


def environ(folder: Path, *, is_named: bool = True) -> dict[str, str]:
    found = {"SNAPSHOT_MCP_HOME": str(folder / "home")}
    return found | ({"SNAPSHOT_MCP_CONFIG": str(folder / "config.toml")} if is_named else {})


def write(path: Path, number: int) -> None:
    path.write_text(f"[guard]\ndeletions_per_hour = {number}\n", encoding="utf-8")


def test_every_edit_is_seen_at_once_even_within_one_tick_of_the_files_clock(tmp_path: Path) -> None:
    """ "Read again like the rest of the operator's file": the same length, the same second, the same inode."""
    config = tmp_path / "config.toml"
    write(config, 10)
    file = OperatorFile(load_settings(environ(tmp_path)))
    for number in range(10, 30):
        write(config, number)
        assert file.now().guard.deletions_per_hour == number
        assert file.now() is file.now()


def test_a_replaced_and_a_backdated_file_are_seen(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    write(config, 10)
    before = config.stat()
    file = OperatorFile(load_settings(environ(tmp_path)))
    assert file.now().guard.deletions_per_hour == 10
    write(tmp_path / "draft", 11)
    os.utime(tmp_path / "draft", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "draft").replace(config)
    assert file.now().guard.deletions_per_hour == 11
    write(config, 12)
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.now().guard.deletions_per_hour == 12


def test_what_cannot_be_read_is_an_error_until_it_is_mended(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    write(config, 10)
    file = OperatorFile(load_settings(environ(tmp_path)))
    for breaking in (lambda: config.write_text("[[["), lambda: config.write_text("x = 1"), config.unlink):
        breaking()
        for _ in range(2):
            with pytest.raises(SettingsError):
                file.now()
        assert file.last_good.guard.deletions_per_hour == 10
    write(config, 11)
    assert file.now().guard.deletions_per_hour == 11


def test_a_file_that_nobody_named_may_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config = tmp_path / "snapshot-mcp" / "config.toml"
    config.parent.mkdir()
    settings = load_settings(environ(tmp_path, is_named=False))
    assert settings.path == config
    file = OperatorFile(settings)
    assert file.now().guard.deletions_per_hour == 10
    write(config, 11)
    assert file.now().guard.deletions_per_hour == 11
    config.unlink()
    assert file.now().guard.deletions_per_hour == 10
