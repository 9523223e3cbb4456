"""The REST face on a real loopback socket, for tests, and clients of it."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from pydantic import SecretStr

from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service import KeyFile, KeyPair, TokenBook, bind, build_service, running
from tests.patience import PATIENCE_SECONDS

KEY_PAIR = KeyPair(client_id="key-test", client_secret=SecretStr("a-secret-that-nobody-may-see"))
ZONE_ID = "ac1"

HASTY = Patience(
    connect_seconds=2,
    read_seconds=1,
    change_seconds=0.7,
    token_seconds=2,
    total_seconds=8,
    first_pause_seconds=0.02,
    longest_pause_seconds=0.2,
    lookup_seconds=0.5,
    silence_seconds=0.6,
    poll_seconds=0.1,
    outage_seconds=5,
    stream_retry_seconds=1,
)
"""A client's patience for tests: everything is near."""
PATIENT = replace(HASTY, lookup_seconds=20, read_seconds=20, token_seconds=20, total_seconds=50)
"""For what must come through, or be found, on a busy machine too; a change's lost answer is given up as soon."""


@dataclass(frozen=True)
class Served:
    """A face that runs: where, its tokens, and clients for it."""

    url: str
    tokens: TokenBook

    def client(self, *, url: str = "", **options: Any) -> AnchCloudZone:
        return client_of(url or self.url, **options)


def client_of(url: str, *, patience: Patience = HASTY, **options: Any) -> AnchCloudZone:
    given = {"client_id": KEY_PAIR.client_id, "client_secret": KEY_PAIR.client_secret, "zone": ZONE_ID, **options}
    return AnchCloudZone("remote", AnchCloudZoneSettings(url=url, **given), patience)


@dataclass(frozen=True)
class RawAnswer:
    """An HTTP answer as it came; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.headers
        return json.loads(self.body)


async def ask(
    url: str, method: str, target: str, body: bytes = b"", *, token: str = "", headers: Mapping[str, str] | None = None
) -> RawAnswer:
    """One request on a socket of its own, written by hand: no client in between."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    given = {"Host": f"{host}:{port}", "Connection": "close", "Content-Length": str(len(body))}
    given |= {"Authorization": f"Bearer {token}"} if token else {}
    given |= headers or {}
    if "Transfer-Encoding" in given:
        del given["Content-Length"]
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    answer = await send_raw(url, "\r\n".join(lines).encode("utf-8") + body)
    assert answer is not None
    return answer


async def send_raw(url: str, sent: bytes, *, hang_up: bool = False) -> RawAnswer | None:
    """These very bytes on a socket of their own, and what came back; None for who hangs up instead of reading it."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(sent)
            if hang_up:
                return None
            answer = b"".join([chunk async for chunk in stream])
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    names = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return RawAnswer(int(status.split()[1]), names, content)


async def fetch_token(url: str, client_id: str = "", client_secret: str = "") -> str:
    pair = f"{client_id or KEY_PAIR.client_id}:{client_secret or KEY_PAIR.client_secret.get_secret_value()}"
    basic = base64.b64encode(pair.encode()).decode()
    form = b"grant_type=client_credentials"
    answer = await ask(url, "POST", "/v2/oauth2/token", form, headers={"Authorization": f"Basic {basic}"})
    assert answer.status == 200, answer
    assert answer.json["token_type"] == "Bearer"
    token = answer.json["access_token"]
    assert isinstance(token, str)
    return token


@asynccontextmanager
async def served(
    provider: Provider,
    *,
    keys: Iterable[KeyPair] | KeyFile = (KEY_PAIR,),
    expires_in_seconds: int = 3600,
    heartbeat_seconds: float = 0.2,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    timing = {"clock": clock} if clock else {}
    tokens = await anyio.to_thread.run_sync(
        partial(TokenBook, keys, expires_in_seconds=expires_in_seconds, **timing)  # it may read a file
    )
    app = build_service({ZONE_ID: provider}, tokens, heartbeat_seconds=heartbeat_seconds, **options)
    async with running(app, bind("127.0.0.1", 0)) as url:
        yield Served(url, tokens)


@contextmanager
def served_in_thread(folder: Path, **options: Any) -> Iterator[Served]:
    """A face that many tests share: over a zone of its own in a thread, as another process would have it."""
    with anyio.from_thread.start_blocking_portal() as portal:
        zone = LocalZone(folder)
        with portal.wrap_async_context_manager(served(zone, **options)) as face:
            yield face
        portal.call(zone.aclose)
