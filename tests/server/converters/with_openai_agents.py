"""Convert every tool as openai-agents does in strict mode, where every field is required, and call each with all of them."""

import asyncio
import json
import sys

from agents import Agent, RunContextWrapper
from agents.mcp import MCPServerStdio, MCPUtil
from agents.tool_context import ToolContext

SUPPORTED = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "description", "default", "pattern",
    "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
}  # fmt: skip
"""What OpenAI's strict mode takes of JSON schema, as far as we use it."""


def keywords(schema: dict) -> set[str]:
    """Return every keyword of a schema and of the schemas in it."""
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return set(schema).union(*map(keywords, inner))


def neutral(schema: dict) -> object:
    if "enum" in schema:
        return schema["enum"][0]
    number = schema.get("default", schema.get("minimum", 0))
    return {"array": [], "boolean": False, "string": "", "integer": number, "number": 0}[schema["type"]]


async def main() -> None:
    command, environment, calls = (json.loads(one) for one in sys.argv[1:])
    options = {"command": command[0], "args": command[1:], "env": environment}
    async with MCPServerStdio(options, client_session_timeout_seconds=60) as server:
        tools = await MCPUtil.get_all_function_tools(
            [server],
            convert_schemas_to_strict=True,
            run_context=RunContextWrapper(None),
            agent=Agent(name="a", mcp_servers=[server]),
        )
        assert all(tool.strict_json_schema for tool in tools)
        told = {}
        for tool in tools:
            properties = tool.params_json_schema["properties"]
            assert set(tool.params_json_schema["required"]) == set(properties)
            assert keywords(tool.params_json_schema) <= SUPPORTED
            given = {name: calls[tool.name].get(name, neutral(schema)) for name, schema in properties.items()}
            text = json.dumps(given)
            context = ToolContext(context=None, tool_name=tool.name, tool_call_id="1", tool_arguments=text)
            told[tool.name] = str(await tool.on_invoke_tool(context, text))
    print(json.dumps(told))


asyncio.run(main())
