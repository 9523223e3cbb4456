"""A secret of the settings is in no repr, no error and no log line, whatever holds it."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.exposure import describe_exposure
from snapshot_mcp.operator_file import OperatorFile
from snapshot_mcp.settings import Settings, SettingsError, load_settings

TOKEN, SECRET, PROXY_PASSWORD, VARIABLE = "hush-token-hush-token-hush", "hush-client", "hush-proxy", "hush-variable"
FILE = f"""
[tokens.agent]
token = "{TOKEN}"
roles = ["operator"]
[zones.far]
provider = "anchcloud"
url = "https://127.0.0.1:9"
client_id = "key"
client_secret = "{SECRET}"
proxy = "http://user:{PROXY_PASSWORD}@127.0.0.1:9"
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "config.toml"
    config.write_text(FILE, encoding="utf-8")
    api = {"URL": "http://127.0.0.1:9", "CLIENT_ID": "key", "CLIENT_SECRET": VARIABLE}
    found = {f"SNAPSHOT_MCP_API_{key}": value for key, value in api.items()}
    return {
        "SNAPSHOT_MCP_HOME": str(tmp_path / "home"),
        "SNAPSHOT_MCP_CONFIG": str(config),
        "SNAPSHOT_MCP_ZONE": "ac1",
        **found,
    }


def texts_of(thing: object) -> Iterator[str]:
    """Every way in which an object of ours is usually printed, and what it is made of."""
    yield from (str(thing), repr(thing), f"{thing}")
    yield repr(getattr(thing, "__dict__", {}))
    yield repr(getattr(thing, "__pydantic_private__", {}))


def leaks(texts: list[str]) -> list[str]:
    return [text for text in texts if "hush" in text]


def holders(settings: Settings) -> Iterator[Any]:
    """What is built of the settings and keeps a secret."""
    yield from (settings, copy.copy(settings), settings.model_dump(), settings.model_dump_json(), settings.zones)
    yield from (*settings.zones.values(), *settings.tokens.values(), settings.site("far"))
    file = OperatorFile(settings)
    yield from (file, file.now(), app.roll_in(file), *app.roll_in(file).callers)


def test_nothing_that_holds_a_secret_prints_it(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = load_settings(environ)
    texts = [text for holder in holders(settings) for text in texts_of(holder)]
    logging.getLogger("snapshot_mcp").warning("%s %r", settings, settings.zones)
    assert not leaks([*texts, caplog.text, *describe_exposure(environ)])
    assert settings.zones["ac1"].model_dump()["client_secret"].get_secret_value() == VARIABLE


@pytest.mark.anyio
async def test_a_zone_that_cannot_be_reached_prints_no_secret(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with app.build_zones(load_settings(environ)) as zones:
        for name in ("far", "ac1"):
            zone = zones.get(name)
            with pytest.raises(ZoneError) as error:
                await zone.provider.list_snapshots(SnapshotFilter())
            session = vars(zone.provider)["_session"]
            held = [zone, zone.provider, session, *vars(session).values(), error.value, vars(error.value)]
            assert not leaks([text for one in held for text in texts_of(one)])
    assert not leaks([caplog.text])


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        (f'token = "{TOKEN}"', 'token = "hush"'),
        (f'token = "{TOKEN}"', 'token = ["hush"]'),
        (f'client_secret = "{SECRET}"', 'client_secret = { hush = "hush" }'),
        (f"http://user:{PROXY_PASSWORD}@127.0.0.1:9", f"socks5://user:{PROXY_PASSWORD}@127.0.0.1:9"),
        (f"http://user:{PROXY_PASSWORD}@127.0.0.1:9", f"http://user:{PROXY_PASSWORD}@127.0.0.1:port"),
        ("https://127.0.0.1:9", "https://user:hush@127.0.0.1:9"),
        ("https://127.0.0.1:9", "https://127.0.0.1:9?key=hush"),
        ("https://127.0.0.1:9", "http://hush.example"),
    ],
)
def test_an_error_about_a_secret_does_not_repeat_it(environ: dict[str, str], key: str, wrong: str) -> None:
    config = Path(environ["SNAPSHOT_MCP_CONFIG"])
    assert key in FILE
    config.write_text(FILE.replace(key, wrong), encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        load_settings(environ)
    assert not leaks([*texts_of(error.value), *texts_of(error.value.__cause__), error.value.message, error.value.hint])


@pytest.mark.parametrize("name", ["API_URL", "API_CLIENT_ID", "API_REVISION"])
def test_an_error_about_a_variable_does_not_repeat_its_value(environ: dict[str, str], name: str) -> None:
    """Somebody may have put the secret into the wrong one."""
    with pytest.raises(SettingsError) as error:
        load_settings({**environ, f"SNAPSHOT_MCP_{name}": "hush:hush"})
    assert not leaks([*texts_of(error.value), error.value.message])
