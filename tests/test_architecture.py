"""The import arrows of the design: the waist knows nobody, no provider knows another, `app` alone wires the parts."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "snapshot_mcp"

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "settings", "exposure", "zones", "contract"},
    "app": {"settings", "operator_file", "server", "service", "guard", "zones", "providers", "contract", "ground"},
    "settings": {"guard", "contract"},
    "operator_file": {"settings"},
    "exposure": {"settings"},
    "server": {"ground", "guard", "zones", "contract"},
    "service": {"ground", "contract"},
    "guard": {"ground", "zones", "contract"},
    "zones": {"contract"},
    "catalogue": {"ground", "contract"},
    "providers.local": {"ground", "catalogue", "contract"},
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


ROOMS_OF_LOCAL = {
    "snapshot_file": {"platform"},
    "work": {"capture", "disk", "errors", "folder", "identity", "platform", "restore", "snapshot_file"},
    "store": {"disk", "estimates", "identity", "in_use", "platform", "snapshot_file"},
    "folder": {"platform", "store"},
    "worker": {"folder", "platform", "work"},
    "zone": {"check", "errors", "folder", "registration", "worker"},
}
"""Room of the embedded zone → rooms of it that it may import: the Provider reaches files through these alone."""


def rooms_imported_by(path: Path, folder: Path) -> set[str]:
    """The modules and folders beside it that a file imports at its top: not for types alone, nor inside a function."""
    package = ".".join((PACKAGE.name, *folder.relative_to(PACKAGE).parts))
    names = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    found = {f"{node.module}.{name.name}" for node in names for name in node.names}
    own = path.relative_to(folder).with_suffix("").parts[0]
    return {name.removeprefix(f"{package}.").split(".")[0] for name in found if name.startswith(f"{package}.")} - {own}


@pytest.mark.parametrize("folder", ["catalogue", "providers/local"])
def test_the_rooms_of_our_own_zone_import_one_another_in_one_direction(folder: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in (PACKAGE / folder).rglob("*.py"):
        room = path.relative_to(PACKAGE / folder).with_suffix("").parts[0]
        graph.setdefault(room, set()).update(rooms_imported_by(path, PACKAGE / folder))
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError
    if folder == "providers/local":
        for room, allowed in ROOMS_OF_LOCAL.items():
            assert graph[room] <= allowed, f"{room} imports {graph[room] - allowed}"
        assert [room for room, imported in graph.items() if "work" in imported] == ["worker"]
