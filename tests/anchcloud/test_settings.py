"""Where credentials may travel to, and that nothing is loaded or called before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.providers import Site
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings, checked_url
from tests.rest_face import KEY_PAIR, client_of

GOOD_URLS = {
    "https://api.example.com": "https://api.example.com",
    "https://api.example.com/": "https://api.example.com",
    "https://api.example.com:8443/v2/": "https://api.example.com:8443",
    "https://api.example.com:443": "https://api.example.com",
    "https://example.com/cloud/v2": "https://example.com/cloud",
    "http://127.0.0.1:8010": "http://127.0.0.1:8010",
    "http://[::1]:8010/": "http://[::1]:8010",
    "http://localhost": "http://localhost",
}

BAD_URLS = [
    "http://api.51idc.com",
    "http://127.0.0.1.evil.example",
    "http://10.0.0.1",
    "ftp://api.example.com",
    "api.example.com",
    "https://",
    "https://user:hunter2@api.example.com",
    "https://api.example.com?token=hunter2",
    "https://api.example.com#x",
    "https://[half",
    "https://api.example.com:port",
    "",
]


def test_urls_are_normalised() -> None:
    for given, url in GOOD_URLS.items():
        assert checked_url(given) == url


def test_addresses_that_credentials_must_not_be_sent_to_are_refused() -> None:
    """Plain http is for this machine only; a URL holds no credentials."""
    for url in BAD_URLS:
        with pytest.raises(ValidationError, match="should be https://") as refusal:
            client_of(url)
        assert "hunter2" not in str(refusal.value)


HTTPS = "https://api.example.com/v2"
HERE = "http://127.0.0.1:8010"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (HTTPS, "https://API.example.com:443/", True),
        (HTTPS, "https://api.example.com.", True),
        (HTTPS, "https://api.example.com/%76%32", True),
        (HTTPS, "https://api.example.com/./", True),
        (HTTPS, "https://api.example.com/v2/.", True),
        (HTTPS, "https://api.example.com/x/../v2", True),
        ("https://api.example.com/%4Fne", "https://api.example.com/One", True),
        ("https://api.example.com/a%2fb", "https://api.example.com/a%2Fb", True),
        ("https://api.example.com/a%2Fb", "https://api.example.com/a/b", False),
        ("https://[2001:db8::1]", "https://[2001:DB8:0:0:0:0:0:1]", True),
        (HERE, "http://localhost:8010", True),
        (HERE, "http://[::1]:8010", True),
        (HERE, "http://[0:0:0:0:0:0:0:1]:8010/v2", True),
        (HERE, "http://127.0.0.1:8011", False),
        (HERE, "http://127.0.0.2:8010", False),
        (HTTPS, "https://api.example.com/cloud", False),
        (HTTPS, "https://api.example.com:8443", False),
        (HTTPS, "https://api2.example.com", False),
    ],
)
def test_one_place_in_another_spelling_is_the_same_place(one: str, other: str, is_same: bool) -> None:
    """Zones of one place share `production`."""
    site = Site("ac1", Path("/home"))
    places = {
        AnchCloudZoneSettings(url=url, client_id="key", client_secret=SecretStr("hush")).place(site)
        for url in (one, other)
    }
    assert (len(places) == 1) is is_same


def test_other_settings_are_checked_before_the_first_call() -> None:
    url = "https://api.example.com"
    for wrong in (
        {"client_id": ""},
        {"client_id": "a:b"},
        {"client_secret": SecretStr("")},
        {"api_revision": "2017"},
        {"proxy": SecretStr("socks4:hunter2")},
    ):
        with pytest.raises(ValidationError) as refusal:
            client_of(url, **wrong)
        assert "hunter2" not in str(refusal.value)


def test_zone_id_is_the_settings_name_unless_given() -> None:
    assert client_of("https://a.example", zone="").location == "https://a.example/v2/zone/remote"
    named = client_of("https://a.example", zone="ac1")
    assert (named.zone, named.location) == ("remote", "https://a.example/v2/zone/ac1")


@pytest.mark.anyio
async def test_ca_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    """a private CA and a proxy can be set"."""
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "absent.pem"):
        client = client_of("https://127.0.0.1:9", ca_file=tmp_path / name)
        with pytest.raises(BadRequest, match=name):
            await client.list_snapshots(SnapshotFilter())


def test_constructing_a_zone_loads_no_http_client() -> None:
    """Start-up: listing tools pays for nothing of this."""
    code = (
        "import sys; from snapshot_mcp.providers import Site; "
        "from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings as Settings; "
        "Settings(url='https://a.example', client_id='k', client_secret='s').build(Site('ac1', None)); "
        "print([name for name in ('httpx', 'httpcore', 'h11') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_secret_stands_in_no_repr() -> None:
    client = client_of("https://a.example", proxy=SecretStr("http://user:hunter2@proxy.example:3128"))
    shown = repr(client) + repr(vars(client))
    assert KEY_PAIR.client_secret.get_secret_value() not in shown
    assert "hunter2" not in shown
