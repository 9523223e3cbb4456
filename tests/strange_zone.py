"""A provider made of canned answers: what a real one, or something before it, may say. There is no zone behind it."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from tests.faulty_proxy import Canned, Decision, FaultyProxy, Seen, faulty_proxy
from tests.rest_face import client_of

TOKEN = "token-4711-that-nobody-may-see"


def answer(value: Any, status: int = 200, *headers: str) -> Canned:
    return Canned(status, json.dumps(value).encode(), ("Content-Type: application/json", *headers))


def error(status: int, code: object, message: str, *headers: str) -> Canned:
    return answer({"code": code, "message": message}, status, *headers)


def page(status: int, text: str, *headers: str) -> Canned:
    """A web page, as proxies answer."""
    return Canned(status, f"<html><body>{text}</body></html>".encode(), ("Content-Type: text/html", *headers))


def snapshots(*rows: dict[str, Any], total_count: object = None) -> Canned:
    return answer({"snapshots": rows, "total_count": len(rows) if total_count is None else total_count})


@dataclass
class StrangeZone:
    """Answers by method and the path's last part (`GET volumes`); what is not named is an empty list, or absent."""

    proxy: FaultyProxy
    answers: dict[str, Decision | Callable[[Seen], Decision]] = field(default_factory=dict)

    def decide(self, seen: Seen) -> Decision:
        parts = urlsplit(seen.target).path.split("/")
        name = next(
            (one for one in (f"{seen.method} {parts[-1]}", f"{seen.method} {parts[-2]}/") if one in self.answers), ""
        )
        if name:
            given = self.answers[name]
            return given(seen) if callable(given) else given
        if seen.is_token:
            return answer({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})
        if seen.method == "GET" and parts[-1] in {"volumes", "instances", "images", "volume_snapshots"}:
            return answer({parts[-1].removeprefix("volume_"): [], "total_count": 0})
        return answer([]) if parts[-1] == "unfinished_jobs" else error(404, "not_found", "Nothing is here.")

    def asked(self, ending: str) -> int:
        """How many requests there were whose path ends so."""
        return len([seen for seen, _ in self.proxy.seen if urlsplit(seen.target).path.endswith(ending)])


@asynccontextmanager
async def strange_zone(**options: Any) -> AsyncIterator[tuple[StrangeZone, AnchCloudZone]]:
    """A strange zone and a client of it."""
    async with faulty_proxy("http://127.0.0.1:9") as proxy:
        zone = StrangeZone(proxy)
        proxy.decide = zone.decide
        client = client_of(proxy.url, **options)
        yield zone, client
        await client.aclose()
