"""Settings of a zone behind the volume-snapshot REST API: its address and our credentials. No I/O.

The URL is checked here, before credentials can be sent to it: https, or plain http to this machine.
"""

import base64
import re
import string
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from snapshot_mcp.ground.web import is_loopback
from snapshot_mcp.providers import Site, Variable, ZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.contract.provider import Provider

EXPECTED_URL = "should be https://HOST (http:// for this machine), without a user, a query or a fragment"
DEFAULT_PORTS = {"http": 80, "https": 443}

_ESCAPED = re.compile("%([0-9a-f]{2})")
_UNRESERVED = frozenset(f"{string.ascii_letters}{string.digits}-._~")
"""Characters that a URL may also hold percent-encoded, with the same meaning (RFC 3986, section 2.3)."""


class ApiRevision(StrEnum):
    """The form of the requests; answers may have either (CONTRACT.md, "Differences of the later revision")."""

    SPECIFICATION = "specification"
    LATER = "2016-12"


def checked_url(url: str) -> str:
    """Return the base URL without default port, trailing slash and `/v2`.

    Raises ValueError without repeating the URL, which may contain a secret.
    """
    parts = _split(url)
    if parts is None or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(EXPECTED_URL)
    host = parts.hostname or ""
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("should be https://: http:// would send the key pair unencrypted to another machine")
    name = f"[{host}]" if ":" in host else host
    port = "" if parts.port in {None, DEFAULT_PORTS[parts.scheme]} else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}{parts.path.rstrip('/').removesuffix('/v2')}"


def checked_proxy(proxy: SecretStr) -> SecretStr:
    """Return the proxy's URL unchanged. Raises ValueError if it is not an http(s) URL."""
    if proxy.get_secret_value() and _split(proxy.get_secret_value()) is None:
        raise ValueError("should be an http(s) address such as http://proxy.example.com:3128")
    return proxy


class AnchCloudZoneSettings(ZoneSettings):
    """A zone behind the volume-snapshot REST API."""

    provider: Literal["anchcloud"] = "anchcloud"
    url: Annotated[str, AfterValidator(checked_url), Variable("API_URL")]
    client_id: Annotated[str, Field(pattern="^[^:]+$"), Variable("API_CLIENT_ID")]
    """Without a colon, which ends it in HTTP Basic."""
    client_secret: Annotated[SecretStr, Field(min_length=1), Variable("API_CLIENT_SECRET")]
    zone: Annotated[str, Variable("ZONE", names_zone=True)] = ""
    """The provider's zone id; by default the name of the table."""
    api_revision: Annotated[ApiRevision, Variable("API_REVISION", is_needed=False)] = ApiRevision.SPECIFICATION
    ca_file: Path | None = None
    proxy: Annotated[SecretStr, AfterValidator(checked_proxy)] = SecretStr("")
    """The URL, which may contain a password."""

    def location(self, name: str) -> str:
        """Return the URL of the zone named `name` in the settings; it never contains credentials."""
        return f"{self.url}/v2/zone/{quote(self.zone or name, safe='')}"

    def place(self, site: Site) -> str:
        """Return the URL in one spelling with the zone id, so that another spelling of the URL is the same place."""
        return f"{_one_spelling(self.url)} {self.zone or site.name}"

    def build(self, site: Site) -> "Provider":
        """Build the zone; the first call loads httpx and connects."""
        from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone

        return AnchCloudZone(site.name, self)

    @property
    def key_pair(self) -> SecretStr:
        """The key pair encoded for HTTP Basic."""
        pair = f"{self.client_id}:{self.client_secret.get_secret_value()}"
        return SecretStr(base64.b64encode(pair.encode()).decode())

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses https."""
        return self.url.startswith("https:")


def _one_spelling(url: str) -> str:
    """Return a checked URL in the form in which two are compared; what is called keeps its own.

    In doubt two are the same place, because this can only make more zones production zones.
    """
    parts = urlsplit(url.casefold())
    host = (parts.hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is not None:
        address = getattr(address, "ipv4_mapped", None) or address
        host = "localhost" if str(address) in {"127.0.0.1", "::1"} else str(address)
    path = normpath("/" + _ESCAPED.sub(_unescaped, parts.path))
    while path.endswith("/v2"):
        path = path.removesuffix("/v2")
    return f"{parts.scheme}://{host} {parts.port or DEFAULT_PORTS[parts.scheme]} {path.strip('/')}"


def _unescaped(escape: re.Match[str]) -> str:
    """Return the character of a percent-encoding if it means the same unencoded."""
    character = chr(int(escape[1], 16))
    return character.lower() if character in _UNRESERVED else escape[0]


def _split(url: str) -> SplitResult | None:
    """Return the parts of an http(s) URL with a host, None for anything else."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if is_sound and not set(url) & set(" \t\r\n") else None
