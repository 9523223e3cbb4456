"""Convert every tool as google-genai does, and call each. Arguments: command, environment and calls as JSON."""

import asyncio
import json
import sys

from google.genai import _mcp_utils
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def main() -> None:
    command, environment, calls = (json.loads(one) for one in sys.argv[1:])
    server = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        converted = _mcp_utils.mcp_to_gemini_tools(tools)
        assert len(converted) == len(tools)
        told = {name: (await session.call_tool(name, given)).content[0].text for name, given in calls.items()}
    print(json.dumps(told))


asyncio.run(main())
