"""The hosts: for each its file, the place in it, the shape of an entry, and its install link if it has one."""

import base64
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from snapshot_mcp.hosts.launch import NAME, Launch

Entry = dict[str, Any]

TITLE = "Volume snapshots: back up disks, bring them back, with a person's yes before anything is destroyed."

START_SECONDS = 30
"""How long Codex waits for the server's start; a machine that is busy with a backup is slow."""

CALL_SECONDS = 300
"""How long Goose waits for an answer; a call answers within a minute."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A server over HTTP. `variable` names the variable of the host that holds the caller's token; "" for none."""

    url: str
    variable: str = ""


def _no_link(entry: Entry) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """A host. `over_http` is None if it starts programs only; `reference` writes a variable of the host, "" if it reads none."""

    name: str
    title: str
    file: Callable[[], Path]
    place: str
    over_stdio: Callable[[Launch], Entry]
    over_http: Callable[[Remote, dict[str, str]], Entry] | None
    format: Literal["json", "toml", "yaml"] = "json"
    reference: str = ""
    link: Callable[[Entry], str] = _no_link
    after: str = "Restart it."

    def entry(self, launch: Launch) -> Entry:
        """Return the entry that starts the server."""
        return self.over_stdio(launch)

    def remote_entry(self, remote: Remote) -> Entry:
        """Return the entry for a server over HTTP; the token is a reference to a variable, never its value."""
        assert self.over_http is not None
        headers = {}
        if remote.variable and self.reference:
            headers = {"Authorization": f"Bearer {self.reference.format(remote.variable)}"}
        return self.over_http(remote, headers)


def _command(launch: Launch) -> Entry:
    entry: Entry = {"command": launch.words[0]}
    if launch.words[1:]:
        entry["args"] = list(launch.words[1:])
    if launch.environ:
        entry["env"] = dict(launch.environ)
    return entry


def _typed(launch: Launch) -> Entry:
    return {"type": "stdio", **_command(launch)}


def _codex(launch: Launch) -> Entry:
    return {**_command(launch), "startup_timeout_sec": START_SECONDS}


def _zed(launch: Launch) -> Entry:
    return {"source": "custom", **_command(launch)}


def _goose(launch: Launch) -> Entry:
    about = {"type": "stdio", "name": NAME, "description": TITLE, "enabled": True, "timeout": CALL_SECONDS}
    return {**about, "cmd": launch.words[0], "args": list(launch.words[1:]), "envs": dict(launch.environ)}


def _url(key: str, **more: str) -> Callable[[Remote, dict[str, str]], Entry]:
    """Return what builds an entry that has the URL under `key`."""

    def build(remote: Remote, headers: dict[str, str]) -> Entry:
        return {**more, key: remote.url, **({"headers": headers} if headers else {})}

    return build


def _codex_url(remote: Remote, headers: dict[str, str]) -> Entry:
    return {"url": remote.url, **({"bearer_token_env_var": remote.variable} if remote.variable else {})}


def _goose_url(remote: Remote, headers: dict[str, str]) -> Entry:
    about = {"type": "streamable_http", "name": NAME, "description": TITLE, "enabled": True, "timeout": CALL_SECONDS}
    keys = [remote.variable] if headers else []
    return {**about, "uri": remote.url, "headers": headers, "envs": {}, "env_keys": keys}


def _packed(entry: Entry) -> str:
    return base64.b64encode(json.dumps(entry).encode()).decode()


def _vscode_link(entry: Entry) -> str:
    return f"vscode:mcp/install?{quote(json.dumps({'name': NAME, **entry}), safe='')}"


def _cursor_link(entry: Entry) -> str:
    return f"cursor://anysphere.cursor-deeplink/mcp/install?{urlencode({'name': NAME, 'config': _packed(entry)})}"


def _lmstudio_link(entry: Entry) -> str:
    return f"lmstudio://add_mcp?{urlencode({'name': NAME, 'config': _packed(entry)})}"


GOOSE_PROGRAMS = ("uvx", "npx", "jbang", "docker", "cu")
"""The only programs that Goose starts from a link."""


def _goose_link(entry: Entry) -> str:
    if entry.get("cmd", GOOSE_PROGRAMS[0]) not in GOOSE_PROGRAMS:
        return ""
    about = [("id", NAME), ("name", NAME), ("description", TITLE)]
    if "uri" in entry:
        return f"goose://extension?{urlencode([('url', entry['uri']), ('type', 'streamable_http'), *about])}"
    words = [("cmd", entry["cmd"]), *(("arg", one) for one in entry["args"])]
    return f"goose://extension?{urlencode([*words, *about], quote_via=quote)}"


def _home(*parts: str, variable: str = "", folder: str = "") -> Callable[[], Path]:
    """Return what finds a file below the home folder, or below the folder that the host's own variable names."""

    def find() -> Path:
        if variable and (told := os.environ.get(variable)):
            return Path(told) / parts[-1]
        return Path.home().joinpath(folder, *parts)

    return find


def _application(name: str, *parts: str) -> Callable[[], Path]:
    """Return what finds a file in the folder that a desktop program has for its settings."""

    def find() -> Path:
        if sys.platform == "darwin":
            return Path.home().joinpath("Library", "Application Support", name, *parts)
        if sys.platform == "win32":
            return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")).joinpath(name, *parts)
        return _config(name, *parts)()

    return find


def _config(*parts: str) -> Callable[[], Path]:
    """Return what finds a file below `~/.config`, or below `XDG_CONFIG_HOME`."""
    return lambda: Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").joinpath(*parts)


def _goose_file() -> Path:
    if sys.platform == "win32":
        return _application("Block", "goose", "config", "config.yaml")()
    return Path.home() / ".config" / "goose" / "config.yaml"


def _zed_file() -> Path:
    is_mac = sys.platform == "darwin"
    return Path.home() / ".config" / "zed" / "settings.json" if is_mac else _config("zed", "settings.json")()


HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host(
            "claude-code",
            "Claude Code",
            _home(".claude.json", variable="CLAUDE_CONFIG_DIR"),
            "mcpServers",
            _typed,
            _url("url", type="http"),
            reference="${{{}:-}}",
            after="It is there in the next session.",
        ),
        Host(
            "claude-desktop",
            "Claude Desktop",
            _application("Claude", "claude_desktop_config.json"),
            "mcpServers",
            _command,
            None,
        ),
        Host(
            "vscode",
            "VS Code",
            _application("Code", "User", "mcp.json"),
            "servers",
            _typed,
            _url("url", type="http"),
            reference="${{env:{}}}",
            link=_vscode_link,
            after="Start it there with “MCP: List Servers”. In a workspace the file is .vscode/mcp.json.",
        ),
        Host(
            "cursor",
            "Cursor",
            _home(".cursor", "mcp.json"),
            "mcpServers",
            _command,
            _url("url"),
            reference="${{env:{}}}",
            link=_cursor_link,
        ),
        Host(
            "codex",
            "Codex",
            _home(".codex", "config.toml", variable="CODEX_HOME"),
            "mcp_servers",
            _codex,
            _codex_url,
            format="toml",
            reference="{}",
            after="It is there in the next session.",
        ),
        Host(
            "gemini",
            "Gemini CLI",
            _home(".gemini", "settings.json"),
            "mcpServers",
            _command,
            _url("httpUrl"),
            reference="${{{}}}",
            after="It is there in the next session.",
        ),
        Host(
            "goose",
            "Goose",
            _goose_file,
            "extensions",
            _goose,
            _goose_url,
            format="yaml",
            reference="${{{}}}",
            link=_goose_link,
            after="It is there in the next session.",
        ),
        Host(
            "lmstudio",
            "LM Studio",
            _home(".lmstudio", "mcp.json"),
            "mcpServers",
            _command,
            _url("url"),
            link=_lmstudio_link,
        ),
        Host("zed", "Zed", _zed_file, "context_servers", _zed, _url("url")),
        Host(
            "windsurf",
            "Windsurf",
            _home(".codeium", "windsurf", "mcp_config.json"),
            "mcpServers",
            _command,
            _url("serverUrl"),
            reference="${{env:{}}}",
            after="Refresh the list of MCP servers in Cascade.",
        ),
    )
}
"""Each host by the name that `snapshot-mcp config` has for it."""


def claude_code_line(launch: Launch | None, remote: Remote | None) -> str:
    """Return the command that adds the server to Claude Code; its options come before the name."""
    words = ["claude", "mcp", "add", "--scope", "user"]
    if remote:
        reference = HOSTS["claude-code"].reference.format(remote.variable)
        header = ["--header", f"Authorization: Bearer {reference}"] if remote.variable else []
        return shlex.join([*words, "--transport", "http", NAME, remote.url, *header])
    assert launch is not None
    options = [part for key, value in launch.environ.items() for part in ("--env", f"{key}={value}")]
    return shlex.join([*words, NAME, *options, "--", *launch.words])
