"""Where a provider is, who we are there, and how long we wait for it. No I/O.

A URL is checked here, before a credential can travel: https everywhere, plain http to this machine only.
"""

import base64
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.web import is_loopback


class ApiRevision(StrEnum):
    """Which form is sent; both are read (contract.md, "Differences of the later revision")."""

    SPECIFICATION = "specification"
    LATER = "2016-12"


@dataclass(frozen=True, slots=True)
class Patience:
    """Every time that is waited for something, in seconds; `read_tries` counts the first one too.

    The worst change (a look before it, a lost answer, a look after it) ends within a minute, before MCP hosts give up.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    change_seconds: float = 25.0
    token_seconds: float = 10.0
    total_seconds: float = 25.0
    """For one read with all its retries; a change has its own time beside it."""
    read_tries: int = 4
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 4.0
    lookup_seconds: float = 8.0
    """How long a change whose answer was lost is looked for."""
    silence_seconds: float = 45.0
    """A stream without even a heartbeat for so long is broken."""
    poll_seconds: float = 2.0
    outage_seconds: float = 60.0
    """A watch that has heard nothing of the zone for so long gives up."""
    stream_retry_seconds: float = 60.0
    """Before a provider without a stream is asked again for one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider's address and our key pair there.

    `proxy` is a URL and may hold a password; nothing here prints it.

    Raises BadRequest for an address that credentials must not be sent to.
    """

    url: str
    client_id: str
    client_secret: SecretStr
    zone_id: str
    revision: ApiRevision = ApiRevision.SPECIFICATION
    ca_file: Path | None = None
    proxy: SecretStr = field(default_factory=lambda: SecretStr(""))

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url))
        if not self.client_id or not self.client_secret.get_secret_value():
            raise BadRequest(
                f"No key pair for {self.url}.",
                hint="Set client_id and client_secret to those that the provider gave you.",
            )
        if not self.zone_id:
            raise BadRequest(f"No zone for {self.url}.", hint="Set zone to the provider's zone id, for example ac1.")
        if ":" in self.client_id:
            raise BadRequest("A client_id cannot hold a colon.", hint="Check client_id.")
        if self.proxy.get_secret_value():
            _check_proxy(self.proxy.get_secret_value())

    @property
    def location(self) -> str:
        """The zone's URL; it never holds a credential."""
        return f"{self.url}/v2/zone/{quote(self.zone_id, safe='')}"

    @property
    def key_pair(self) -> str:
        """As HTTP Basic carries it; a secret."""
        return base64.b64encode(f"{self.client_id}:{self.client_secret.get_secret_value()}".encode()).decode()

    @property
    def is_encrypted(self) -> bool:
        return self.url.startswith("https:")


def checked_url(url: str) -> str:
    """Return the base URL without trailing slash and `/v2`. Raises BadRequest."""
    shown = clean_text(url.rpartition("@")[2], 200)
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadRequest(f"The URL {shown!r} is malformed.", hint="Write it like https://api.example.com.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise BadRequest(f"The URL {shown!r} is no http(s) address.", hint="Write it like https://api.example.com.")
    if parts.username is not None or parts.password is not None:
        raise BadRequest(
            f"The URL of {host} holds a user or a password.", hint="Put them into client_id and client_secret."
        )
    if parts.query or parts.fragment:
        raise BadRequest(f"The URL of {host} has a query or a fragment.", hint="Give the base address alone.")
    if parts.scheme == "http" and not is_loopback(host):
        raise BadRequest(
            f"{shown!r} would send the key pair unencrypted to {host}.",
            hint="Use https. Plain http is for this machine only (127.0.0.1, ::1, localhost).",
        )
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v2")
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{path}"


def _check_proxy(proxy: str) -> None:
    try:
        parts = urlsplit(proxy)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise BadRequest("The proxy is no http(s) address.", hint="Write it like http://proxy.example.com:3128.")
