"""The import arrows of the design: the waist knows nobody, no provider knows another, `app` alone wires the parts."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from snapshot_mcp.providers import PROVIDERS, zone_models

PACKAGE = Path(__file__).parent.parent / "snapshot_mcp"

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "settings", "exposure", "contract"},
    "app": {
        "settings",
        "operator_file",
        "server",
        "service",
        "guard",
        "jobs",
        "providers",
        "providers.local",
        "contract",
    },
    "settings": {"guard", "providers", "providers.local", "contract"},
    "operator_file": {"settings"},
    "exposure": {"settings"},
    "server": {"guard", "jobs", "contract"},
    "service": {"jobs", "contract"},
    "guard": {"jobs", "contract"},
    "jobs": {"contract"},
    "providers": {"contract"},
    **{f"providers.{name}": {"providers", "contract"} for name in PROVIDERS},
    "contract": set(),
}
"""Part → parts that it may import (design.md, "The shape")."""


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    module = ".".join(("snapshot_mcp", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    part = part_of(module)
    allowed = MAY_IMPORT.get(part, set()) | {part, ""}
    for imported in imports_of(path):
        if imported.startswith("snapshot_mcp."):
            other = part_of(imported)
            assert other in allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "contract").glob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_contract_imports_pydantic_and_the_standard_library_only(path: Path) -> None:
    for imported in imports_of(path):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top in {"pydantic", "snapshot_mcp"}, imported


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
