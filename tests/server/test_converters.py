"""Client stacks that nobody here wrote: each converts, lists and calls every tool over stdio (`converters/`).

Each is in an environment of its own, which the test makes once a machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.environments import python_with
from tests.server.lab import Lab, back_up
from tests.server.test_arguments import required

pytestmark = [pytest.mark.anyio, pytest.mark.long]
SCRIPTS = Path(__file__).with_name("converters")
STACKS = {
    "google_genai": ["google-genai>=3,<4", "mcp>=2.3,<3"],
    "openai_agents": ["openai-agents>=0.24,<1"],
    "langchain_mcp_adapters": ["langchain-mcp-adapters>=0.3,<1"],
    "mcp_use": ["mcp-use>=1.7,<2"],
    "crewai": ["mcpadapt[crewai]>=0.1.19,<1"],
}


@pytest.mark.parametrize("stack", STACKS)
async def test_every_tool_is_converted_and_called(lab: Lab, stack: str) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        snapshot_id = await back_up(client, "web", "first")
        calls = {tool.name: required(tool, snapshot_id) for tool in (await client.list_tools()).tools}
    environment = {"PATH": os.environ["PATH"], **lab.environ}
    arguments = map(json.dumps, ([sys.executable, "-m", "snapshot_mcp"], environment, calls))
    done = subprocess.run(
        [str(python_with(stack, STACKS[stack])), str(SCRIPTS / f"with_{stack}.py"), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(lab.folder), "MCP_USE_ANONYMIZED_TELEMETRY": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.keys() == calls.keys()
    refused = {name: text for name, text in told.items() if "was not called" in text or "rror executing" in text}
    assert refused == {}
    assert "web" in told["list_resources"]
    assert snapshot_id in told["list_snapshots"]
