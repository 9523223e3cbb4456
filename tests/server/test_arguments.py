"""Arguments as hosts send them: null for what is unset, floats for integers, neutral values; errors as they read them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, Tool

from snapshot_mcp.contract.errors import BadRequest
from tests.marks import long
from tests.server.lab import Lab, back_up, data_of, text_of
from tests.server.test_processes import http_server, parameters

pytestmark = pytest.mark.anyio

Door = Callable[[Lab], AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def in_memory(lab: Lab) -> AsyncIterator[Client]:
    async with lab.connect() as client:
        yield client


@asynccontextmanager
async def over_stdio(lab: Lab) -> AsyncIterator[Client]:
    async with Client(parameters(lab)) as client:
        yield client


@asynccontextmanager
async def over_http(lab: Lab) -> AsyncIterator[Client]:
    with http_server(lab) as (url, _):
        async with Client(url) as client:
            yield client


DOORS = {"in memory": in_memory, "stdio": over_stdio, "HTTP": over_http}


def required(tool: Tool, snapshot_id: str) -> dict[str, Any]:
    """What the tool must be given, so that it does something harmless or fails for its own reasons."""
    values = {
        "snapshot_id": snapshot_id, "snapshot_ids": [snapshot_id], "resource_id": "web", "resource_ids": ["web"],
        "name": "n", "image_name": "i", "volume_name": "v", "job_id": "no-job", "job_ids": ["no-job"],
    }  # fmt: skip
    return {name: values[name] for name in tool.input_schema.get("required", [])}


def neutral(schema: dict[str, Any]) -> Any:
    """The neutral value of an optional argument, as a host in strict mode sends it."""
    if "enum" in schema:
        return schema["enum"][0]
    return {"array": [], "boolean": False, "string": "", "integer": schema.get("default", 0), "number": 0}[
        schema["type"]
    ]


def was_taken(result: CallToolResult) -> bool:
    """Whether the arguments were accepted, whatever came of the call."""
    return "was not called" not in text_of(result)


@pytest.mark.parametrize("door", [*list(DOORS)[:1], *map(long, list(DOORS)[1:])])
async def test_every_tool_takes_null_floats_and_neutral_values(lab: Lab, door: str) -> None:
    await lab.add_disk("web")
    async with DOORS[door](lab) as client:
        snapshot_id = await back_up(client, "web", "first")
        for tool in (await client.list_tools()).tools:
            properties = tool.input_schema["properties"]
            must = required(tool, snapshot_id)
            optional = {name: schema for name, schema in properties.items() if name not in must}
            assert not [name for name, schema in properties.items() if "null" in str(schema)], tool.name
            ways: list[dict[str, Any]] = [
                dict.fromkeys(optional),
                {name: neutral(schema) for name, schema in optional.items()},
                {
                    name: float(schema.get("default", 0))
                    for name, schema in optional.items()
                    if schema["type"] == "integer"
                },
            ]
            for way in ways:
                result = await client.call_tool(tool.name, must | way)
                assert was_taken(result), (tool.name, way, text_of(result))


async def test_a_strict_call_with_only_neutral_values_lists_all(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        for number in range(3):
            await back_up(client, "web", f"number {number}", full=number == 1)
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        for name, key, count in (("list_snapshots", "snapshots", 3), ("list_resources", "resources", 1)):
            given = {one: neutral(schema) for one, schema in tools[name].input_schema["properties"].items()}
            assert len(data_of(await client.call_tool(name, given))[key]) == count
            given |= dict.fromkeys(("snapshot_type", "kind") & given.keys(), "")
            assert len(data_of(await client.call_tool(name, given))[key]) == count


async def test_what_is_required_refuses_null_and_an_unknown_argument_is_named(lab: Lab, mode: str) -> None:
    async with lab.connect(mode) as client:
        for arguments, words in (
            ({"resource_id": None}, "resource_id"),
            ({"resource_id": "web", "bogus": None}, "bogus"),
        ):
            result = await client.call_tool("show_chain", arguments)
            assert result.is_error
            assert words in text_of(result)
            assert result.structured_content is None
            assert (result.meta or {})["code"] == BadRequest.code


async def test_an_error_has_its_code_and_no_structure(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode) as client:
        for tool, arguments, code in (
            ("show_chain", {"resource_id": "nope"}, "not_found"),
            ("list_snapshots", {"zone": "nope"}, "unknown_zone"),
            ("recover_snapshots", {"snapshot_ids": ["ss-nope0000"]}, "not_found"),
            ("rename_snapshot", {"snapshot_id": "ss-nope0000"}, "bad_request"),
        ):
            result = await client.call_tool(tool, arguments)
            assert (result.is_error, result.structured_content) == (True, None)
            assert (result.meta or {})["code"] == code


async def test_a_filter_that_was_applied_is_named(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "one")
        plain = await client.call_tool("list_snapshots", {})
        assert "filter" not in data_of(plain)
        found = await client.call_tool("list_snapshots", {"snapshot_type": "full", "search": "on"})
        applied = data_of(found)["filter"]
        assert applied == "snapshot_type “full” and search “on”"
        assert applied in text_of(found)


LONG = "x" * 60_000
MANY = ["x"] * 300_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "value", [LONG, MANY, [LONG], [f"{LONG}{number}" for number in range(3)]], ids=["a", "b", "c", "d"]
)
async def test_very_long_arguments_are_refused_in_words(lab: Lab, value: Any) -> None:
    """Every text and list argument of every tool: SQLite's limits came through as internal errors."""
    async with lab.connect() as client:
        for tool in (await client.list_tools()).tools:
            wanted = {name: ["a"] if about["type"] == "array" else "a" for name, about in needed(tool)}
            for name, about in tool.input_schema["properties"].items():
                if about["type"] == ("array" if isinstance(value, list) else "string"):
                    result = await client.call_tool(tool.name, wanted | {name: value})
                    assert result.is_error, (tool.name, name)
                    assert (result.meta or {})["code"] in {"bad_request", "unknown_zone"}, text_of(result)
                    assert len(text_of(result)) < 1000


def needed(tool: Tool) -> list[tuple[str, Any]]:
    return [(name, tool.input_schema["properties"][name]) for name in tool.input_schema.get("required", ())]
