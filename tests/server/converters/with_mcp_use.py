"""Convert every tool as mcp-use does, which fills unset options with null, and call each."""

import asyncio
import json
import sys

from mcp_use import MCPClient
from mcp_use.agents.adapters.langchain_adapter import LangChainAdapter


async def main() -> None:
    command, environment, calls = (json.loads(one) for one in sys.argv[1:])
    entry = {"command": command[0], "args": command[1:], "env": environment}
    client = MCPClient.from_dict({"mcpServers": {"snapshots": entry}})
    await client.create_all_sessions()
    tools = await LangChainAdapter().create_tools(client)
    told = {tool.name: str(await tool.ainvoke(calls[tool.name])) for tool in tools if tool.name in calls}
    await client.close_all_sessions()
    print(json.dumps(told))


asyncio.run(main())
