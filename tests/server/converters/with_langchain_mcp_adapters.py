"""Convert every tool as langchain-mcp-adapters does, and call each."""

import asyncio
import json
import sys

from langchain_core.tools import ToolException
from langchain_mcp_adapters.client import MultiServerMCPClient


async def main() -> None:
    command, environment, calls = (json.loads(one) for one in sys.argv[1:])
    entry = {"command": command[0], "args": command[1:], "env": environment, "transport": "stdio"}
    told = {}
    for tool in await MultiServerMCPClient({"snapshots": entry}).get_tools():
        try:
            told[tool.name] = str(await tool.ainvoke(calls[tool.name]))
        except ToolException as error:
            told[tool.name] = str(error)
    print(json.dumps(told))


asyncio.run(main())
