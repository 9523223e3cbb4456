"""The import arrows of the design: the waist knows nobody, no provider knows another, `app` alone wires the parts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "snapshot_mcp"

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "settings", "contract"},
    "app": {"settings", "server", "service", "guard", "jobs", "providers", "contract"},
    "settings": {"guard", "contract"},
    "server": {"guard", "jobs", "contract"},
    "service": {"jobs", "contract"},
    "guard": {"jobs", "contract"},
    "jobs": {"contract"},
    "providers.local": {"contract"},
    "providers.anchcloud": {"contract"},
    "contract": set(),
}
"""Part → parts that it may import (design.md, "The shape")."""


def part_of(module: str) -> str:
    names = module.split(".")[1:]
    return ".".join(names[:2]) if names[:1] == ["providers"] else ".".join(names[:1])


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
    for imported in imports_of(path):
        if imported.startswith("snapshot_mcp.") and part:
            other = part_of(imported)
            allowed = MAY_IMPORT[part] | {part}
            assert other in allowed or (other.split(".")[0] in allowed) or not other.islower(), f"{module} imports {imported}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "contract").glob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_contract_imports_pydantic_and_the_standard_library_only(path: Path) -> None:
    import sys

    for imported in imports_of(path):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top in {"pydantic", "snapshot_mcp"}, imported
