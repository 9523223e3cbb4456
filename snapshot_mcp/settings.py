"""Settings: the operator's file and the environment, made one frozen model.

`load_settings(environ)` reads `config.toml` (`SNAPSHOT_MCP_CONFIG`, else the platform's config folder) and the
`SNAPSHOT_MCP_…` variables, which win; `read_only` and the guard's rules they can only tighten. It creates nothing.
Unknown keys and unknown variables are errors, because a misspelt safety setting must not pass in silence.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from platformdirs import user_config_path, user_data_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.guard.policy import VARIABLES as GUARD_VARIABLES
from snapshot_mcp.guard.policy import Policy, tighten_policy

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

APP = "snapshot-mcp"
PREFIX = "SNAPSHOT_MCP_"

TEST_PREFIX = f"{PREFIX}TEST_"
"""Variables of the test suite, which a server that it starts inherits."""

LOCAL = "local"
"""The zone there is when nothing is set."""

ENVIRONMENT = {
    "HOME": "the data folder: zones, approvals, keys",
    "CONFIG": "path of the settings file",
    "DEFAULT_ZONE": "the zone that is meant when a call names none",
    "READ_ONLY": "1: only the tools that read (cannot switch the file's setting off)",
    "API_URL": "base URL of a volume-snapshot API: one `anchcloud` zone without a file",
    "API_CLIENT_ID": "its key",
    "API_CLIENT_SECRET": "its secret",
    "API_REVISION": "`2016-12` where the API speaks the later revision",
    "ZONE": "its zone id, for example `ac1`",
}
"""The variables of this module (without their prefix) and what they are; the guard has its own."""

_API_VARIABLES = {
    "url": "API_URL",
    "client_id": "API_CLIENT_ID",
    "client_secret": "API_CLIENT_SECRET",
    "api_revision": "API_REVISION",
}
"""A key of the zone that the environment describes → its variable."""

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


class SettingsError(Exception):
    """The settings cannot be used; `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LocalZoneSettings(_Table):
    """The embedded zone: real snapshots of disk images on this machine."""

    provider: Literal["local"] = "local"
    folder: Path | None = None
    """Where its snapshots are; HOME/zones/NAME by default."""
    recovery_hours: float = Field(default=2, ge=0)
    """How long a deleted snapshot can be brought back."""
    allow_fuzzy: bool = False
    """Take a snapshot of a disk that is in use although its content may be torn."""
    production: bool = False

    @field_validator("folder")
    @classmethod
    def _expand(cls, folder: Path | None) -> Path | None:
        return folder.expanduser() if folder else None


class AnchCloudZoneSettings(_Table):
    """A zone behind the volume-snapshot REST API."""

    provider: Literal["anchcloud"] = "anchcloud"
    url: str = Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$")
    client_id: str = Field(min_length=1)
    client_secret: SecretStr
    zone: str = ""
    """The provider's zone id; the table's name by default."""
    api_revision: Literal["specification", "2016-12"] = "specification"
    ca_file: Path | None = None
    proxy: str = ""
    production: bool = False


ZoneSettings = Annotated[LocalZoneSettings | AnchCloudZoneSettings, Field(discriminator="provider")]
ZoneName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class TokenSettings(_Table):
    """A bearer token for the MCP server over HTTP; its name is the principal. `serve --http` takes no other caller then."""

    token: SecretStr = Field(min_length=24)
    roles: frozenset[Literal["viewer", "operator", "approver"]] = Field(min_length=1)
    """viewer: look. operator: change as well. approver: decide at /approvals what others asked for."""


class Settings(_Table):
    """Everything that the operator decides."""

    home: Path
    default_zone: str = ""
    read_only: bool = False
    guard: Policy = Policy()
    zones: dict[ZoneName, ZoneSettings] = {LOCAL: LocalZoneSettings()}
    tokens: dict[ZoneName, TokenSettings] = {}

    @model_validator(mode="after")
    def _default_zone_exists(self) -> "Settings":
        if self.default_zone and self.default_zone not in self.zones:
            raise ValueError(f"default_zone {self.default_zone!r} is none of the zones: {', '.join(self.zones)}")
        return self

    @property
    def first_zone(self) -> str:
        """The zone that is meant when none is named: `default_zone`, else `local` if there is one, else the file's first."""
        return self.default_zone or (LOCAL if LOCAL in self.zones else next(iter(self.zones)))

    def zone_folder(self, name: str) -> Path:
        """Where the local zone `name` keeps its snapshots."""
        zone = self.zones.get(name)
        return zone.folder if isinstance(zone, LocalZoneSettings) and zone.folder else self.home / "zones" / name

    @property
    def production_zones(self) -> frozenset[str]:
        """Those that are marked so, under every name that leads to the same place."""
        marked = {self._place(name) for name, zone in self.zones.items() if zone.production}
        return frozenset(name for name in self.zones if self._place(name) in marked)

    def _place(self, name: str) -> tuple[str, str]:
        zone = self.zones[name]
        if isinstance(zone, AnchCloudZoneSettings):
            return zone.url.rstrip("/").casefold(), zone.zone or name
        return "", str(self.zone_folder(name).resolve())


def config_path(environ: Mapping[str, str]) -> Path:
    """Return where the settings file is, or would be."""
    named = environ.get(f"{PREFIX}CONFIG", "")
    return Path(named).expanduser() if named else user_config_path(APP) / "config.toml"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the file and the environment. Raises SettingsError."""
    path = config_path(environ)
    table = _read(path, must_exist=bool(environ.get(f"{PREFIX}CONFIG")))
    _refuse_unknown(environ)
    zones = table.setdefault("zones", {})
    if not isinstance(zones, dict):
        raise SettingsError(f"{path}: zones is no table.", hint="Write [zones.NAME].")
    for name, zone in zones.items():
        if isinstance(zone, dict) and "provider" not in zone:
            raise SettingsError(f"{path}: zones.{name} has no provider.", hint='Add provider = "local" or "anchcloud".')
    if api := _api_zone(environ):
        name = environ[f"{PREFIX}ZONE"]
        if isinstance(before := zones.get(name), dict) and "production" in before:
            api["production"] = before["production"]
        zones[name] = api
        table.setdefault("default_zone", name)
    if not zones:
        del table["zones"]
    if default_zone := environ.get(f"{PREFIX}DEFAULT_ZONE", ""):
        table["default_zone"] = default_zone
    if _is_true(environ, "READ_ONLY"):
        table["read_only"] = True
    home = environ.get(f"{PREFIX}HOME", "")
    table["home"] = Path(home).expanduser().absolute() if home else user_data_path(APP)
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        api_zone = environ[f"{PREFIX}ZONE"] if api else ""
        raise SettingsError(_describe(error, path, api_zone), hint="README lists every setting.") from None
    try:
        guard = tighten_policy(settings.guard, environ)
    except BadRequest as error:
        raise SettingsError(error.message, hint=error.hint) from None
    is_read_only = settings.read_only or guard.read_only
    guard = guard.model_copy(update={"read_only": is_read_only})
    return settings.model_copy(update={"guard": guard, "read_only": is_read_only})


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if must_exist:
            raise SettingsError(f"There is no settings file {str(path)!r}.", hint=f"Check {PREFIX}CONFIG.") from None
        return {}
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no valid TOML: {error}.") from None
    if "home" in table:
        raise SettingsError(f"{path}: home is no setting of the file.", hint=f"Set {PREFIX}HOME.")
    return table


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {f"{PREFIX}{name}" for name in ENVIRONMENT} | GUARD_VARIABLES.keys()
    for key in environ:
        if key.startswith(PREFIX) and key not in known and not key.startswith(TEST_PREFIX):
            raise SettingsError(f"{key} is no setting.", hint=f"Known: {', '.join(sorted(known))}.")


def _api_zone(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the one zone that the environment alone describes."""
    url = environ.get(f"{PREFIX}API_URL", "")
    if not url:
        return None
    needed = {
        "client_id": f"{PREFIX}API_CLIENT_ID",
        "client_secret": f"{PREFIX}API_CLIENT_SECRET",
        "zone": f"{PREFIX}ZONE",
    }
    if missing := [key for key in needed.values() if not environ.get(key)]:
        raise SettingsError(
            f"{PREFIX}API_URL is set, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not.",
            hint="Set all four.",
        )
    revision = environ.get(f"{PREFIX}API_REVISION", "")
    return {
        "provider": "anchcloud",
        "url": url,
        **{field: environ[key] for field, key in needed.items()},
        **({"api_revision": revision} if revision else {}),
    }


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(f"{PREFIX}{name}", "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise SettingsError(f"{PREFIX}{name} is {value!r}.", hint="Set it to 1 or 0.")
    return value in _TRUE


def _describe(error: ValidationError, path: Path, api_zone: str) -> str:
    """Name each key, or the variable that it came from, and what is wrong with it, without its value: it may be a secret."""
    lines = []
    for one in error.errors(include_input=False, include_url=False):
        place = [str(part) for part in one["loc"]]
        if place[:1] == ["zones"]:
            del place[2:3]  # the provider, which the reader did not write there
        key = ".".join(part for part in place if part != "[key]")
        if api_zone and place[:2] == ["zones", api_zone]:
            lines.append(f"{PREFIX}{_API_VARIABLES.get(place[-1], 'ZONE')}: {_in_words(one)}")
        else:
            lines.append(f"{path}: {key}: {_in_words(one)}" if key else f"{path}: {_in_words(one)}")
    return "; ".join(lines)


def _in_words(error: "ErrorDetails") -> str:
    match error["type"]:
        case "extra_forbidden":
            return "is no setting"
        case "union_tag_invalid":
            return f"provider should be {error['ctx']['expected_tags'].replace(', ', ' or ')}"
        case "too_short" if error["loc"][-1] == "token":
            return f"should have at least {error['ctx']['min_length']} characters, not {error['ctx']['actual_length']}"
        case "string_pattern_mismatch" if error["loc"][-1] == "url":
            return "should be the address alone, without user, query and blanks, like https://api.example.com"
        case "string_pattern_mismatch" if error["loc"][-1] == "[key]":
            return "a name has letters, digits, '.', '_' and '-', begins with one of the first two, and has at most 63"
        case _:
            return error["msg"].removeprefix("Value error, ")
