"""How a host starts this program, so that the same words still work tomorrow, and with which variables."""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from snapshot_mcp.settings import MODELS, PREFIX, TEST_PREFIX

NAME = "snapshot-mcp"

PATHS = (f"{PREFIX}CONFIG", f"{PREFIX}HOME")
"""Variables with a path, which a host resolves against a folder of its own."""

FOLDERS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME")
"""Variables that say where our settings and data are where ours do not; hosts do not pass them on."""

OF_A_ZONE = {f"{PREFIX}{variable.name}" for model in MODELS.values() for variable in model.variables().values()}
"""Variables that describe a provider's zone; one of them is a secret, and the others are worth nothing without it."""

_UVX = re.compile(r"(archive|environments|builds)-v\d+")
"""A folder of uv's cache that holds environments which `uv cache prune` removes."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The words that start the server, and its variables. `left_out` are variables that a host's file must not hold."""

    words: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def this_launch() -> Launch:
    """Return how this installation is started, with the variables of this process."""
    ours = {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIX) and value}
    others = {name: value for name, value in ours.items() if name not in OF_A_ZONE and not name.startswith(TEST_PREFIX)}
    words = tuple(command(sys.prefix, sys.executable))
    folders = {
        name: value
        for name, ours_ in zip(FOLDERS, PATHS, strict=True)
        if (value := os.environ.get(name)) and not os.environ.get(ours_)
    }
    return Launch(words, others | folders | path_variables(), tuple(one for one in ours if one in OF_A_ZONE))


def path_variables() -> dict[str, str]:
    """Return the variables with a path that are set, each path absolute."""
    return {name: str(Path(value).expanduser().absolute()) for name in PATHS if (value := os.environ.get(name))}


def command(prefix: str, executable: str) -> list[str]:
    """Return the words that start the installation in an environment; hosts do not use the shell's PATH.

    An environment of `uvx` or `pipx run` is a cache that may be gone tomorrow, so these start it anew.
    """
    parts = Path(prefix).parts
    if any(map(_UVX.fullmatch, parts)):
        return ["uvx", NAME]
    if "pipx" in parts and "venvs" not in parts:
        return ["pipx", "run", NAME]
    program = NAME + (".exe" if os.name == "nt" else "")
    beside = Path(executable).parent / program
    exposed = (
        Path(os.environ.get("PIPX_BIN_DIR", Path.home() / ".local" / "bin")) / program if "pipx" in parts else beside
    )
    found = next((str(one) for one in (exposed, beside) if one.is_file()), None) or shutil.which(NAME)
    return [found] if found else [executable, "-m", "snapshot_mcp"]
