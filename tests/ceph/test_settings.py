"""Settings of a zone on Ceph, without a cluster."""

from pathlib import Path

import pytest

from snapshot_mcp.providers.ceph.settings import cluster_of
from snapshot_mcp.settings import load_settings

FSID = "b858a7cb-8a52-40d9-a15c-8c0c5a64bc4b"
SAME = (
    f"[global]\nfsid = {FSID}\nmon host = 10.0.0.1\n",
    f"# the same\n[global]\n  fsid={FSID.upper()} ; its id\n[client]\nkeyring = /k\n",
)
MONITORS = (
    "[global]\nmon_host = [v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3300/0,v1:10.0.0.2:6789/0]\n",
    "[global]\nmon host = 10.0.0.2, 10.0.0.1\n[client.a]\nmon host = 10.9.9.9\n",
)


def conf(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.conf"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("texts", [SAME, MONITORS])
def test_all_files_of_one_cluster_share_production(tmp_path: Path, texts: tuple[str, str]) -> None:
    one, two = (conf(tmp_path, f"c{number}", text) for number, text in enumerate(texts))
    other = conf(tmp_path, "other", "[global]\nmon host = 10.0.0.3\n")
    zones = "".join(
        f'[zones.{name}]\nprovider = "ceph"\npool = "{pool}"\nconf = "{path}"\n{more}'
        for name, pool, path, more in (
            ("a", "vms", one, "production = true\n"),
            ("b", "vms", two, ""),
            ("c", "vms", other, ""),
            ("d", "other", two, ""),
        )
    )
    config = tmp_path / "config.toml"
    config.write_text(f'{zones}[server]\ndefault_zone = "a"\n' if False else zones, encoding="utf-8")
    config.chmod(0o600)
    settings = load_settings({"SNAPSHOT_MCP_CONFIG": str(config), "SNAPSHOT_MCP_HOME": str(tmp_path / "home")})
    assert settings.production_zones == {"a", "b"}


def test_a_file_that_says_nothing_stands_for_itself(tmp_path: Path) -> None:
    assert cluster_of(tmp_path / "none.conf") == str(tmp_path / "none.conf")
