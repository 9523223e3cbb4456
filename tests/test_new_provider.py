"""A new provider is one folder and one line: put into a copy of the repository, it is found everywhere."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from tests.conftest import end_worker
from tests.disks import make_image
from tests.server.lab import data_of

ROOT = Path(__file__).parent.parent
PARTS = ROOT / "tests" / "new_provider"
LINE = '    "attic": "AtticZoneSettings",\n'
ROW = '| `[zones.NAME]` `provider = "attic"` | | a shelf of the attic: `shelf`, `lock_code`, `production` |\n'


class House:
    """A copy of the repository with one more provider, and a home with two names of one zone of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shelf = folder / "shelf"
        rubbish = shutil.ignore_patterns("__pycache__")
        for name in ("snapshot_mcp", "tests", "prompts"):
            shutil.copytree(ROOT / name, folder / name, ignore=rubbish)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(PARTS / "folder", folder / "snapshot_mcp" / "providers" / "attic", ignore=rubbish)
        shutil.copy(PARTS / "attic_client.py", folder)
        (folder / "tests" / "attic").mkdir()
        shutil.copy(PARTS / "subject.py", folder / "tests" / "attic")
        self.insert("snapshot_mcp/providers/__init__.py", "PROVIDERS = {\n", LINE)
        zone = f'provider = "attic"\nshelf = "{self.shelf}"\n'
        (folder / "config.toml").write_text(
            f"[zones.up]\n{zone}production = true\n[zones.above]\n{zone}[zones.local]\nprovider = 'local'\n"
        )

    def insert(self, name: str, after: str, text: str) -> None:
        path = self.folder / name
        before, found, rest = path.read_text(encoding="utf-8").partition(after)
        assert found
        path.write_text(before + found + text + rest, encoding="utf-8")

    @property
    def environ(self) -> dict[str, str]:
        own = {
            key: value for key, value in os.environ.items() if not key.startswith(("SNAPSHOT_MCP_", "PYTEST_", "COV"))
        }
        return {
            **own,
            "PYTHONPATH": str(self.folder),
            "SNAPSHOT_MCP_HOME": str(self.folder / "home"),
            "SNAPSHOT_MCP_CONFIG": str(self.folder / "config.toml"),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False, timeout=500
        )

    def test(self, *words: str) -> tuple[int, str]:
        """Run tests of the copy; return the exit status and what was printed."""
        done = self.run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *words)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    end_worker(house.shelf)


@pytest.mark.anyio
async def test_its_zone_is_served(house: House) -> None:
    (house.folder / "config.toml").chmod(0o600)
    disk = make_image(house.folder / "disk.img")
    script = "import anyio, sys; from pathlib import Path; from snapshot_mcp.providers.attic.zone import AtticZone; "
    script += "anyio.run(AtticZone(Path(sys.argv[1])).add_resource, Path(sys.argv[2]), 'suitcase')"
    assert house.run("-c", script, str(house.shelf), str(disk)).returncode == 0
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "snapshot_mcp", "serve"], env=house.environ, cwd=house.folder
    )
    async with Client(server) as client:
        for zone in ("up", "above"):
            listed = data_of(await client.call_tool("list_resources", {"zone": zone}))
            assert [one["name"] for one in listed["resources"]] == ["suitcase"]


def test_production_holds_under_both_names_and_messages_name_it(house: House) -> None:
    script = """
import os
from snapshot_mcp.settings import Settings, SettingsError, load_settings
settings = load_settings(os.environ)
print(*sorted(settings.production_zones), settings.zones["up"])
path = settings.path
path.with_name("wrong.toml").write_text("[zones.a]")
try:
    load_settings({**os.environ, "SNAPSHOT_MCP_CONFIG": str(path.with_name("wrong.toml"))})
except SettingsError as error:
    print(error.hint)
from snapshot_mcp import app
app.os.name = "nt"
try:
    app.open_local_zone(settings)
except Exception as error:
    print(error.hint)
"""
    done = house.run("-c", script)
    first, no_provider, windows = done.stdout.splitlines()
    assert first.startswith("above up provider='attic'")
    assert no_provider == 'Add provider = "attic" or "local" or "anchcloud" or "ceph".'
    assert windows == 'Use a zone of another provider: "attic", "anchcloud".'


@pytest.mark.long
def test_the_tests_of_documents_and_arrows_ask_for_what_is_missing(house: House) -> None:
    checks = ["tests/test_docs.py", "tests/test_architecture.py", "-k", "attic or provider"]
    house.insert("README.md", "## Settings\n", ROW.replace("`lock_code`, ", ""))
    wrong = house.folder / "snapshot_mcp" / "providers" / "attic" / "wrong.py"
    wrong.write_text("from snapshot_mcp.providers.local import LocalZone\n")
    status, output = house.test(*checks)
    assert status == pytest.ExitCode.TESTS_FAILED
    failed = set(re.findall(r"^FAILED \S+::(\S+)", output, re.MULTILINE))
    assert failed == {
        "test_every_provider_has_a_row_of_the_settings_table_with_its_fields[attic]",
        "test_imports_follow_the_arrows[providers/attic/wrong.py]",
    }
    assert "lock_code" in output
    wrong.unlink()
    house.insert("README.md", "a shelf of the attic: ", "`lock_code`, ")
    status, output = house.test(*checks)
    assert status == pytest.ExitCode.OK, output


@pytest.mark.parametrize("modules", [pytest.param([], marks=pytest.mark.long, id="all")])
def test_the_contract_suite_runs_over_it(house: House, modules: list[str]) -> None:
    paths = [f"tests/contract/{name}" for name in modules] or ["tests/contract"]
    status, output = house.test(*paths, "-k", "attic")
    assert status == pytest.ExitCode.OK, output
    assert re.search(r"\d+ passed", output)
