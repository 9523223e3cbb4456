"""The files of `prompts/`: markdown after a TOML front matter of name, title, description and arguments.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A parsed file; `arguments` maps each name to its description, required and default."""

    name: str
    title: str
    description: str
    arguments: Mapping[str, Mapping[str, Any]]
    body: str


def read_prompts() -> Iterator[PromptFile]:
    """Yield the files in the order of their names. Raises ValueError, which names the file."""
    for path in sorted(prompts_folder().glob("*.md")):
        yield parse_prompt(path.read_text(encoding="utf-8"), path.name)


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
