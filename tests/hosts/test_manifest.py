"""`snapshot-mcp manifest KIND`: what a registry and the hosts install from, of one source, and valid for their validators."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp import Client, StdioServerParameters

from snapshot_mcp import __version__
from snapshot_mcp.cli import main
from snapshot_mcp.cli.manifest import NEXT
from snapshot_mcp.hosts.facts import read_facts
from snapshot_mcp.hosts.packages import KINDS
from tests.hosts.programs import npm
from tests.server.conftest import lab as lab
from tests.server.environments import FOLDER, python_with
from tests.server.lab import Lab, back_up

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def written(kind: str, folder: Path) -> Path:
    assert main(["manifest", kind, "--out", str(folder / kind)]) == 0
    return folder / kind


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


MAIN_FILES = {
    "server.json": "server.json",
    "agent-plugin": "plugin.json",
    "claude-plugin": ".claude-plugin/plugin.json",
    "gemini": "gemini-extension.json",
    "mcpb": "manifest.json",
}


@pytest.mark.parametrize("kind", KINDS)
def test_versions_names_and_descriptions_are_those_of_the_project(kind: str, tmp_path: Path) -> None:
    facts = read(written(kind, tmp_path) / MAIN_FILES[kind])
    assert facts["version"] == PROJECT["version"] == __version__
    assert facts["description"] == PROJECT["description"]
    assert len(facts["description"]) <= 100  # the registry's limit
    name = "io.github.snapshot-mcp/snapshot-mcp" if kind == "server.json" else PROJECT["name"]
    assert facts["name"] == name
    assert f"<!-- mcp-name: {read_facts().registry_name} -->" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert KINDS.keys() == NEXT.keys() == MAIN_FILES.keys()


def test_the_bundle_has_the_licence_and_the_facts_of_the_project(tmp_path: Path) -> None:
    folder = written("mcpb", tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for key in ("name", "version", "description", "license", "license-files", "requires-python", "urls", "scripts"):
        assert project[key] == PROJECT[key], key
    assert set(project["keywords"]) == set(PROJECT["keywords"])
    assert len(project["dependencies"]) == len(PROJECT["dependencies"])
    assert (folder / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_skill_has_the_steps_of_the_prompts(tmp_path: Path) -> None:
    text = (written("agent-plugin", tmp_path) / "skills" / "restore-point" / "SKILL.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["name"] == "restore-point"
    for tool in ("create_snapshots", "wait_for_job", "rollback_to_snapshots", "export_to_volume"):
        assert f"`{tool}`" in body
    assert "{" not in body


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("keep")
    assert main(["manifest", "gemini", "--out", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]
    assert main(["manifest", "gemini", "--out", str(tmp_path / "mine" / "below")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def run(*words: str | Path, environ: dict[str, str] | None = None, folder: Path | None = None) -> str:
    done = subprocess.run(
        [str(one) for one in words],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def clean_environ() -> dict[str, str]:
    """Return variables with which uv and pipx keep what they make among the tests' environments."""
    own = {"UV_CACHE_DIR": str(FOLDER / "uv-cache"), "PIPX_HOME": str(FOLDER / "pipx-home" / "pipx")}
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["server.json", "agent-plugin", "claude-plugin"])
def test_skillsaw_finds_no_error(kind: str, tmp_path: Path) -> None:
    python = python_with("skillsaw", ["skillsaw>=0.22,<0.23"])
    said = run(python.with_name("skillsaw"), "lint", ".", folder=written(kind, tmp_path))
    assert "Errors:   0" in said


@pytest.mark.long
def test_claude_code_validates_its_plugin(tmp_path: Path) -> None:
    environ = npm("@anthropic-ai/claude-code@2", "claude") | {"HOME": str(tmp_path)}
    run("claude", "plugin", "validate", ".", environ=environ, folder=written("claude-plugin", tmp_path))


@pytest.mark.long
def test_gemini_validates_its_extension(tmp_path: Path) -> None:
    environ = npm("@google/gemini-cli", "gemini") | {"HOME": str(tmp_path)}
    run("gemini", "extensions", "validate", written("gemini", tmp_path), environ=environ, folder=tmp_path)


@pytest.mark.long
async def test_the_packed_bundle_starts_and_backs_a_disk_up(tmp_path: Path, lab: Lab) -> None:
    environ = npm("@anthropic-ai/mcpb", "mcpb") | {"HOME": str(tmp_path)}
    folder = written("mcpb", tmp_path)
    run("mcpb", "validate", folder / "manifest.json", environ=environ)
    run("mcpb", "pack", folder, tmp_path / "packed.mcpb", environ=environ)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "packed.mcpb") as bundle:
        bundle.extractall(unpacked)
    launch = read(unpacked / "manifest.json")["server"]["mcp_config"]
    uv = python_with("uv", ["uv"]).with_name("uv")
    arguments = [one.replace("${__dirname}", str(unpacked)) for one in launch["args"]]
    environ = clean_environ() | lab.environ
    run(
        uv, *arguments, "manifest", "mcpb", "--out", tmp_path / "again", environ=environ
    )  # it makes the environment too
    assert contents(tmp_path / "again") == contents(folder)
    await lab.add_disk("web")
    server = StdioServerParameters(command=str(uv), args=arguments, env=environ)
    async with Client(server) as client:
        assert (await back_up(client, "web", "from the bundle")).startswith("ss-")


@pytest.mark.long
def test_uvx_and_pipx_run_the_wheel(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    environ = clean_environ()
    uvx = python_with("uv", ["uv"]).with_name("uvx")
    pipx = python_with("pipx", ["pipx"]).with_name("pipx")
    for words in ((uvx, "--from", wheel), (pipx, "run", "--spec", wheel)):
        said = run(*words, "snapshot-mcp", "--version", environ=environ)
        assert f"snapshot-mcp {PROJECT['version']}" in said
        home = {"SNAPSHOT_MCP_HOME": str(tmp_path / "home"), "SNAPSHOT_MCP_CONFIG": os.devnull}
        shown = run(*words, "snapshot-mcp", "config", "vscode", environ=environ | home)
        assert f'"command": "{"uvx" if words[0] == uvx else "pipx"}"' in shown
