"""What the packages say of the product: from its metadata, which the build takes from `pyproject.toml`."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.hosts.launch import NAME

TITLE = "Volume snapshots"
LICENCE_FILE = "LICENSE"


@dataclass(frozen=True, slots=True)
class Facts:
    """Name, version and the like; `requires` are the dependencies that everybody needs."""

    version: str
    description: str
    licence: str
    licence_text: str
    repository: str
    python: str
    keywords: tuple[str, ...]
    requires: tuple[str, ...]

    @property
    def owner(self) -> str:
        """Return who owns the repository."""
        return self.repository.rstrip("/").split("/")[-2]

    @property
    def registry_name(self) -> str:
        """Return the name in the MCP registry, which README repeats as `mcp-name`."""
        return f"io.github.{self.owner}/{NAME}"


def read_facts() -> Facts:
    """Read the metadata of this installation. Raises BadRequest where nothing is installed, as in a bare checkout."""
    try:
        found = distribution(NAME)
    except PackageNotFoundError:
        raise BadRequest("This copy of snapshot-mcp is not installed.", hint="Install it: pip install .") from None
    data: PackageMetadata = found.metadata
    urls = dict(one.split(", ", 1) for one in data.get_all("Project-URL") or ())
    needed = [one for one in found.requires or () if not re.search(r";.*\bextra\b", one)]
    return Facts(
        version=data["Version"],
        description=data["Summary"],
        licence=data["License-Expression"],
        licence_text=found.read_text(f"licenses/{LICENCE_FILE}") or "",
        repository=urls["Repository"],
        python=data["Requires-Python"],
        keywords=tuple(one.strip() for one in data["Keywords"].split(",")),
        requires=tuple(needed),
    )
