"""Prompts, loaded from files: markdown after a TOML front matter of name, title, description and arguments.

    +++
    name = "back_up_disk"
    title = "Back up a disk"
    description = "One line."

    [arguments.disk]
    description = "One line."
    required = true
    +++
    Text with {disk} in it.

An argument that is not required has a `default`. The files are inside the package in a wheel, next to it in a checkout.
"""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts.base import Message, Prompt, PromptArgument
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, InputRequiredResult

from snapshot_mcp.contract.text import clean_text

PACKAGE = Path(__file__).parent.parent
ARGUMENT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A parsed file; `arguments` maps each name to its description, required and default."""

    name: str
    title: str
    description: str
    arguments: Mapping[str, Mapping[str, Any]]
    body: str


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
    for path in sorted(prompts_folder().glob("*.md")):
        file = parse_prompt(path.read_text(encoding="utf-8"), path.name)
        if not any(f"`{tool}`" in file.body for tool in without):
            yield build_prompt(file)


def prompts_folder() -> Path:
    """Return the folder of the files: inside the package (wheel) or next to it (checkout, editable install)."""
    shipped = PACKAGE / "prompts"
    return shipped if shipped.is_dir() else PACKAGE.parent / "prompts"


def parse_prompt(text: str, file_name: str) -> PromptFile:
    """Parse a file. Raises ValueError, which names the file."""
    match = re.fullmatch(r"\+\+\+\n(.*?)^\+\+\+\n(.*)", text, re.DOTALL | re.MULTILINE)
    if not match:
        raise ValueError(f"{file_name}: expected front matter between two lines of +++")
    body = match[2].strip()
    try:
        file = PromptFile(**tomllib.loads(match[1]), body=body)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"{file_name}: {error}") from None
    if used := set(re.findall(r"\{(\w+)\}", body)) ^ file.arguments.keys():
        raise ValueError(f"{file_name}: {', '.join(sorted(used))} must be both in the text and in the arguments")
    return file


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
