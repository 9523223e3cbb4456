"""The MCP App: one page that hosts show beside a result, of restore points, coverage, progress and what waits for a person.

It shows and never approves: it calls only tools and resources that read. Each tool in `TOOLS` names it in its `_meta`, for every
client alike, because the list of tools may be cached for all; hosts without Apps pass over it.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from mcp.server.apps import APP_MIME_TYPE, Apps
from mcp.server.mcpserver.resources import FunctionResource

URI = "ui://snapshot-mcp/card"
META: dict[str, Any] = {"ui": {"resourceUri": URI}}
TOOLS = frozenset(
    {"list_resources", "show_chain", "wait_for_job", "list_jobs", "delete_snapshot", "rollback_to_snapshots"}
)
"""The tools whose results it shows."""

SCRIPTS = ("bridge", "pieces", "points", "coverage", "jobs", "decision", "main")
"""In the order in which they are joined."""


def build_apps() -> Apps:
    """Return the extension with the page, which is put together when a host asks for it."""
    apps = Apps()
    apps.add_resource(
        FunctionResource(
            uri=URI,
            name=URI,
            title="Restore points",
            description="Restore points over time, coverage, progress, and what waits for a person.",
            mime_type=APP_MIME_TYPE,
            meta={"ui": {"prefersBorder": True}},
            fn=page,
        )
    )
    return apps


@cache
def page() -> str:
    """Return the page: self-contained, and its policy admits this one script and style, and no network."""
    style = _read("style.css")
    script = '"use strict";\n' + "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    return Template(_read("page.html")).substitute(
        style=style, style_hash=_hash(style), script=script, script_hash=_hash(script)
    )


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
