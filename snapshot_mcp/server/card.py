"""The MCP App: one page that hosts show beside a result, of restore points, coverage, progress and what waits for a person.

It shows and never approves: it calls only tools that read. Hosts that do not declare Apps see nothing of it, so their list of
tools costs no more.
"""

from pathlib import Path
from typing import Any

from mcp.server.apps import APP_MIME_TYPE, Apps, client_supports_apps
from mcp.server.mcpserver.resources import FileResource
from mcp.types import ListToolsResult

URI = "ui://snapshot-mcp/restore-points"
TOOLS = frozenset(
    {"list_resources", "show_chain", "wait_for_job", "list_jobs", "delete_snapshot", "rollback_to_snapshots"}
)
"""The tools whose results it shows."""

PAGE = Path(__file__).with_name("card.html")


def build_apps() -> Apps:
    """Return the extension with the page, which is read when a host asks for it."""
    apps = Apps()
    apps.add_resource(
        FileResource(
            uri=URI,
            name=URI,
            title="Restore points",
            description="Restore points over time, coverage, progress, and what waits for a person.",
            mime_type=APP_MIME_TYPE,
            path=PAGE,
            encoding="utf-8",
            meta={"ui": {"prefersBorder": True}},
        )
    )
    return apps


async def name_card(ctx: Any, call_next: Any) -> Any:
    """Name the page in the list of tools, for hosts that show such pages (middleware)."""
    result = await call_next(ctx)
    if ctx.method != "tools/list" or not client_supports_apps(ctx):
        return result
    listed = result if isinstance(result, ListToolsResult) else ListToolsResult.model_validate(result)
    meta = {"ui": {"resourceUri": URI}}
    tools = [
        one.model_copy(update={"meta": {**(one.meta or {}), **meta}} if one.name in TOOLS else {})
        for one in listed.tools
    ]
    return listed.model_copy(update={"tools": tools})
