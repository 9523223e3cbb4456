"""README says what the code does: every tool, argument, status, setting, command, error code and feature of a file."""

import itertools
import re
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import get_args

import pytest

from snapshot_mcp.cli import COMMANDS, build_parser
from snapshot_mcp.contract.errors import ERRORS_BY_CODE
from snapshot_mcp.guard import Status
from snapshot_mcp.guard.plan.policy import VARIABLES, Policy
from snapshot_mcp.providers import PROVIDERS, zone_models
from snapshot_mcp.server.build import build_tools
from snapshot_mcp.server.prompts import load_prompts
from snapshot_mcp.server.results import Guarded
from snapshot_mcp.settings import ENVIRONMENT, PREFIX, Settings, load_settings

README = (Path(__file__).parent.parent / "README.md").read_text()


def is_said(word: str) -> bool:
    return re.search(rf"`[^`\n]*\b{re.escape(word)}\b[^`\n]*`", README) is not None


def test_every_tool_stands_in_the_table_with_its_arguments() -> None:
    for tool in build_tools():
        (row,) = [line for line in README.splitlines() if line.startswith(f"| `{tool.name}` |")]
        for argument in set(tool.parameters["properties"]) - {"zone"}:
            assert f"`{argument}`" in row, (tool.name, argument)


def test_every_status_of_a_guarded_call_is_explained() -> None:
    rows = README.partition("| `status` of a guarded call |")[2].partition("\n\n")[0]
    statuses = set(get_args(Status))
    assert statuses == set(get_args(Guarded.model_fields["status"].annotation))
    assert statuses == set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE))


def test_every_prompt_stands_in_the_table_with_its_arguments() -> None:
    for prompt in load_prompts():
        (row,) = [line for line in README.splitlines() if line.startswith(f"| `{prompt.name}` |")]
        said = re.findall(r"`(\w+)`", row.split("|")[3])
        assert said == [argument.name for argument in prompt.arguments or ()]


@pytest.mark.parametrize("name", sorted({f"{PREFIX}{name}" for name in ENVIRONMENT} | VARIABLES.keys()))
def test_every_variable_is_said(name: str) -> None:
    assert is_said(name)


def default_of(path: tuple[str, ...]) -> str:
    value = reduce(getattr, path, Policy())
    if isinstance(value, frozenset):
        return "none" if not value else str(sorted(value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_guards_table_has_every_rule_with_its_default_and_its_variable() -> None:
    table = README.partition("| rule | default | variable | stricter is |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|"))[:3] for line in table.splitlines()}
    assert rows == {(f"`{'.'.join(path)}`", default_of(path), f"`{name}`") for name, path in VARIABLES.items()}


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - {"home", "guard", "zones"}))
def test_every_key_of_the_settings_file_is_said(name: str) -> None:
    assert is_said(name) or re.search(rf"^{name} = |\[{name}\.", README, re.MULTILINE)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_has_a_row_of_the_settings_table_with_its_fields(provider: str) -> None:
    rows = [line for line in README.splitlines() if line.startswith(f'| `[zones.NAME]` `provider = "{provider}"` |')]
    assert len(rows) == 1, f"README's settings table has no row for provider {provider}"
    said = re.findall(r"`(\w+)`", rows[0])
    assert not [name for name in zone_models()[provider].model_fields if name not in {*said, "provider"}]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_said(name: str) -> None:
    assert is_said(name)


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_every_error_code_is_said(code: str) -> None:
    assert is_said(code)


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
def test_the_settings_that_readme_shows_can_be_loaded(block: str, tmp_path: Path) -> None:
    """As they stand, but for the secrets, which everybody fills in, each with another one."""
    path = tmp_path / "config.toml"
    numbers = itertools.count(1)
    filled = re.sub('token = "…"', lambda _: f'token = "{next(numbers):024}"', block)
    path.write_text(filled, encoding="utf-8")
    load_settings({f"{PREFIX}CONFIG": str(path)})


CODE = re.findall(r"```sh\n(.*?)```", README, re.DOTALL) + re.findall(r"`([^`\n]+)`", README)
COMMAND_LINES = sorted(
    {match[1] for code in CODE for match in re.finditer(r"^snapshot-mcp (\S.*?)\s*(?:#|$)", code, re.M)}
)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_line_of_readme_exists_with_its_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help is asked for, so that nothing is done."""
    line = line.replace("[", "").replace("]", "")
    command = list(takewhile(re.compile(r"[a-z][a-z-]*$").match, line.split()))[:2]
    command = command[: 2 if command[0] in {"zone", "audit"} else 1]
    with pytest.raises(SystemExit) as ended:
        build_parser(command[0]).parse_args([*command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for option in re.findall(r"--[a-z-]+", line):
        assert option in said
