"""The import arrows of the design: the waist knows nobody, no provider knows another, `app` alone wires the parts."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from snapshot_mcp.providers import PROVIDERS, zone_models

PACKAGE = Path(__file__).parent.parent / "snapshot_mcp"

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "serving", "settings", "exposure", "zones", "history", "hosts", "copies", "contract", "ground"},
    "working": {"app", "providers.local", "contract"},
    "app": {
        "doctor",
        "settings",
        "operator_file",
        "server",
        "service",
        "history",
        "guard",
        "guard.consent",
        "guard.page",
        "zones",
        "providers",
        "providers.local",
        "providers.ceph",
        "copies",
        "contract",
        "ground",
    },
    "serving": {"app", "settings", "operator_file", "server", "service", "guard.page", "contract", "ground"},
    "settings": {"guard.plan", "providers", "providers.local", "copies", "contract", "ground"},
    "operator_file": {"settings"},
    "doctor": {"server", "guard", "guard.page", "zones", "providers.local", "contract", "ground"},
    "exposure": {"settings", "ground"},
    "hosts": {"settings", "ground", "contract"},
    "server": {"ground", "history", "guard", "guard.page", "zones", "contract"},
    "history": {"ground", "guard", "zones", "contract"},
    "service": {"ground", "contract"},
    "guard.page": {"ground", "guard", "guard.consent", "guard.plan", "contract"},
    "guard": {"ground", "guard.carry", "guard.consent", "guard.plan", "zones", "contract"},
    "guard.carry": {"ground", "guard.consent", "guard.plan", "zones", "contract"},
    "guard.consent": {"ground", "guard.plan", "contract"},
    "guard.plan": {"zones", "contract"},
    "zones": {"contract"},
    "copies": {"ground", "contract"},
    "catalogue": {"ground", "contract"},
    "providers": {"contract"},
    **{f"providers.{name}": {"providers", "catalogue", "ground", "contract"} for name in PROVIDERS},
    "contract": set(),
    "ground": set(),
}
"""Part → parts that it may import (ARCHITECTURE.md, "The shape"). The guard's rooms are parts; "guard" alone is its front."""

DOES_IO = {
    "anyio",
    "asyncio",
    "io",
    "os",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "time",
}
"""What a room that only decides has no use for."""


def part_of(module: str) -> str:
    """The part that a module, or a name imported from one, lives in; "" for the package itself."""
    names = module.split(".")[1:]
    prefixes = (".".join(names[:size]) for size in range(len(names), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), "")


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


def module_of(path: Path) -> str:
    return ".".join(("snapshot_mcp", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def parts_imported_by(path: Path) -> set[str]:
    own = (name for name in imports_of(path) if name.startswith("snapshot_mcp."))
    return {part_of(name) for name in own} - {"", part_of(module_of(path))}


def wrong_arrows(part: str, imported: set[str]) -> set[str]:
    """The parts of `imported` that `part` has no arrow to."""
    allowed = MAY_IMPORT.get(part, set())
    return {other for other in imported if other not in allowed}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    assert not wrong_arrows(part_of(module_of(path)), parts_imported_by(path))


def test_a_wrong_arrow_between_the_rooms_of_the_guard_is_found() -> None:
    order = ["guard.page", "guard", "guard.carry", "guard.consent", "guard.plan"]
    for index, room in enumerate(order):
        assert wrong_arrows(room, set(order)) >= set(order[:index]), room
        assert wrong_arrows("server", {room}) == ({room} if index > 1 else set())
        assert not wrong_arrows(room, {"contract"})
        assert wrong_arrows(room, {"server", "providers.local"}) == {"server", "providers.local"}


def test_no_part_leads_back_to_itself() -> None:
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        arrows.setdefault(part_of(module_of(path)), set()).update(parts_imported_by(path))
    assert {"guard.page", "guard", "guard.carry", "guard.consent", "guard.plan"} <= arrows.keys()
    assert tuple(TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_what_decides_in_the_guard_does_no_io() -> None:
    """All of planning but the one file that reads a zone; in carrying out, what is next and how it is said."""
    deciding = [*(PACKAGE / "guard" / "plan").glob("*.py")]
    deciding += [PACKAGE / "guard" / "carry" / f"{name}.py" for name in ("outcome", "replies", "steps", "terms")]
    for path in sorted(deciding):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        is_async = any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
        assert is_async == (path.name == "gather.py"), path.name
        names = imports_of(path)
        assert not {name.split(".")[0] for name in names} & DOES_IO, path.name
        asks_a_zone = any(name.endswith(".Provider") or ".plan.gather" in name for name in names)
        assert asks_a_zone == (path.name == "gather.py"), path.name


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "contract").glob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_contract_imports_pydantic_and_the_standard_library_only(path: Path) -> None:
    for imported in imports_of(path):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top in {"pydantic", "snapshot_mcp"}, imported


ROOMS: dict[str, dict[str, set[str]]] = {
    "catalogue": {
        "admission": {"agreement", "database", "lookup", "room", "snapshots", "store"},
        "agreement": {"database", "lookup", "store"},
        "answers": {"copied", "database", "lookup", "store"},
        "copied": {"admission", "database", "store"},
        "database": {"store"},
        "deletion": {"agreement", "database", "lookup", "outcome", "progress", "store"},
        "jobs": {"database", "outcome", "progress", "snapshots", "store"},
        "listing": {"answers", "database", "store"},
        "lookup": {"database", "store"},
        "outcome": {"database", "store"},
        "progress": {"database", "outcome", "room", "store"},
        "rollback": {"admission", "database", "lookup", "store"},
        "room": {"database", "store"},
        "schema": set(),
        "snapshots": {"database", "store"},
        "store": set(),
        "turn": set(),
        "salvage": {"database", "snapshots", "store"},
        "report": set(),
        "withdrawal": {"agreement", "database", "jobs", "lookup", "outcome", "store"},
        "worker": {"database", "jobs", "rollback", "store"},
        "zone": {"admission", "answers", "database", "deletion", "listing", "lookup", "store", "turn", "withdrawal"},
    },
    "providers/local": {
        "adopting": {"folder", "parts", "rebuild", "snapshot_file"},
        "capture": {"snapshot_file", "source"},
        "clones": {"extents", "identity", "platform", "source"},
        "check": {"capture", "folder", "place", "snapshot_file", "strays"},
        "device": {"disk", "holders", "identity", "place", "platform", "source", "watch"},
        "disk": {"clones", "formats", "holders", "identity", "place", "platform", "snapshot_file", "source"},
        "errors": set(),
        "extents": {"source"},
        "folder": {"platform", "store", "strays", "whereabouts"},
        "formats": set(),
        "found": {"snapshot_file"},
        "holders": set(),
        "identity": {"platform"},
        "image": {"capture", "disk", "formats", "holders", "identity", "nbd", "place", "platform", "source", "watch"},
        "in_use": {"holders", "place", "platform"},
        "likeness": {"capture", "snapshot_file", "source"},
        "machine": {"capture", "formats", "holders", "image", "nbd", "place", "snapshot_file", "source"},
        "moving": {
            "check",
            "disk",
            "folder",
            "formats",
            "holders",
            "identity",
            "image",
            "likeness",
            "machine",
            "place",
            "registration",
            "snapshot_file",
            "source",
        },
        "nbd": {"source"},
        "opening": {"clones", "device", "disk", "formats", "holders", "image", "machine"},
        "own_file": {"disk", "folder", "holders", "identity", "in_use", "place"},
        "parts": {"check", "folder", "snapshot_file"},
        "place": set(),
        "platform": {"holders"},
        "reading": {"folder", "restore", "snapshot_file"},
        "rebuild": {
            "check",
            "folder",
            "found",
            "holders",
            "image",
            "in_use",
            "snapshot_file",
            "spare",
            "store",
            "strays",
        },
        "registration": {"device", "disk", "folder", "formats", "holders", "image", "in_use", "machine", "place"},
        "restore": {"capture", "snapshot_file", "source", "syncing"},
        "serving": {"restore", "snapshot_file"},
        "settings": {"zone"},
        "snapshot_file": {"syncing"},
        "source": {"platform"},
        "spare": {"folder", "strays"},
        "syncing": {"platform", "source"},
        "store": {
            "capture",
            "clones",
            "device",
            "identity",
            "image",
            "in_use",
            "opening",
            "place",
            "restore",
            "snapshot_file",
        },
        "work": {
            "capture",
            "check",
            "disk",
            "errors",
            "folder",
            "identity",
            "image",
            "opening",
            "parts",
            "place",
            "platform",
            "restore",
            "snapshot_file",
            "source",
        },
        "strays": {"snapshot_file"},
        "watch": {"holders", "platform"},
        "whereabouts": {"place"},
        "worker": {
            "clones",
            "holders",
            "folder",
            "in_use",
            "machine",
            "platform",
            "spare",
            "strays",
            "whereabouts",
            "work",
        },
        "zone": {
            "adopting",
            "check",
            "errors",
            "folder",
            "formats",
            "image",
            "moving",
            "opening",
            "own_file",
            "parts",
            "place",
            "reading",
            "rebuild",
            "registration",
            "serving",
            "strays",
            "whereabouts",
            "worker",
        },
    },
    "providers/ceph": {
        "catalogue": {"clib", "clock", "errors", "found", "names", "object"},
        "clib": set(),
        "clock": {"clib", "names"},
        "cluster": {"clib", "pool"},
        "errors": {"clib"},
        "found": {"clib", "names"},
        "image": {"clib"},
        "names": set(),
        "object": {"clib", "errors", "names", "pool"},
        "pool": {"clib", "errors", "image"},
        "scratch": {"clib", "cluster", "names"},
        "settings": {"zone"},
        "store": {"clib", "errors", "image", "names", "pool"},
        "work": {"catalogue", "clib", "errors", "image", "names", "pool", "store"},
        "worker": {"catalogue", "clib", "cluster", "errors", "names", "settings", "store", "work"},
        "zone": {"catalogue", "clib", "cluster", "errors", "names", "pool", "settings", "store", "work", "worker"},
    },
    "providers/anchcloud": {
        "bounds": set(),
        "calls": {"settings"},
        "changes": {"calls", "filters", "lookup", "memory", "patience", "replies", "session"},
        "events": set(),
        "filters": set(),
        "lookup": {"filters"},
        "memory": set(),
        "patience": set(),
        "replies": {"bounds"},
        "session": {"calls", "patience", "replies", "settings", "transport"},
        "settings": {"zone"},
        "transport": {"calls", "patience", "replies", "settings"},
        "watch": {"bounds", "calls", "events", "memory", "patience", "replies", "session"},
        "zone": {
            "calls",
            "changes",
            "filters",
            "lookup",
            "memory",
            "patience",
            "replies",
            "session",
            "settings",
            "watch",
        },
    },
}
"""Of a provider and of the catalogue: room → rooms beside it that it may import, also inside a function.

In `local` the Provider reaches files through these alone; in `anchcloud` HTTP lies below the session, and the session below
what changes and what watches. A provider's settings build its zone, with an import that waits until then.
"""


def rooms_imported_by(path: Path, folder: Path) -> set[str]:
    """The modules and folders beside it that a file imports, at its top or inside a function; not for types alone."""
    package = ".".join((PACKAGE.name, *folder.relative_to(PACKAGE).parts))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(node) for test in tests for node in ast.walk(test)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in for_types]
    found = {f"{node.module}.{name.name}" for node in names for name in node.names}
    own = path.relative_to(folder).with_suffix("").parts[0]
    return {name.removeprefix(f"{package}.").split(".")[0] for name in found if name.startswith(f"{package}.")} - {own}


@pytest.mark.parametrize("folder", ROOMS)
def test_the_rooms_of_a_provider_import_one_another_in_one_direction(folder: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in (PACKAGE / folder).rglob("*.py"):
        room = path.relative_to(PACKAGE / folder).with_suffix("").parts[0]
        graph.setdefault(room, set()).update(rooms_imported_by(path, PACKAGE / folder))
    assert graph.keys() - {"__init__"} == ROOMS[folder].keys()
    for room, allowed in ROOMS[folder].items():
        assert graph[room] <= allowed, f"{room} imports {graph[room] - allowed}"
    at_the_top = {room: imported for room, imported in ROOMS[folder].items() if room != "settings"}
    assert list(TopologicalSorter(at_the_top).static_order())  # raises CycleError


def test_no_two_classes_share_a_name() -> None:
    """One word, one meaning: a reader who searches for a class finds one."""
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_provider_is_a_folder_and_a_line() -> None:
    folders = {path.parent.name for path in (PACKAGE / "providers").glob("*/settings.py")}
    assert folders == set(PROVIDERS)
    for name, model in zone_models().items():
        assert get_args(model.model_fields["provider"].annotation) == (name,), model


def test_the_settings_load_no_code_of_a_provider() -> None:
    """Every start of the server loads them: of a provider only its settings module, and no library but pydantic."""
    code = "import sys, pydantic; before = set(sys.modules); import snapshot_mcp.providers as providers; "
    code += "providers.zone_models(); print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = {"snapshot_mcp.providers"} | {f"snapshot_mcp.providers.{name}" for name in PROVIDERS}
    allowed |= {f"snapshot_mcp.providers.{name}.settings" for name in PROVIDERS}
    loaded = done.stdout.split()
    assert {name for name in loaded if name.startswith("snapshot_mcp.providers")} == allowed
    libraries = {name.partition(".")[0] for name in loaded if not name.startswith("_")} - set(sys.stdlib_module_names)
    assert libraries <= {"snapshot_mcp", "pydantic", "pydantic_core", "annotated_types", "typing_extensions"}
