"""Plays the conversations that README shows: each call is made, and what README says came back did come back.

Its ids stand for those of the zone that they are played on: the first `gets` with one says which it is.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import ElicitResult

from snapshot_mcp import app
from snapshot_mcp.contract.text import format_bytes
from tests.server.estate import estate, settle
from tests.server.lab import Lab, data_of, text_of
from tests.server.parity import leaves
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
DIALOGUES = re.findall(r"```text\n(You: .*?)```", README, re.DOTALL)
ID = re.compile(r"\b(?:ss|vol|img|ap)-[a-z0-9]{8}\b")
STEP = re.compile(r"(You: |Assistant: |  calls |  gets |  the host asks you: |  you run: snapshot-mcp approve |  )(.*)")


class Stage:
    """Where the dialogues are played: `cast` has the zone's id for each of README's."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cast: dict[str, str] = {}
        self.answers: list[str] = []
        self.told: dict[str, Any] = {}

    async def answer(self, context: Any, params: Any) -> ElicitResult:
        """What the person says to the host."""
        return ElicitResult(action="accept", content={"answer": self.answers.pop(0)})

    def played(self, text: str) -> str:
        """README's words with the zone's ids; each must be known by now."""
        return ID.sub(lambda match: self.cast[match[0]], text)

    async def call(self, client: Client, line: str) -> None:
        tool, _, arguments = line.partition(" ")
        result = await client.call_tool(tool, json.loads(self.played(arguments)))
        assert not result.is_error, text_of(result)
        self.told = data_of(result)

    def gets(self, fields: list[tuple[str, str]]) -> None:
        """Find these fields in what came back, in one row of a list if that has them all, and learn the ids that are new."""
        for there in (*rows(self.told), self.told):
            cast = dict(self.cast)
            if all(found(there, name, value, cast) for name, value in fields):
                self.cast = cast
                return
        raise AssertionError((fields, self.told))


def rows(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each row of a list, with what the result says besides."""
    for name, value in told.items():
        if isinstance(value, list):
            yield from (told | {name: one} for one in value if isinstance(one, dict))


def found(there: dict[str, Any], name: str, value: str, cast: dict[str, str]) -> bool:
    """Whether a field with this value is there; the ids of the value that are new are cast for those that it has."""
    texts = [format_bytes(one) if name.endswith("_bytes") else str(one) for key, one in leaves(there) if key == name]
    for new in (one for one in ID.findall(value) if one not in cast):
        cast[new] = next((one for text in texts for one in ID.findall(text) if one not in cast.values()), "")
    played = ID.sub(lambda match: cast[match[0]], value)
    return any(
        text == played or ((" " in played or "/" in played or name == "lines") and played in text) for text in texts
    )


def steps(dialogue: str) -> Iterator[tuple[str, str]]:
    for line in dialogue.splitlines():
        match = STEP.fullmatch(line)
        assert match, line
        yield match[1].strip(), match[2]


async def play(stage: Stage, dialogue: str) -> None:
    parts = list(steps(dialogue))
    stage.answers = [text for kind, text in parts if kind == "the host asks you:"]
    ask = {"elicitation_callback": stage.answer} if stage.answers else {}
    async with stage.lab.connect(**ask) as client:
        for kind, text in parts:
            match kind:
                case "calls":
                    await stage.call(client, text)
                case "gets":
                    stage.gets([(field.partition(" ")[0], field.partition(" ")[2]) for field in text.split("; ")])
                case "you run: snapshot-mcp approve":
                    await app.build_guard(stage.lab.settings).approve(stage.played(text), None)
                case "Assistant:" | "":
                    stage.played(text)
    assert stage.answers == []


async def test_every_conversation_that_readme_shows_can_be_had(nursery: Nursery) -> None:
    assert len(DIALOGUES) >= 6
    assert len(DIALOGUES) == README.count("\nYou: ") - len(re.findall(r"\nYou: (?:Yes|Done)\.", README))
    with estate(nursery) as lab:
        await settle(lab)
        stage = Stage(lab)
        for dialogue in DIALOGUES:
            await play(stage, dialogue)
