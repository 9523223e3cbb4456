"""Settings of a zone behind the volume-snapshot REST API: where it is, and who we are there. No I/O.

A URL is checked here, before a credential can travel: https everywhere, plain http to this machine only.
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
    """Which form is sent; both are read (CONTRACT.md, "Differences of the later revision")."""

    SPECIFICATION = "specification"
    LATER = "2016-12"


def checked_url(url: str) -> str:
    """Return the base URL without default port, trailing slash and `/v2`.

    Raises ValueError, whose text does not repeat the URL: it may hold a secret.
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
    """Return the proxy's URL as it is. Raises ValueError."""
    if proxy.get_secret_value() and _split(proxy.get_secret_value()) is None:
        raise ValueError("should be an http(s) address such as http://proxy.example.com:3128")
    return proxy


class AnchCloudZoneSettings(ZoneSettings):
    """A zone behind the volume-snapshot REST API."""

    provider: Literal["anchcloud"] = "anchcloud"
    url: Annotated[str, AfterValidator(checked_url), Variable("API_URL")]
    client_id: Annotated[str, Field(pattern="^[^:]+$"), Variable("API_CLIENT_ID")]
    """HTTP Basic ends it at the first colon, so it has none."""
    client_secret: Annotated[SecretStr, Field(min_length=1), Variable("API_CLIENT_SECRET")]
    zone: Annotated[str, Variable("ZONE", names_zone=True)] = ""
    """The provider's zone id; the table's name by default."""
    api_revision: Annotated[ApiRevision, Variable("API_REVISION", is_needed=False)] = ApiRevision.SPECIFICATION
    ca_file: Path | None = None
    proxy: Annotated[SecretStr, AfterValidator(checked_proxy)] = SecretStr("")
    """Its URL, which may hold a password."""

    def location(self, name: str) -> str:
        """Return the URL of the zone that the settings call `name`; it never holds a credential."""
        return f"{self.url}/v2/zone/{quote(self.zone or name, safe='')}"

    def place(self, site: Site) -> str:
        """Return the URL in lower case with the zone id: another spelling of the URL is no other place."""
        return f"{self.url.casefold()} {self.zone or site.name}"

    def build(self, site: Site) -> "Provider":
        """Return the zone; httpx is loaded and the provider is called with the first call."""
        from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone

        return AnchCloudZone(site.name, self)

    @property
    def key_pair(self) -> SecretStr:
        """Return the key pair as HTTP Basic carries it."""
        pair = f"{self.client_id}:{self.client_secret.get_secret_value()}"
        return SecretStr(base64.b64encode(pair.encode()).decode())

    @property
    def is_encrypted(self) -> bool:
        """Whether the provider is called over https."""
        return self.url.startswith("https:")


def _split(url: str) -> SplitResult | None:
    """The parts of an http(s) URL with a host; None for anything else."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if is_sound and not set(url) & set(" \t\r\n") else None
