"""The REST face on a real loopback socket, for tests, and clients of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.providers.anchcloud import AnchCloudZone, Patience
from snapshot_mcp.service import KeyPair, TokenBook, bind, build_service, running

KEY_PAIR = KeyPair(client_id="key-test", client_secret=SecretStr("a-secret-that-nobody-may-see"))
ZONE_ID = "ac1"

HASTY = Patience(
    connect_seconds=2,
    read_seconds=2,
    change_seconds=1.0,
    token_seconds=2,
    total_seconds=8,
    first_pause_seconds=0.02,
    longest_pause_seconds=0.2,
    lookup_seconds=1.0,
    silence_seconds=0.6,
    poll_seconds=0.1,
    outage_seconds=5,
    stream_retry_seconds=1,
)
"""A client's patience for tests: everything is near."""


@dataclass(frozen=True)
class Served:
    """A face that runs: where, its tokens, and clients for it."""

    url: str
    tokens: TokenBook

    def client(self, *, url: str = "", **options: Any) -> AnchCloudZone:
        return client_of(url or self.url, **options)


def client_of(url: str, *, patience: Patience = HASTY, **options: Any) -> AnchCloudZone:
    given = {"client_id": KEY_PAIR.client_id, "client_secret": KEY_PAIR.client_secret, "zone_id": ZONE_ID, **options}
    return AnchCloudZone("remote", url=url, patience=patience, **given)


@asynccontextmanager
async def served(
    provider: Provider,
    *,
    expires_in_seconds: int = 3600,
    heartbeat_seconds: float = 0.2,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    timing = {"clock": clock} if clock else {}
    tokens = TokenBook([KEY_PAIR], expires_in_seconds=expires_in_seconds, **timing)
    app = build_service({ZONE_ID: provider}, tokens, heartbeat_seconds=heartbeat_seconds, **options)
    async with running(app, bind("127.0.0.1", 0)) as url:
        yield Served(url, tokens)
