"""A mistake in the settings shows in the host, in words, and not as a connection that closes."""

import os
import subprocess
from pathlib import Path

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import PromptReference

from snapshot_mcp.server.build import build_tools
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, text_of
from tests.server.test_processes import SERVE

pytestmark = pytest.mark.anyio

MISTAKES = {
    "syntax": ("read_only = yes", "line 1"),
    "misspelt": ("[guard]\nprotekt = 'x'", "protekt"),
    "provider": ("[zones.a]\nprovider = 'nobody'", "zones.a"),
}
ARGUMENTS = {"resource_ids": ["a"], "snapshot_ids": ["a"], "job_ids": ["a"], "snapshot_id": "a"}


def with_mistake(lab: Lab, text: str) -> StdioServerParameters:
    config = lab.folder / "config.toml"
    config.write_text(text)
    environ = os.environ | lab.environ | {"SNAPSHOT_MCP_CONFIG": str(config)}
    return StdioServerParameters(command=SERVE[0], args=SERVE[1:], env=environ)


@pytest.mark.parametrize(
    ("mistake", "mode"),
    [("syntax", "auto"), ("misspelt", "legacy"), long("provider", "auto"), long("syntax", "legacy")],
)
async def test_every_request_says_what_is_wrong(lab: Lab, mistake: str, mode: str) -> None:
    text, said = MISTAKES[mistake]
    async with Client(with_mistake(lab, text), mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == [tool.name for tool in build_tools()]
        for tool in tools:
            result = await client.call_tool(tool.name, ARGUMENTS)
            assert result.is_error
            assert said in text_of(result)
            assert result.meta
            assert result.meta["code"] == "unusable_settings"
        assert said in (client.instructions or "")
        with pytest.raises(MCPError, match=said):
            await client.read_resource("snapshot://local/ss-1")
        prompt = (await client.list_prompts()).prompts[0]
        with pytest.raises(MCPError, match=said):
            await client.get_prompt(prompt.name, {one.name: "x" for one in prompt.arguments or ()})
        with pytest.raises(MCPError, match=said):
            await client.complete(PromptReference(name=prompt.name), {"name": "disk", "value": ""})
    assert not lab.home.exists()


@pytest.mark.parametrize("words", [["serve", "--http", "127.0.0.1:0"], ["zone", "serve", "--http", "127.0.0.1:0"]])
def test_a_server_over_http_refuses_to_start(lab: Lab, words: list[str]) -> None:
    """Its operator reads the terminal, and programs would take its answers for those of a zone."""
    parameters = with_mistake(lab, MISTAKES["misspelt"][0])
    done = subprocess.run(
        [*SERVE[:-1], *words], env=parameters.env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 1
    assert "protekt" in done.stderr


@pytest.mark.long
async def test_a_home_that_cannot_be_used_is_named(lab: Lab, tmp_path: Path) -> None:
    lab.home.write_text("a file")
    async with Client(with_mistake(lab, "")) as client:
        assert str(lab.home) in text_of(await client.call_tool("list_resources", {}))
    lab.home.unlink()
