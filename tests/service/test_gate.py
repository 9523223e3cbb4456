"""Who is let in, and what every kind of bad request gets."""

import json

import pytest

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service.gate import PUBLIC_PATHS
from snapshot_mcp.service.operations import OPERATIONS
from tests.rest_face import Served, ask, fetch_token, send_raw, served

pytestmark = pytest.mark.anyio

ZONE = "/v2/zone/ac1"
ROUTES = [
    *((one.method, one.path.format(zone="ac1", snapshot_id="ss-aaaaaaaa", job_id="j")) for one in OPERATIONS),
    ("GET", f"{ZONE}/notifier/stream"),
    ("GET", "/nothing/here"),
    ("PATCH", f"{ZONE}/volume_snapshots"),
    ("GET", "/v2/zone/other/volume_snapshots"),
    ("GET", "/"),
    ("OPTIONS", "*"),
]


async def test_no_route_answers_without_a_valid_token(face: Served, subtests: pytest.Subtests) -> None:
    """Without a token or with a wrong one, every route but token, health and OpenAPI answers 401."""
    for method, path in ROUTES:
        with subtests.test(method=method):
            good = await fetch_token(face.url)
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Basic {good}"},
                {"Authorization": "é"},
            ):
                answer = await ask(face.url, method, path, headers=headers)
                assert answer.status == 401
                assert answer.json["code"] == "unauthorized"
                assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS - {"/v2/oauth2/token"}))
async def test_health_and_openapi_are_public(path: str, face: Served) -> None:
    assert (await ask(face.url, "GET", path)).status == 200


BAD_REQUESTS = [
    ("GET", "/nothing/here", 404, "not_found"),
    ("GET", f"{ZONE}/volume_snapshots/", 404, "not_found"),
    ("GET", "/v2/zone/other/volume_snapshots", 404, "unknown_zone"),
    ("GET", f"{ZONE}/job/none", 404, "not_found"),
    ("PATCH", f"{ZONE}/volume_snapshots", 405, "bad_request"),
    ("POST", "/healthz", 405, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots/../../../../etc/passwd", 404, "not_found"),
    ("DELETE", f"{ZONE}/volume_snapshots/..%2f..%2fapply", 404, "not_found"),
    ("DELETE", f"{ZONE}/volume_snapshots/%00", 404, "not_found"),
    ("DELETE", f"{ZONE}/volume_snapshots/{'x' * 5000}", 404, "not_found"),
    ("GET", "//v2/zone/ac1/volume_snapshots", 404, "not_found"),
    ("GET", f"{ZONE}/volume_snapshots?limit=101", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?limit=0", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?limit=ten", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?limit=1&limit=2", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?offset=-1", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?offset={'9' * 30}", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?snapshot_type=2", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?verbose=yes", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?search_word=%ff", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?statsu=available", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?search_word={'x' * 20_000}", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?snapshots={'x,' * 200}", 400, "bad_request"),
    ("GET", f"{ZONE}/volume_snapshots?snapshots=,", 400, "bad_request"),
    ("GET", f"{ZONE}/volumes?volumes=&volumes=%2C%2C", 400, "bad_request"),
]


async def test_bad_requests_get_the_envelope(face: Served, subtests: pytest.Subtests, token: str) -> None:
    """Malformed JSON, wrong types, path tricks: 4xx with the envelope, 404 and 405 too."""
    for method, path, status, code in BAD_REQUESTS:
        with subtests.test(method=method):
            answer = await ask(face.url, method, path, token=token)
            assert (answer.status, answer.json["code"]) == (status, code)
            assert answer.json["message"]
            if status == 405:
                assert answer.headers["allow"]


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"resources": NaN, "snapshot_name": "x"}',
    b'{"resources": "vol-1", "snapshot_name": "x", "is_full": 0}',
    b'{"resources": [], "snapshot_name": "x", "is_full": 0}',
    b'{"resources": [1], "snapshot_name": "x", "is_full": 0}',
    b'{"resources": ["vol-1"], "snapshot_name": null, "is_full": 0}',
    b'{"resources": ["vol-1"], "snapshot_name": "x", "is_full": 2}',
    b'{"resources": ["vol-1"], "snapshot_name": "x", "is_full": true}',
    b'{"resources": ["vol-1"], "snapshot_name": "x", "is_full": 0, "more": 1}',
    b'{"resources": ["vol-1"], "resources": ["vol-2"], "snapshot_name": "x", "is_full": 0}',
    b'{"resources": ["vol-1"], "snapshot_name": "\\ud800", "is_full": 0}',
    b'{"resources": ["\\ud800"], "snapshot_name": "x", "is_full": 0}',
    b'{"resources": ["vol-1"], "snapshot_name": "' + b"x" * 256 + b'", "is_full": 0}',
    b'{"resources": [' + b",".join([b'"v"'] * 101) + b'], "snapshot_name": "x", "is_full": 0}',
    b'{"resources": ["vol-1"], "snapshot_name": "x", "is_full": ' + b"9" * 5000 + b"}",
]


async def test_bad_bodies_are_bad_requests(face: Served, subtests: pytest.Subtests, token: str) -> None:
    """Malformed JSON and wrong types."""
    for body in BAD_BODIES:
        with subtests.test(body=body):
            answer = await ask(face.url, "POST", f"{ZONE}/volume_snapshots", body, token=token)
            assert (answer.status, answer.json["code"]) == (400, "bad_request")


@pytest.mark.parametrize("target", [f"{ZONE}/volume_snapshots", f"{ZONE}/volume_snapshots/apply", "/v2/oauth2/token"])
@pytest.mark.parametrize("is_declared", [True, False])
async def test_10_mib_are_too_large(target: str, is_declared: bool, face: Served, token: str) -> None:
    """A body of 10 MiB gets a 4xx with the envelope, and the sender lives to read it."""
    headers = {} if is_declared else {"Transfer-Encoding": "chunked"}
    body = b"x" * (10 << 20)
    if not is_declared:
        body = b"a00000\r\n" + body + b"\r\n0\r\n\r\n"
    answer = await ask(face.url, "POST", target, body, token=token, headers=headers)
    assert (answer.status, answer.json["code"]) == (413, "bad_request")


UNREAD = [
    ("POST", "/nothing", 404),
    ("PUT", f"{ZONE}/volume_snapshots", 405),
    ("DELETE", f"{ZONE}/volume_snapshots/ss-aaaaaaaa", 404),
    ("POST", "/v2/zone/other/volume_snapshots", 404),
    ("POST", f"{ZONE}/volume_snapshots?a=1", 400),
    ("GET", f"{ZONE}/volumes", 200),
]


@pytest.mark.parametrize(("method", "target", "status"), UNREAD)
async def test_the_sender_of_10_mib_that_nobody_reads_gets_its_answer(
    method: str, target: str, status: int, face: Served, token: str
) -> None:
    """A body of 10 MiB gets a 4xx also where none is expected: no reset in mid-body."""
    answer = await ask(face.url, method, target, b"x" * (10 << 20), token=token)
    assert answer.status == status


NO_HTTP = [
    b"\x16\x03\x01\x02\r\n\r\n",
    b"GET /healthz x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "GET /healthz?é HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"POST /v2/oauth2/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2/oauth2/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /v2/oauth2/token HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000,
]


@pytest.mark.parametrize("sent", NO_HTTP, ids=range(len(NO_HTTP)))
async def test_what_is_no_http_gets_the_envelope(sent: bytes, face: Served) -> None:
    """One error envelope on the wire, before any route too."""
    answer = await send_raw(face.url, sent)
    assert answer is not None
    assert (answer.status, answer.json["code"]) == (400, "bad_request")


async def test_who_hangs_up_in_mid_body_is_no_fault_of_ours(
    shared_zone: LocalZone, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is for our own faults; anybody could fill it, for a token needs no token."""
    async with served(shared_zone) as face:
        half = b"POST /v2/oauth2/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\ngrant"
        assert await send_raw(face.url, half, hang_up=True) is None
        assert (await ask(face.url, "GET", "/healthz")).status == 200
    assert "failed" not in caplog.text


async def test_large_bodies_without_a_token_are_unauthorized(face: Served) -> None:
    """Refused before the body is read."""
    answer = await ask(face.url, "POST", f"{ZONE}/volume_snapshots", b"x" * (10 << 20))
    assert answer.status == 401


async def test_tokens_end_with_their_time(shared_zone: LocalZone) -> None:
    """A token does not outlive its `expires_in`."""
    now = 1000.0
    async with served(shared_zone, expires_in_seconds=60, clock=lambda: now) as face:
        token = await fetch_token(face.url)
        now += 59.9
        assert (await ask(face.url, "GET", f"{ZONE}/volumes", token=token)).status == 200
        now += 0.2
        assert (await ask(face.url, "GET", f"{ZONE}/volumes", token=token)).status == 401


async def test_a_stream_ends_with_its_token(shared_zone: LocalZone) -> None:
    """Not even what was opened before."""
    now = 1000.0

    def clock() -> float:
        nonlocal now
        now += 0.5  # each look at the clock
        return now

    async with served(shared_zone, expires_in_seconds=5, heartbeat_seconds=0.01, clock=clock) as face:
        answer = await ask(face.url, "GET", f"{ZONE}/notifier/stream", token=await fetch_token(face.url))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"event: hb" in answer.body


BAD_CREDENTIALS = [
    ("", b"grant_type=client_credentials", 401),
    ("Basic !!", b"grant_type=client_credentials", 401),
    ("Basic a2V5LXRlc3Q=", b"grant_type=client_credentials", 401),
    ("Basic a2V5LXRlc3Q6d3Jvbmc=", b"grant_type=client_credentials", 401),
    ("Basic bm9ib2R5Og==", b"grant_type=client_credentials", 401),
    ("Basic a2V5LXRlc3Q6d3Jvbmc=", b"grant_type=password", 400),
    ("Basic a2V5LXRlc3Q6d3Jvbmc=", b"", 400),
    ("Basic a2V5LXRlc3Q6d3Jvbmc=", b"grant_type=client_credentials" + b"&a=" * 1000, 400),
]


async def test_tokens_need_a_key_pair(face: Served, subtests: pytest.Subtests) -> None:
    """POST /v2/oauth2/token."""
    for authorization, form, status in BAD_CREDENTIALS:
        with subtests.test(authorization=authorization):
            headers = {"Authorization": authorization} if authorization else {}
            answer = await ask(face.url, "POST", "/v2/oauth2/token", form, headers=headers)
            assert answer.status == status
            assert "access_token" not in answer.json


HOSTS = {
    "snapshots.example:443": (True, True),
    "SNAPSHOTS.example": (True, True),
    "10.1.2.3": (False, True),
    "[2001:db8::7]:443": (False, True),
    "evil.example": (False, False),
    "": (False, False),
}
"""Whether each is served at a face on loopback, and at one that listens beyond this machine."""


async def test_allowed_names_are_served_and_beyond_this_machine_every_address(
    shared_zone: LocalZone, subtests: pytest.Subtests
) -> None:
    """DNS rebinding needs a name; an address cannot be rebound."""
    for any_address in (False, True):
        async with served(shared_zone, allowed_hosts=["Snapshots.example"], any_address=any_address) as face:
            token = await fetch_token(face.url)
            for host, is_served in HOSTS.items():
                with subtests.test(host=host, any_address=any_address):
                    answer = await ask(face.url, "GET", f"{ZONE}/volumes", token=token, headers={"Host": host})
                    assert answer.status == (200 if is_served[any_address] else 421)
                    assert is_served[any_address] or answer.json["code"] == "bad_request"


async def test_foreign_origins_are_turned_away(face: Served, token: str, subtests: pytest.Subtests) -> None:
    """The REST face "rejects a foreign Origin"."""
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        for path in ("/healthz", "/openapi.json", f"{ZONE}/volumes"):
            with subtests.test(origin=origin, path=path):
                answer = await ask(face.url, "GET", path, token=token, headers={"Origin": origin})
                assert (answer.status, answer.json["code"]) == (403, "forbidden")


async def test_allowed_origin_is_let_in(shared_zone: LocalZone) -> None:
    async with served(shared_zone, allowed_origins=["https://console.example"]) as face:
        answer = await ask(face.url, "GET", "/healthz", headers={"Origin": "https://console.example"})
    assert answer.json == {"status": "ok"}


async def test_openapi_names_every_route(face: Served) -> None:
    """/openapi.json is made of the same table as the routes."""
    document = json.loads((await ask(face.url, "GET", "/openapi.json")).body)
    assert document["openapi"].startswith("3.1")
    for operation in OPERATIONS:
        is_there = operation.feature is None or operation.feature in LocalZone.features
        assert (operation.method.lower() in document["paths"].get(operation.path, {})) == is_there
