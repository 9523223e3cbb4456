"""Prompts, made of the files of `prompts/` (`ground.prompt_files`)."""

import re
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts.base import Message, Prompt, PromptArgument
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, InputRequiredResult

from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.prompt_files import PromptFile, read_prompts

ARGUMENT_CHARACTERS = 200


class FilePrompt(Prompt):
    """A prompt that explains wrong arguments in both protocol eras, unlike the SDK's."""

    async def render(
        self, arguments: dict[str, Any] | None, context: Context[Any, Any]
    ) -> list[Message] | InputRequiredResult:
        """Fill in the arguments. Raises MCPError if one is missing or unknown."""
        given = arguments or {}
        known = {one.name for one in self.arguments or ()}
        missing = [
            one.name for one in self.arguments or () if one.required and not str(given.get(one.name, "")).strip()
        ]
        if missing or not given.keys() <= known:
            unknown = clean_text(min(given.keys() - known, default=""))
            wrong = f"argument {missing[0]} is missing" if missing else f"unknown argument {unknown}"
            names = ", ".join(one.name for one in self.arguments or ())
            raise MCPError(INVALID_PARAMS, f"Prompt {self.name}: {wrong}; expected: {names}.")
        return await super().render(given, context)


def load_prompts(*, without: Collection[str] = ()) -> Iterator[Prompt]:
    """Yield the prompts in the order of their names, except those that mention one of the tools `without`."""
    for file in read_prompts():
        if not any(f"`{tool}`" in file.body for tool in without):
            yield build_prompt(file)


def build_prompt(file: PromptFile) -> Prompt:
    """Build the SDK's prompt from a file."""
    return FilePrompt(
        name=file.name,
        title=file.title,
        description=file.description,
        arguments=[
            PromptArgument(name=name, description=one["description"], required=one.get("required", False))
            for name, one in file.arguments.items()
        ],
        fn=partial(_render, file),
    )


def _render(file: PromptFile, **arguments: str) -> str:
    values = {
        name: clean_text(arguments.get(name) or one.get("default", ""), ARGUMENT_CHARACTERS)
        for name, one in file.arguments.items()
    }
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], file.body)
