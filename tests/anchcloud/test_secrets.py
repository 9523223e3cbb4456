"""Secrets are in no log line, error or repr: the test searches all of them."""

import logging
import re
import traceback
from dataclasses import replace

import pytest
from pydantic import SecretStr

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.service import TokenBook
from tests.anchcloud.conftest import Wire
from tests.faulty_proxy import Canned, Decision, Fault, Seen
from tests.rest_face import HASTY, KEY_PAIR, client_of

pytestmark = pytest.mark.anyio

SECRET = KEY_PAIR.client_secret.get_secret_value()


async def test_secrets_are_in_no_log_error_or_repr(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is logged, every kind of thing goes wrong, and a zone that repeats what it was sent is not repeated."""
    caplog.set_level(logging.DEBUG)
    seen_tokens: set[str] = set()
    shown: list[str] = []

    def echo(seen: Seen) -> Canned:
        sent = seen.headers.get("authorization", "")
        body = b'{"code": "bad_request", "message": "you sent %s and %s"}' % (sent.encode(), SECRET.encode())
        return Canned(400, body)

    def decide(seen: Seen) -> Decision:
        token = seen.headers.get("authorization", "")
        if token.startswith("Bearer "):
            seen_tokens.add(token.removeprefix("Bearer "))
        return decisions[0](seen)

    decisions = [lambda seen: Fault.NONE]
    wire.proxy.decide = decide
    hurried = replace(HASTY, lookup_seconds=0.05, outage_seconds=0.1)
    client = client_of(wire.proxy.url, patience=hurried)
    await client.list_snapshots(SnapshotFilter())
    for decision in (
        lambda seen: Fault.NONE,
        lambda seen: Fault.NONE if seen.is_token else echo(seen),
        lambda seen: Fault.EXPIRED,
        lambda seen: Fault.RESET_AFTER,
        lambda seen: Fault.NONE if seen.is_token else Fault.HALF_BODY,
        echo,
    ):
        decisions[0] = decision
        for call in (
            client.list_snapshots(SnapshotFilter()),
            client.create_snapshots(["vol-nothere0"], "x"),
            anext(aiter(client.watch_jobs())) if decision is echo else client.list_quota_left(),
        ):
            try:
                await call
            except ZoneError as error:
                shown += [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
    shown += [repr(client), repr(vars(client)), repr(KEY_PAIR), repr(TokenBook([KEY_PAIR]))]
    wrong = client_of(wire.face.url, client_secret=SecretStr("wrong-secret-4711"))
    with pytest.raises(ZoneError) as refusal:
        await wrong.list_snapshots(SnapshotFilter())
    shown += [str(refusal.value), repr(wrong)]
    await client.aclose()
    await wrong.aclose()
    everything = "\n".join([*shown, caplog.text])
    assert len(caplog.records) > 50, "httpx and uvicorn did log"
    assert len(seen_tokens) >= 2
    for secret in (SECRET, "wrong-secret-4711", *seen_tokens):
        assert secret not in everything
    assert not re.search(r"(?i)basic [a-z0-9+/=]{8,}", everything)
