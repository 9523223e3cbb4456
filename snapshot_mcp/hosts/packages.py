"""The files of each package format, made of the metadata, the instructions and the prompts. Only `write` writes.

Formats: the MCP registry's server.json (2025-12-11), Agent Plugins 1.0, Claude Code's plugin with its marketplace, Gemini CLI's
extension, and MCPB 0.4 with a server that `uv` runs.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snapshot_mcp.ground.prompt_files import PACKAGE, prompts_folder, read_prompts
from snapshot_mcp.hosts.facts import LICENCE_FILE, TITLE, Facts
from snapshot_mcp.hosts.launch import NAME, PATHS

SKILL = "restore-point"
SKILL_PATH = f"skills/{SKILL}/SKILL.md"
UVX = {"command": "uvx", "args": [NAME]}

Files = dict[str, str | bytes]


def server_json(facts: Facts) -> Files:
    """Return the entry of the MCP registry."""
    meaning = {"SNAPSHOT_MCP_CONFIG": "The operator's settings file", "SNAPSHOT_MCP_HOME": "The folder for the data"}
    variables = [{"name": one, "description": meaning[one], "isRequired": False} for one in PATHS]
    entry = {
        "$schema": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json",
        "name": facts.registry_name,
        "title": TITLE,
        "description": facts.description,
        "version": facts.version,
        "repository": {"url": facts.repository, "source": "github"},
        "packages": [
            {
                "registryType": "pypi",
                "identifier": NAME,
                "version": facts.version,
                "runtimeHint": "uvx",
                "transport": {"type": "stdio"},
                "environmentVariables": variables,
            }
        ],
    }
    return {"server.json": _json(entry)}


def agent_plugin(facts: Facts) -> Files:
    """Return a plugin for the hosts that take Agent Plugins 1.0."""
    schemas = "https://agent-plugins.org/schemas/1.0.0"
    plugin = {
        "$schema": f"{schemas}/plugin.schema.json",
        "name": NAME,
        "version": facts.version,
        "description": facts.description,
        "repository": facts.repository,
        "license": facts.licence,
        "keywords": list(facts.keywords),
    }
    servers = {"$schema": f"{schemas}/mcp.schema.json", "mcpServers": {NAME: {"type": "stdio", **UVX}}}
    return {"plugin.json": _json(plugin), "mcp.json": _json(servers), SKILL_PATH: skill()}


def claude_plugin(facts: Facts) -> Files:
    """Return Claude Code's plugin, and a marketplace that has it alone."""
    author = {"name": facts.owner}
    plugin = {
        "name": NAME,
        "displayName": TITLE,
        "version": facts.version,
        "description": facts.description,
        "author": author,
        "repository": facts.repository,
        "license": facts.licence,
        "keywords": list(facts.keywords),
        "mcpServers": {NAME: UVX},
    }
    listed = {"name": NAME, "source": "./", "description": facts.description}
    market = {"name": NAME, "owner": author, "description": facts.description, "plugins": [listed]}
    return {
        ".claude-plugin/plugin.json": _json(plugin),
        ".claude-plugin/marketplace.json": _json(market),
        SKILL_PATH: skill(),
    }


def gemini(facts: Facts) -> Files:
    """Return Gemini CLI's extension."""
    extension = {
        "name": NAME,
        "version": facts.version,
        "description": facts.description,
        "mcpServers": {NAME: UVX},
        "contextFileName": "GEMINI.md",
    }
    return {"gemini-extension.json": _json(extension), "GEMINI.md": skill(has_head=False)}


def mcpb(facts: Facts) -> Files:
    """Return a bundle with the program's source: `mcpb pack` makes one file of it, and the host runs it with uv."""
    manifest = {
        "manifest_version": "0.4",
        "name": NAME,
        "display_name": TITLE,
        "version": facts.version,
        "description": facts.description,
        "author": {"name": facts.owner},
        "repository": {"type": "git", "url": facts.repository},
        "license": facts.licence,
        "keywords": list(facts.keywords),
        "server": {
            "type": "uv",
            "entry_point": "snapshot_mcp/__main__.py",
            "mcp_config": {"command": "uv", "args": ["run", "--directory", "${__dirname}", NAME]},
        },
        "tools_generated": True,
        "compatibility": {"platforms": ["linux", "darwin"], "runtimes": {"python": facts.python}},
    }
    project = {"pyproject.toml": _project(facts), LICENCE_FILE: facts.licence_text}
    return {"manifest.json": _json(manifest), **project, **_source()}


KINDS: Mapping[str, Callable[[Facts], Files]] = {
    "server.json": server_json,
    "agent-plugin": agent_plugin,
    "claude-plugin": claude_plugin,
    "gemini": gemini,
    "mcpb": mcpb,
}


def skill(*, has_head: bool = True) -> str:
    """Return the skill: a restore point before a risky change, and the way back; its steps are those of the prompts."""
    bodies = {one.name: one.body for one in read_prompts()}
    before = bodies["back_up_disk"].format(disk="that the change touches", reason="what is about to be changed")
    after = bodies["restore_disk"].format(disk="that was changed", moment="the restore point from before the change")
    head = (
        f"---\nname: {SKILL}\ndescription: Take a restore point of a disk before a risky change, such as an upgrade, a migration "
        "or a clean-up, and bring it back when the change failed. Uses the tools of snapshot-mcp.\n---\n\n"
    )
    return (
        f"{head if has_head else ''}# A restore point before a risky change\n\n"
        f"## Before the change\n\n{before}\n\n"
        f"## When it failed\n\n{after}\n"
    )


def _source() -> Files:
    """Return the program's own files as they are installed."""
    files: Files = {}
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        if path.is_file() and "__pycache__" not in inside.parts and inside.parts[0] != "prompts":
            files[f"snapshot_mcp/{inside.as_posix()}"] = path.read_bytes()
    for path in sorted(prompts_folder().glob("*.md")):
        files[f"snapshot_mcp/prompts/{path.name}"] = path.read_bytes()
    return files


def _project(facts: Facts) -> str:
    """Return the bundle's `pyproject.toml`; once installed it has the same facts. A JSON text is a TOML string too."""
    requires = "".join(f"    {json.dumps(one)},\n" for one in facts.requires)
    return (
        '[build-system]\nrequires = ["hatchling>=1.27,<2"]\nbuild-backend = "hatchling.build"\n\n'
        f'[project]\nname = "{NAME}"\nversion = "{facts.version}"\ndescription = {json.dumps(facts.description)}\n'
        f'license = "{facts.licence}"\nlicense-files = ["{LICENCE_FILE}"]\nkeywords = {json.dumps(facts.keywords)}\n'
        f'requires-python = "{facts.python}"\ndependencies = [\n{requires}]\n\n'
        f'[project.urls]\nRepository = "{facts.repository}"\n\n'
        f'[project.scripts]\n{NAME} = "snapshot_mcp.cli:main"\n\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["snapshot_mcp"]\n'
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write(files: Files, folder: Path) -> None:
    """Write the files into a folder that is empty or not there yet. Raises OSError."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
