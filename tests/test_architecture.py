"""The import arrows of the design: the waist knows nobody, no provider knows another, `app` alone wires the parts."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "snapshot_mcp"

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "settings", "exposure", "contract"},
    "app": {"settings", "operator_file", "server", "service", "guard", "jobs", "providers", "contract", "ground"},
    "settings": {"guard", "contract"},
    "operator_file": {"settings"},
    "exposure": {"settings"},
    "server": {"ground", "guard", "jobs", "contract"},
    "service": {"ground", "jobs", "contract"},
    "guard": {"ground", "jobs", "contract"},
    "jobs": {"contract"},
    "providers.local": {"ground", "contract"},
    "providers.anchcloud": {"ground", "contract"},
    "contract": set(),
    "ground": set(),
}
"""Part → parts that it may import (design.md, "The shape")."""


def part_of(module: str) -> str:
    """The part that a module, or a name imported from one, lives in; "" for the package itself."""
    names = module.split(".")[1:]
    part = ".".join(names[:2]) if names[:1] == ["providers"] else ".".join(names[:1])
    return part if part in MAY_IMPORT or part == "providers" else ""


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    module = ".".join(("snapshot_mcp", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    part = part_of(module)
    allowed = MAY_IMPORT.get(part, set()) | {part, ""}
    for imported in imports_of(path):
        if imported.startswith("snapshot_mcp."):
            other = part_of(imported)
            assert other in allowed or other.split(".")[0] in allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "contract").glob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_contract_imports_pydantic_and_the_standard_library_only(path: Path) -> None:
    for imported in imports_of(path):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top in {"pydantic", "snapshot_mcp"}, imported
