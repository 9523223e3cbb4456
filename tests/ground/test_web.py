"""Addresses, and the rule of Host and Origin where a door is not asked itself (`test_doors.py` asks each)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from snapshot_mcp.ground.web import Gatekeeper, Refused, is_loopback, listen, parse_address, read_body, url_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:8010", ("127.0.0.1", 8010)),
        ("[::1]:0", ("::1", 0)),
        ("::1:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "host:²"])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_says_where(host: str) -> None:
    try:
        listener = listen(host, 0)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        shown = f"[{host}]" if ":" in host else host
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            listen(host, listener.getsockname()[1])


def is_let_in(gatekeeper: Gatekeeper, method: str = "GET", **headers: str) -> bool:
    try:
        gatekeeper.check(method, {name.replace("_", "-"): value for name, value in headers.items()})
    except Refused:
        return False
    return True


def test_allowed_names_and_origins_are_let_in_beside_its_own() -> None:
    own = Gatekeeper(hosts=frozenset({"snapshots.example"}), origins=frozenset({"https://console.example"}))
    assert is_let_in(own, host="Snapshots.example:443")
    assert is_let_in(own, "POST", host="snapshots.example", origin="https://Console.example/")
    assert is_let_in(own, "POST", host="localhost", origin="https://console.example", sec_fetch_site="cross-site")
    assert not is_let_in(own, host="console.example")
    assert not is_let_in(own, host="snapshots.example", origin="http://console.example")
    assert not is_let_in(own, host="192.0.2.7")
    assert is_let_in(Gatekeeper(any_address=True), host="192.0.2.7:80")
    assert not is_let_in(Gatekeeper(any_address=True), host="evil.example")


@given(host=st.text(), origin=st.none() | st.text(), any_address=st.booleans())
def test_no_text_is_let_in_that_names_another_host_and_none_breaks_it(
    host: str, origin: str | None, any_address: bool
) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    if is_let_in(Gatekeeper(any_address=any_address), **headers):
        name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host.lower()
        assert is_loopback(name.strip("[]")) or any_address
        assert origin is None or origin.lower().partition("://")[2] == host.lower()


@pytest.mark.anyio
async def test_after_the_last_part_of_a_body_nothing_more_is_waited_for() -> None:
    """The next message would come when the client leaves: until then it waited ten seconds for a 413."""
    messages = [
        {"type": "http.request", "body": b"12345", "more_body": True},
        {"type": "http.request", "body": b"67890", "more_body": False},
    ]

    async def receive() -> dict[str, object]:
        return messages.pop(0)  # raises IndexError for what nobody should ask for

    with pytest.raises(Refused) as refused:
        await read_body(Request({"type": "http", "method": "POST", "headers": []}, receive), 9)
    assert refused.value.status == 413
    assert messages == []
