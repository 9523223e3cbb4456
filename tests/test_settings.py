"""The operator's file and the environment (README.md, "Settings")."""

from pathlib import Path

import pytest

from snapshot_mcp.contract.keep_free import GIB, KeepFree
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.local.settings import LocalZoneSettings
from snapshot_mcp.settings import SettingsError, load_settings


def environ(tmp_path: Path, text: str | None = None, **variables: str) -> dict[str, str]:
    """An environment with a home of its own and, if given, a settings file."""
    found = {"SNAPSHOT_MCP_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    if text is not None:
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        found["SNAPSHOT_MCP_CONFIG"] = str(tmp_path / "config.toml")
    return found | {f"SNAPSHOT_MCP_{key}": value for key, value in variables.items()}


API = {"API_URL": "https://api.example.com", "API_CLIENT_ID": "key", "API_CLIENT_SECRET": "hush", "ZONE": "ac1"}


def test_with_nothing_set_there_is_one_local_zone_and_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    settings = load_settings(environ(tmp_path))
    assert settings.zones == {"local": LocalZoneSettings()}
    assert settings.first_zone == "local"
    assert settings.zones["local"].place(settings.site("local")) == str(tmp_path / "home" / "zones" / "local")
    assert not settings.read_only
    assert list(tmp_path.iterdir()) == []


def test_the_environment_alone_describes_one_provider_and_local_is_gone(tmp_path: Path) -> None:
    settings = load_settings(environ(tmp_path, "", **API))
    zone = settings.zones["ac1"]
    assert isinstance(zone, AnchCloudZoneSettings)
    assert zone.client_secret.get_secret_value() == "hush"
    assert list(settings.zones) == ["ac1"]
    assert settings.first_zone == "ac1"
    assert "hush" not in repr(settings)


def test_local_stays_beside_the_environments_zone_if_the_file_lists_it(tmp_path: Path) -> None:
    settings = load_settings(environ(tmp_path, '[zones.local]\nprovider = "local"\n', **API))
    assert set(settings.zones) == {"local", "ac1"}
    assert settings.first_zone == "ac1"


def test_a_file_describes_zones_of_both_kinds(tmp_path: Path) -> None:
    text = """
    default_zone = "east"
    read_only = true
    [zones.disks]
    provider = "local"
    recovery_hours = 24
    folder = "~/disks"
    [zones.east]
    provider = "anchcloud"
    url = "http://127.0.0.1:8080"
    client_id = "a"
    client_secret = "b"
    api_revision = "2016-12"
    zone = "ac2"
    production = true
    """
    settings = load_settings(environ(tmp_path, text))
    assert settings.read_only
    assert settings.first_zone == "east"
    assert settings.zones["disks"].place(settings.site("disks")) == str((Path.home() / "disks").resolve())


def test_read_only_is_only_ever_switched_on_by_the_environment(tmp_path: Path) -> None:
    assert load_settings(environ(tmp_path, "", READ_ONLY="1")).read_only
    assert load_settings(environ(tmp_path, "read_only = true", READ_ONLY="0")).guard.read_only
    assert load_settings(environ(tmp_path, "[guard]\nread_only = true")).read_only


def test_the_environment_tightens_the_guard(tmp_path: Path) -> None:
    settings = load_settings(
        environ(tmp_path, "[guard]\ndeletions_per_hour = 5", CONSENT="human", DELETIONS_PER_HOUR="50")
    )
    assert settings.guard.consent == "human"
    assert settings.guard.deletions_per_hour == 5


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"20GiB"', KeepFree(None, 20 * GIB)),
        ('"1.5 tib"', KeepFree(None, 1536 * GIB)),
        ('"500MB"', KeepFree(None, 500_000_000)),
        ('"5%"', KeepFree(0.05, None)),
        ("0", KeepFree(None, 0)),
        ('"0"', KeepFree(None, 0)),
    ],
)
def test_the_space_to_keep_free_is_a_size_a_share_or_nothing(tmp_path: Path, written: str, expected: KeepFree) -> None:
    """ "`[zones.NAME] keep_free` (the smaller of 5 % and 10 GiB)"."""
    zone = load_settings(environ(tmp_path, f"[zones.a]\nprovider = 'local'\nkeep_free = {written}")).zones["a"]
    assert isinstance(zone, LocalZoneSettings)
    assert zone.keep_free == expected
    small, large = 100 * GIB, 1000 * GIB
    assert [LocalZoneSettings().keep_free.bytes_of(one) for one in (small, large)] == [5 * GIB, 10 * GIB]
    assert KeepFree(None, 0).bytes_of(large) == 0


@pytest.mark.parametrize(
    "written", ["20", "true", '"20"', '"20G"', '"-1GiB"', '"100%"', '"much"', "{ share = 1 }", '""']
)
def test_a_wrong_size_to_keep_free_says_what_to_write(tmp_path: Path, written: str) -> None:
    with pytest.raises(SettingsError, match=r"zones\.a\.keep_free: should be ") as caught:
        load_settings(environ(tmp_path, f"[zones.a]\nprovider = 'local'\nkeep_free = {written}"))
    assert written == '"100%"' or '"20GiB"' in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redonly = true", "redonly: unknown setting"),
        ("[zones.a]\nprovider = 'local'\nrecovery = 1", "zones.a.recovery: unknown setting"),
        ("[zones.a]\nfolder = 'x'", "zones.a has no provider"),
        ("[zones.a]\nprovider = 'zfs'", "zones.a: provider should be 'local' or 'anchcloud' or 'ceph'"),
        ("[zones.a]\nprovider = 'ceph'", "zones.a.pool: is missing"),
        ("[zones.'a/b']\nprovider = 'local'", "zones.a/b: a name has up to 63 letters"),
        ("[zones.local]\nprovider = 'local'\nrecovery_hours = -1", "zones.local.recovery_hours: Input should be"),
        ("[zones.local]\nprovider = 'local'\nrecovery_hours = inf", "zones.local.recovery_hours: Input should be"),
        ("[zones.local]\nprovider = 'local'\nrecovery_hours = nan", "zones.local.recovery_hours: Input should be"),
        (
            "[zones.a]\nprovider = 'anchcloud'\nurl = 'https://x'\nclient_id = 'i'\nclient_secret = ''",
            "zones.a.client_secret: must not be empty",
        ),
        (
            "[tokens.local]\ntoken = 'a-token-with-24-characters'\nroles = ['operator']",
            "tokens: 'local' is the name of callers on stdio; rename this token",
        ),
        (
            "".join(f"[tokens.{one}]\ntoken = 'hush-hush-hush-hush-hush'\nroles = ['viewer']\n" for one in "ab"),
            "tokens: two names have the same token",
        ),
        (
            "[tokens.a]\ntoken = 'hush'\nroles = ['viewer']",
            "tokens.a.token: should have at least 24 characters, not 4",
        ),
        (
            "[zones.a]\nprovider = 'anchcloud'\nurl = 'https://u:p@x'\nclient_id='i'\nclient_secret='hush'",
            "zones.a.url: should be https://HOST",
        ),
        ("[zones.a]\nprovider = 'anchcloud'\nurl = 'https://x'", "zones.a.client_id: is missing"),
        ("[zones]\na = 5", "zones.a: should be a table"),
        ("guard = 5", "guard: should be a table"),
        ("[guard]\nwhatever = 1", "guard.whatever: unknown setting"),
        ("default_zone = 'nowhere'", "default_zone 'nowhere' is unknown; the zones are local"),
        ("home = '/x'", "`home` cannot be set in the settings file"),
        ("read_only = ", "is not valid TOML"),
        ("zones = 1", "zones must be a table"),
    ],
)
def test_a_wrong_key_is_an_error_that_names_key_and_file(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ(tmp_path, text))
    assert expected in caught.value.message
    assert str(tmp_path / "config.toml") in caught.value.message
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"READONLY": "1"}, "Unknown setting SNAPSHOT_MCP_READONLY"),
        (
            {"READ_ONLY": "maybe"},
            "SNAPSHOT_MCP_READ_ONLY=“maybe” is not a valid value of read_only: Input should be a valid boolean",
        ),
        ({"CONSENT": "maybe"}, "SNAPSHOT_MCP_CONSENT=“maybe”"),
        (
            {"API_URL": "https://x"},
            "SNAPSHOT_MCP_API_CLIENT_ID and SNAPSHOT_MCP_API_CLIENT_SECRET and SNAPSHOT_MCP_ZONE",
        ),
        ({"API_CLIENT_ID": "key"}, "SNAPSHOT_MCP_API_CLIENT_ID is set, but SNAPSHOT_MCP_API_URL and"),
        ({**API, "API_URL": ""}, "is set, but SNAPSHOT_MCP_API_URL is not"),
        ({"ZONE": "ac1"}, "SNAPSHOT_MCP_ZONE is set, but SNAPSHOT_MCP_API_URL and"),
        ({**API, "API_URL": "api.example.com"}, "SNAPSHOT_MCP_API_URL: should be https://HOST"),
        ({**API, "API_REVISION": "2017"}, "SNAPSHOT_MCP_API_REVISION: Input should be 'specification' or '2016-12'"),
        ({**API, "ZONE": "a b"}, "SNAPSHOT_MCP_ZONE: a name has up to 63 letters"),
        ({"CONFIG": "/nowhere/config.toml"}, "The settings file '/nowhere/config.toml' does not exist"),
        ({"DEFAULT_ZONE": "nowhere"}, "SNAPSHOT_MCP_DEFAULT_ZONE: default_zone 'nowhere'"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ(tmp_path, **variables))
    assert expected in caught.value.message


PRODUCTION = """
[zones.prod]
provider = "anchcloud"
url = "https://api.example.com/"
client_id = "key"
client_secret = "hush"
zone = "ac1"
production = true
"""


def test_a_production_zone_is_one_under_every_name(tmp_path: Path) -> None:
    """Neither a variable nor the zone that a call names is a way round (GUARD.md, "Policy")."""
    by_another_name = load_settings(environ(tmp_path, PRODUCTION, **API))
    assert by_another_name.production_zones == {"prod", "ac1"}
    by_its_own = load_settings(environ(tmp_path, PRODUCTION.replace("zones.prod", "zones.ac1"), **API))
    assert by_its_own.production_zones == {"ac1"}
    folder = f'provider = "local"\nfolder = "{tmp_path / "zone"}"\n'
    twins = f"[zones.local]\n{folder}production = true\n[zones.twin]\n{folder}[zones.other]\nprovider = 'local'\n"
    assert load_settings(environ(tmp_path, twins)).production_zones == {"local", "twin"}


def test_a_variable_that_takes_a_production_zones_name_leaves_its_place_marked(tmp_path: Path) -> None:
    """The mark of the file stays on the place, whatever zone has the name now (GUARD.md, "Policy")."""
    elsewhere = {**API, "API_URL": "https://api2.example.com"}
    named = PRODUCTION.replace("zones.prod", "zones.ac1")
    alias = PRODUCTION.replace("zones.prod", "zones.alias").replace("production = true", "")
    settings = load_settings(environ(tmp_path, named + alias, **elsewhere))
    assert settings.production_zones == {"ac1", "alias"}
    assert settings.reread().production_zones == {"ac1", "alias"}
    local = "[zones.local]\nprovider = 'local'\nproduction = true\n"
    twin = f'[zones.twin]\nprovider = "local"\nfolder = "{tmp_path / "home" / "zones" / "local"}"\n'
    settings = load_settings(environ(tmp_path, local + twin, **{**elsewhere, "ZONE": "local"}))
    assert settings.production_zones == {"local", "twin"}
    incomplete = "[zones.ac1]\nprovider = 'anchcloud'\nproduction = true\n"
    assert load_settings(environ(tmp_path, incomplete, **API)).production_zones == {"ac1"}
    without_keys = "\n".join(line for line in named.splitlines() if "client" not in line) + "\n"
    assert load_settings(environ(tmp_path, without_keys + alias, **elsewhere)).production_zones == {"ac1", "alias"}
    unmarked = named.replace("production = true", "production = false")
    assert load_settings(environ(tmp_path, unmarked + alias, **elsewhere)).production_zones == set()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("API_URL", "http://user:hunter2@127.0.0.1"),
        ("API_URL", "ftp://api.example.com"),
        ("API_URL", "https://api.example.com "),
        ("API_REVISION", "2017"),
        ("ZONE", "a/b"),
        ("ZONE", ".."),
    ],
)
def test_what_is_wrong_with_a_variable_is_said_of_the_variable(variable: str, value: str, tmp_path: Path) -> None:
    """Who has set four variables has no file, and no key of one."""
    config = tmp_path / "config.toml"
    config.touch()
    given = {
        "API_URL": "https://api.example.com",
        "API_CLIENT_ID": "k",
        "API_CLIENT_SECRET": "s",
        "ZONE": "ac1",
        variable: value,
    }
    environ = {f"SNAPSHOT_MCP_{name}": text for name, text in given.items()}
    with pytest.raises(SettingsError) as wrong:
        load_settings({**environ, "SNAPSHOT_MCP_CONFIG": str(config)})
    assert wrong.value.message.startswith(f"SNAPSHOT_MCP_{variable}: ")
    assert "config.toml" not in wrong.value.message
    assert "hunter2" not in wrong.value.message
