"""Settings of a zone behind the volume-snapshot REST API: its address and our credentials. No I/O.

The URL is checked here, before credentials can be sent to it: https, or plain http to this machine.
"""

import base64
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from snapshot_mcp.ground.web import is_loopback
from snapshot_mcp.providers import Site, Variable, ZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.contract.provider import Provider

EXPECTED_URL = "should be https://HOST (http:// for this machine), without a user, a query or a fragment"
DEFAULT_PORTS = {"http": 80, "https": 443}


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
        """Return the URL in lower case with the zone id, so that another spelling of the URL is the same place."""
        return f"{self.url.casefold()} {self.zone or site.name}"

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


def _split(url: str) -> SplitResult | None:
    """Return the parts of an http(s) URL with a host, None for anything else."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if is_sound and not set(url) & set(" \t\r\n") else None
