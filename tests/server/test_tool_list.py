"""The tool list is pinned: other people's configurations and checks rely on it (ARCHITECTURE.md, "The MCP face")."""

import json
from typing import Any

import pytest
from mcp.types import Tool

from snapshot_mcp import app
from tests.server.lab import Lab, text_of

TOOLS: dict[str, tuple[set[str], str]] = {
    "list_snapshots": (
        {
            "snapshot_ids",
            "resource_id",
            "snapshot_type",
            "status",
            "search",
            "root_id",
            "tags",
            "verbose",
            "offset",
            "limit",
        },
        "read",
    ),
    "list_resources": ({"kind", "search", "status", "offset", "limit"}, "read"),
    "create_snapshots": ({"resource_ids", "name", "full", "wait_seconds"}, "write"),
    "delete_snapshot": ({"snapshot_id", "plan_only", "wait_seconds"}, "destroy"),
    "rollback_to_snapshots": ({"snapshot_ids", "safety_snapshot", "plan_only", "wait_seconds"}, "destroy"),
    "export_to_image": ({"snapshot_id", "image_name", "wait_seconds"}, "write"),
    "export_to_volume": ({"snapshot_id", "volume_name", "wait_seconds"}, "write"),
    "wait_for_job": ({"job_ids", "timeout_seconds"}, "read"),
    "list_jobs": ({"finished", "since"}, "read"),
    "rename_snapshot": ({"snapshot_id", "name", "description", "tags"}, "write again"),
    "verify_snapshots": ({"snapshot_ids", "wait_seconds"}, "write again"),
    "recover_snapshots": ({"snapshot_ids", "wait_seconds"}, "write"),
    "show_chain": ({"resource_id"}, "read"),
    "cancel_job": ({"job_id"}, "write again"),
}
HINTS = {
    "read": (True, False, True, False),
    "write": (False, False, False, False),
    "write again": (False, False, True, False),
    "destroy": (False, True, False, False),
}


async def listed(lab: Lab, mode: str) -> list[Tool]:
    async with lab.connect(mode) as client:
        return (await client.list_tools()).tools


@pytest.mark.anyio
async def test_the_tools_have_their_names_arguments_titles_and_hints(lab: Lab, mode: str) -> None:
    tools = {tool.name: tool for tool in await listed(lab, mode)}
    assert tools.keys() == TOOLS.keys()
    for name, (arguments, kind) in TOOLS.items():
        tool = tools[name]
        assert set(tool.input_schema["properties"]) == arguments | {"zone"}, name
        assert "additionalProperties" not in tool.input_schema, name
        assert "zone" not in tool.input_schema.get("required", []), name
        assert tool.title, name
        assert tool.description, name
        hints = tool.annotations
        assert hints is not None
        given = (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint)
        assert given == HINTS[kind], name


@pytest.mark.anyio
async def test_every_tool_has_an_output_schema_with_named_fields(lab: Lab) -> None:
    for tool in await listed(lab, "auto"):
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
        assert tool.output_schema["properties"], tool.name


@pytest.mark.anyio
async def test_a_tool_says_what_leaving_the_zone_out_means(lab: Lab) -> None:
    for tool in await listed(lab, "auto"):
        said = tool.input_schema["properties"]["zone"]["description"]
        means_every_zone = tool.name in {"list_jobs", "wait_for_job", "cancel_job"}
        assert said == ("Zone; all if unset" if means_every_zone else "Zone; default if unset")


@pytest.mark.anyio
async def test_the_list_stays_within_its_budget(lab: Lab, mode: str) -> None:
    """22,000 characters of compact JSON at most (ARCHITECTURE.md, "The MCP face")."""
    tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await listed(lab, mode)]
    assert len(json.dumps({"tools": tools}, separators=(",", ":"))) <= 22_000


@pytest.mark.anyio
async def test_listing_creates_nothing(lab: Lab, mode: str) -> None:
    """Listing tools needs no zone folder."""
    async with lab.connect(mode) as client:
        await client.list_tools()
        await client.list_prompts()
        await client.list_resource_templates()
        assert "no snapshots yet" in text_of(await client.call_tool("list_snapshots", {}))
        assert "zone add PATH" in text_of(await client.call_tool("list_resources", {}))
    assert not lab.home.exists()


@pytest.mark.anyio
async def test_a_read_only_server_has_only_the_tools_that_look(make_lab: Any) -> None:
    lab = make_lab(READ_ONLY="1")
    names = {tool.name for tool in await listed(lab, "auto")}
    assert names == {name for name, (_, kind) in TOOLS.items() if kind == "read"}
    async with lab.connect() as client:
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert prompts == {"review_backups"}, "the others speak of tools that are not there"
        result = await client.call_tool("create_snapshots", {"resource_ids": ["x"], "name": "y"})
    assert result.is_error
    assert "Unknown tool" in text_of(result)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("list_snapshots", {"bogus": 1}, "Unknown argument bogus; expected one of: snapshot_ids, resource_id,"),
        ("list_snapshots", {"limit": "5"}, "limit: should be a valid integer"),
        ("list_snapshots", {"limit": 0}, "limit: should be greater than or equal to 1"),
        ("list_snapshots", {"limit": 101}, "limit: should be less than or equal to 100"),
        ("list_snapshots", {"verbose": 1}, "verbose: should be a valid boolean"),
        ("list_snapshots", {"snapshot_type": "half"}, "snapshot_type: should be 'any', 'full' or 'incremental'"),
        ("list_resources", {"kind": "disk"}, "kind: should be 'any', 'volume', 'instance' or 'image'"),
        ("create_snapshots", {"name": "x"}, "resource_ids is missing"),
        ("create_snapshots", {"resource_ids": [], "name": "x"}, "resource_ids must not be empty."),
        ("create_snapshots", {"resource_ids": ["x"], "name": "y" * 256}, "name: String should have at most 255"),
        (
            "wait_for_job",
            {"job_ids": ["x"], "timeout_seconds": 51},
            "timeout_seconds: should be less than or equal to 50",
        ),
        (
            "delete_snapshot",
            {"snapshot_id": "x", "confirm": True},
            "Unknown argument confirm; expected one of: snapshot_id",
        ),
        ("rename_snapshot", {"snapshot_id": "x"}, "Neither name, description nor tags"),
        ("rename_snapshot", {"snapshot_id": "x", "name": " "}, "name must not be blank"),
        ("create_snapshots", {"resource_ids": ["x"], "name": "\n \t"}, "name must not be blank"),
        ("create_snapshots", {"resource_ids": ["x"], "name": ""}, "name must not be blank"),
        ("export_to_volume", {"snapshot_id": "x", "volume_name": " "}, "volume_name must not be blank"),
    ],
)
async def test_bad_arguments_are_refused_in_words(
    lab: Lab, mode: str, tool: str, arguments: dict[str, Any], expected: str
) -> None:
    async with lab.connect(mode) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert expected in text_of(result)
    assert "pydantic" not in text_of(result)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("list_snapshots", {"resource_id": "nothing"}),
        ("show_chain", {"resource_id": "nothing"}),
        ("create_snapshots", {"resource_ids": ["nothing"], "name": "x"}),
        ("export_to_volume", {"snapshot_id": "nothing", "volume_name": "x"}),
        ("export_to_image", {"snapshot_id": "nothing", "image_name": "x"}),
        ("rename_snapshot", {"snapshot_id": "nothing", "name": "x"}),
        ("recover_snapshots", {"snapshot_ids": ["nothing"]}),
        ("wait_for_job", {"job_ids": ["nothing"]}),
    ],
)
async def test_an_unknown_id_is_named_with_its_zone(lab: Lab, tool: str, arguments: dict[str, Any]) -> None:
    await lab.add_disk("a")
    async with lab.connect() as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert "nothing" in text_of(result)
    assert "zone local" in text_of(result).lower()


@pytest.mark.anyio
async def test_an_unknown_zone_names_the_known_ones(lab: Lab) -> None:
    async with lab.connect() as client:
        schemas = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        for tool in TOOLS:
            needed = {
                "snapshot_id": "s",
                "snapshot_ids": ["s"],
                "resource_ids": ["r"],
                "resource_id": "r",
                "job_ids": ["j"],
                "job_id": "j",
            }
            needed |= {"name": "n", "image_name": "n", "volume_name": "n"}
            required = schemas[tool].get("required", [])
            arguments = {name: needed[name] for name in required} | {"zone": "nowhere"}
            if tool == "rename_snapshot":
                arguments["name"] = "n"
            result = await client.call_tool(tool, arguments)
            assert result.is_error, tool
            assert "There is no zone “nowhere”. Zones: local." in text_of(result), tool


def test_building_the_server_creates_nothing(lab: Lab) -> None:
    app.build_server(lab.settings)
    assert not lab.home.exists()
