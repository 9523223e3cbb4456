"""Settings: the operator's file and the environment, merged into one frozen model.

`load_settings(environ)` reads `config.toml` (`SNAPSHOT_MCP_CONFIG`, else the platform's config folder) and the
`SNAPSHOT_MCP_…` variables, which take precedence, but can only tighten `read_only` and the guard's rules. It creates nothing.
Unknown keys and variables are errors, so that a misspelt safety setting is noticed.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from platformdirs import user_config_path, user_data_path
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.ground.permissions import READ, obstacle_of, reason_of
from snapshot_mcp.ground.toml import NotUtf8, parse_toml
from snapshot_mcp.guard.plan.policy import VARIABLES as GUARD_VARIABLES
from snapshot_mcp.guard.plan.policy import Policy, tighten_policy
from snapshot_mcp.providers import Site, Variable, WorkerProgram, ZoneSettings, zone_models
from snapshot_mcp.providers.local.settings import LocalZoneSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

APP = "snapshot-mcp"
PREFIX = "SNAPSHOT_MCP_"

TEST_PREFIX = f"{PREFIX}TEST_"
"""Variables of the test suite, inherited by the servers that it starts."""

LOCAL = "local"
"""The zone that exists without any settings."""

WORKER = ("snapshot_mcp.working", "work")
"""Module and function of the process of an embedded zone's worker."""

LOCAL_PRINCIPAL = "local"
"""The principal of callers without a token; no token may have this name."""

MODELS = zone_models()
"""Each provider's settings model."""

ENVIRONMENT = {"HOME", "CONFIG", "DEFAULT_ZONE"} | {
    variable.name for model in MODELS.values() for variable in model.variables().values()
}
"""The variables of this module and of the providers, without their prefix; the guard's are apart."""

ZONE_VARIABLES = tuple(
    f"{PREFIX}{variable.name}"
    for model in MODELS.values()
    for variable in model.variables().values()
    if variable.is_needed
)
"""The variables that together describe a zone."""


class SettingsError(Exception):
    """The settings cannot be used; `hint` is the next step."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _Environ(dict[str, str]):
    """The variables of the start, hidden in output because some are secrets."""

    def __repr__(self) -> str:
        return f"<{len(self)} variables>"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


if TYPE_CHECKING:
    AnyZoneSettings = ZoneSettings
else:
    AnyZoneSettings = Annotated[reduce(or_, MODELS.values()), Field(discriminator="provider")]
ZoneName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class TokenSettings(_Table):
    """A bearer token for the MCP server over HTTP, named for its principal. With tokens, `serve --http` requires one."""

    token: SecretStr = Field(min_length=24)
    roles: frozenset[Literal["viewer", "operator", "approver"]] = Field(min_length=1)
    """viewer: read. operator: also change. approver: decide at /approvals what others requested."""


class Settings(_Table):
    """Everything that the operator decides."""

    home: Path
    default_zone: str = ""
    read_only: bool = False
    guard: Policy = Policy()
    zones: dict[ZoneName, AnyZoneSettings] = {LOCAL: LocalZoneSettings()}
    tokens: dict[ZoneName, TokenSettings] = {}
    copies: dict[ZoneName, CopySettings] = {}
    _environ: _Environ | None = PrivateAttr(None)
    _replaced_production: frozenset[tuple[str, str]] = PrivateAttr(frozenset())
    """Places that the file marks as production under a name that a variable took for another zone."""

    @property
    def path(self) -> Path | None:
        """The path of the settings file, which may not exist; None for settings that were not loaded."""
        return None if self._environ is None else config_path(self._environ)

    @property
    def own_paths(self) -> tuple[Path, ...]:
        """The settings file, and the default folder for it, even if the file is elsewhere."""
        return () if self.path is None else (self.path, *filter(None, [_user_path(user_config_path)]))

    def reread(self) -> "Settings":
        """Load the file again, with the environment of the start. Raises SettingsError."""
        return self if self._environ is None else load_settings(self._environ)

    @field_validator("tokens")
    @classmethod
    def _tokens_are_different_people(cls, tokens: dict[str, TokenSettings]) -> dict[str, TokenSettings]:
        if LOCAL_PRINCIPAL in tokens:
            raise ValueError(f"{LOCAL_PRINCIPAL!r} is the name of callers on stdio; rename this token")
        if len({one.token.get_secret_value() for one in tokens.values()}) < len(tokens):
            raise ValueError("two names have the same token, so a caller could approve its own requests")
        return tokens

    @model_validator(mode="after")
    def _copies_are_of_zones_with_parts(self) -> "Settings":
        for name, copy in self.copies.items():
            for zone in copy.zones:
                if not isinstance(self.zones.get(zone), LocalZoneSettings):
                    raise ValueError(f"copies.{name}: {zone!r} is not an embedded (local) zone")
        return self

    @model_validator(mode="after")
    def _default_zone_exists(self) -> "Settings":
        if self.default_zone and self.default_zone not in self.zones:
            raise ValueError(f"default_zone {self.default_zone!r} is unknown; the zones are {', '.join(self.zones)}")
        return self

    @property
    def variables(self) -> dict[str, str]:
        """The variables that make another program use the same home and settings file, unless these are the default."""
        environ: Mapping[str, str] = self._environ or {}
        found = {f"{PREFIX}HOME": str(self.home)}
        if self.home == _user_path(user_data_path) and "XDG_DATA_HOME" not in environ:
            found = {}
        if environ.get(f"{PREFIX}CONFIG"):
            found[f"{PREFIX}CONFIG"] = str(named_path(environ, "CONFIG"))
        return found

    @property
    def place(self) -> dict[str, str]:
        """The variables that name this home, and the settings file if the operator named one."""
        return {f"{PREFIX}HOME": str(self.home)} | self.variables

    @property
    def first_zone(self) -> str:
        """The zone of calls that name none: `default_zone`, else `local` if it exists, else the first in the file."""
        return self.default_zone or (LOCAL if LOCAL in self.zones else next(iter(self.zones)))

    def site(self, name: str) -> Site:
        """Return what the zone `name` needs besides its own settings."""
        worker = WorkerProgram(*WORKER, self.place)
        return Site(name, self.home, self.own_paths, worker, tuple(self.copies_of(name)))

    def copies_of(self, zone: str) -> dict[str, CopySettings]:
        """Return the copies of a zone, by name."""
        return {name: one for name, one in self.copies.items() if one.takes(zone)}

    @property
    def production_zones(self) -> frozenset[str]:
        """The zones marked as production, under all names of the same place."""
        return self.production_zones_by(self)

    def production_zones_by(self, now: "Settings") -> frozenset[str]:
        """Return these settings' zones that the settings `now` mark as production, under any name."""
        marked = {now._place(name, zone) for name, zone in now.zones.items() if zone.production}
        marked |= now._replaced_production
        return frozenset(name for name, zone in self.zones.items() if self._place(name, zone) in marked)

    def _place(self, name: str, zone: ZoneSettings) -> tuple[str, str]:
        return zone.provider, zone.place(self.site(name))

    def _keep_production(self, tables: Mapping[str, tuple[Any, dict[str, Any]]]) -> None:
        """Keep the mark of zones that a variable replaced: by name, the file's table and the one that has its place now."""
        adapter = TypeAdapter[ZoneSettings](AnyZoneSettings)
        replaced: dict[str, ZoneSettings] = {}
        for name, (table, now) in tables.items():
            with suppress(ValidationError):  # the file's table is not in use, so it need not be sound
                is_completed = isinstance(table, dict) and table["provider"] == now["provider"]
                replaced[name] = adapter.validate_python({**now, **table} if is_completed else table)
        self._replaced_production = frozenset(
            self._place(name, zone) for name, zone in replaced.items() if zone.production
        )


def config_path(environ: Mapping[str, str]) -> Path:
    """Return the path of the settings file, which may not exist; an empty file for a user without a home directory."""
    if named := named_path(environ, "CONFIG"):
        return named
    folder = _user_path(user_config_path)
    return folder / "config.toml" if folder else Path(os.devnull)


def named_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the absolute path that a variable names, None if it is unset. Raises SettingsError."""
    named = environ.get(f"{PREFIX}{name}", "")
    try:
        return Path(named).expanduser().absolute() if named else None
    except RuntimeError:
        what = f"{PREFIX}{name}={named!r}: this user's home directory is unknown."
        raise SettingsError(what, hint="Write the whole path, without `~`.") from None


def _user_path(folder_of: Callable[[str], Path]) -> Path | None:
    """Return one of the platform's folders of this user, None without a home directory (no HOME, no passwd entry)."""
    try:
        return folder_of(APP)
    except RuntimeError:
        return None


def _home(environ: Mapping[str, str]) -> Path:
    home = named_path(environ, "HOME") or _user_path(user_data_path)
    if home is None:
        raise SettingsError(f"This user has no home directory: set {PREFIX}HOME to a folder for the data, or HOME.")
    return home


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the file and the environment. Raises SettingsError."""
    path = config_path(environ)
    table = _read(path, must_exist=bool(environ.get(f"{PREFIX}CONFIG")))
    _refuse_unknown(environ)
    of_file = dict(zones) if isinstance(zones := table.get("zones"), dict) else {}
    variables = _merge_environment(table, environ, path)
    replaced = {name: (zone, now) for name, zone in of_file.items() if (now := table["zones"][name]) is not zone}
    table["home"] = _home(environ)
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        raise SettingsError(_describe(error, path, variables), hint="README lists every setting.") from None
    try:
        guard = tighten_policy(settings.guard, environ)
    except BadRequest as error:
        raise SettingsError(error.message, hint=error.hint) from None
    is_read_only = settings.read_only or guard.read_only
    guard = guard.model_copy(update={"read_only": is_read_only})
    settings = settings.model_copy(update={"guard": guard, "read_only": is_read_only})
    settings._environ = _Environ(environ)
    settings._keep_production(replaced)
    return settings


def _merge_environment(table: dict[str, Any], environ: Mapping[str, str], path: Path) -> dict[str, str]:
    """Add the environment's values to the file's table; return the keys that come from a variable, with its name."""
    zones = table.setdefault("zones", {})
    if not isinstance(zones, dict):
        raise SettingsError(f"{path}: zones must be a table.", hint="Write [zones.NAME].")
    for name, zone in zones.items():
        if isinstance(zone, dict) and "provider" not in zone:
            known = " or ".join(f'"{provider}"' for provider in MODELS)
            raise SettingsError(f"{path}: zones.{name} has no provider.", hint=f"Add provider = {known}.")
    variables: dict[str, str] = {}
    for provider, model in MODELS.items():
        variables |= _add_zone_of_environment(environ, provider, model.variables(), table)
    if not zones:
        del table["zones"]
    if default_zone := environ.get(f"{PREFIX}DEFAULT_ZONE", ""):
        table["default_zone"] = default_zone
        variables[""] = f"{PREFIX}DEFAULT_ZONE"
    return variables


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        if path.is_fifo():
            raise SettingsError(f"{path} is a pipe, not a file.", hint=f"{PREFIX}CONFIG names another file.")
        table = parse_toml(path.read_bytes())
    except FileNotFoundError:
        if must_exist:
            raise SettingsError(
                f"The settings file {str(path)!r} does not exist.", hint=f"Check {PREFIX}CONFIG."
            ) from None
        return {}
    except OSError as error:
        obstacle = obstacle_of(error, path, READ)
        hint = obstacle.hint if obstacle else f"{PREFIX}CONFIG names another file."
        raise SettingsError(f"Cannot read {path}: {reason_of(error, path, READ)}.", hint=hint) from None
    except NotUtf8 as error:
        raise SettingsError(f"{path} {error}.", hint="Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from None
    if "home" in table:
        raise SettingsError(f"{path}: `home` cannot be set in the settings file.", hint=f"Set {PREFIX}HOME.")
    return table


KNOWN_VARIABLES = frozenset({f"{PREFIX}{name}" for name in ENVIRONMENT} | GUARD_VARIABLES.keys())
"""All variables that are settings."""


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = KNOWN_VARIABLES
    for key in environ:
        if key.startswith(PREFIX) and key not in known and not key.startswith(TEST_PREFIX):
            raise SettingsError(f"Unknown setting {key}.", hint=f"Known: {', '.join(sorted(known))}.")


def _add_zone_of_environment(
    environ: Mapping[str, str], provider: str, marks: Mapping[str, Variable], table: dict[str, Any]
) -> dict[str, str]:
    """Add the zone that the environment describes, if any; return its keys, with the variable that sets each."""
    values = {field: value for field, mark in marks.items() if (value := environ.get(PREFIX + mark.name, ""))}
    if not values:
        return {}
    missing = [PREFIX + mark.name for field, mark in marks.items() if mark.is_needed and field not in values]
    if missing:
        given = PREFIX + marks[next(iter(values))].name
        raise SettingsError(
            f"{given} is set, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not.",
            hint="Set all of them, or none.",
        )
    naming = next(field for field, mark in marks.items() if mark.names_zone)
    name, zones = values[naming], table["zones"]
    if isinstance(before := zones.get(name), dict) and "production" in before:
        values["production"] = before["production"]
    zones[name] = {"provider": provider, **values}
    table.setdefault("default_zone", name)
    keys = {f"zones.{name}.{field}": PREFIX + mark.name for field, mark in marks.items()}
    return {**keys, f"zones.{name}": PREFIX + marks[naming].name}


def _describe(error: ValidationError, path: Path, variables: Mapping[str, str]) -> str:
    """Say which keys or variables are wrong, and why, without their values, which may be secrets."""
    of_file, of_environment = [], []
    for one in error.errors(include_input=False, include_url=False):
        parts = [str(part) for part in one["loc"]]
        if parts[:1] == ["zones"]:
            del parts[2:3]  # the provider, which pydantic adds
        key = ".".join(part for part in parts if part != "[key]")
        if key in variables:
            of_environment.append(f"{variables[key]}: {_in_words(one)}")
        else:
            of_file.append(f"{key}: {_in_words(one)}" if key else _in_words(one))
    return "; ".join([*of_environment, *([f"{path}: {'; '.join(of_file)}"] if of_file else [])])


def _in_words(error: "ErrorDetails") -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown setting"
        case "missing":
            return "is missing"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "should be a table"
        case "union_tag_invalid":
            return f"provider should be {error['ctx']['expected_tags'].replace(', ', ' or ')}"
        case "too_short" | "string_too_short" if error["ctx"]["min_length"] == 1:
            return "must not be empty"
        case "too_short" if error["loc"][-1] == "token":
            return f"should have at least {error['ctx']['min_length']} characters, not {error['ctx']['actual_length']}"
        case "string_pattern_mismatch" if error["loc"][-1] == "[key]":
            return "a name has up to 63 letters, digits, '.', '_' and '-', and starts with a letter or digit"
        case _:
            return error["msg"].removeprefix("Value error, ")
