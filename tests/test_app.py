"""The composition root says what cannot be had."""

from pathlib import Path

import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.settings import load_settings


def test_on_windows_the_embedded_zone_says_that_it_does_not_work_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing set there is one zone, `local` (README.md, "Settings")."""
    settings = load_settings({"SNAPSHOT_MCP_HOME": str(tmp_path)})
    monkeypatch.setattr(app.os, "name", "nt")
    with pytest.raises(Unsupported, match="Windows"):
        app.open_local_zone(settings)
