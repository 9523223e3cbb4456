"""Convert every tool as CrewAI's adapter (mcpadapt) does, which fills unset options with null, and call each."""

import json
import sys

from mcp import StdioServerParameters
from mcpadapt.core import MCPAdapt
from mcpadapt.crewai_adapter import CrewAIAdapter

command, environment, calls = (json.loads(one) for one in sys.argv[1:])
server = StdioServerParameters(command=command[0], args=command[1:], env=environment)
with MCPAdapt(server, CrewAIAdapter()) as tools:
    told = {tool.name: str(tool.run(**calls[tool.name])) for tool in tools if tool.name in calls}
print(json.dumps(told))
