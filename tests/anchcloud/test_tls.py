"""TLS is verified; a private CA and a proxy can be set."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
import trustme
from pydantic import SecretStr

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.ground.web import url_of
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service import TokenBook, bind, build_service, running
from tests.anchcloud.conftest import Wire
from tests.faulty_proxy import Canned
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import HASTY, KEY_PAIR, ZONE_ID, client_of

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served_with_tls(folder: Path, files: Path) -> AsyncIterator[tuple[str, Path]]:
    """A face behind a certificate that only a private authority vouches for."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(files / "face.pem"))
    authority.cert_pem.write_to_path(str(files / "ca.pem"))
    zone = LocalZone(folder)
    app = build_service({ZONE_ID: zone}, TokenBook([KEY_PAIR]))
    listener = bind("127.0.0.1", 0)
    async with running(app, listener, certificate=files / "face.pem"):
        yield url_of(listener, is_encrypted=True), files / "ca.pem"
    await zone.aclose()


async def test_a_private_authority_is_trusted_where_it_is_named_and_only_there(tmp_path: Path) -> None:
    """TLS verified; a private CA … can be set"."""
    async with served_with_tls(tmp_path / "zone", tmp_path) as (url, ca_file):
        client = client_of(url, ca_file=ca_file)
        assert (await client.list_snapshots(SnapshotFilter())).total_count == 0
        await client.aclose()
        stranger = client_of(url, patience=replace(HASTY, total_seconds=0.2))
        with pytest.raises(Unavailable, match=r"authority that this machine does not know.* Set ca_file"):
            await stranger.list_snapshots(SnapshotFilter())
        await stranger.aclose()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("self-signed", "Set ca_file in the zone's settings"),
        ("expired", "has expired .* The provider has to renew it"),
        ("another name", "is for another name.* Set url to a name"),
        ("no tls here", r"does not speak TLS on this port.* let url begin with http://"),
        ("tls here", "let url begin with https://"),
    ],
)
async def test_what_is_wrong_with_tls_is_said_with_the_next_step(tmp_path: Path, trouble: str, said: str) -> None:
    """ "A self-signed certificate says "check the network" and not `ca_file`"; nothing was retried in vain."""
    authority = trustme.CA()
    name = "other.example" if trouble == "another name" else "127.0.0.1"
    until = datetime.now(UTC) - timedelta(days=1) if trouble == "expired" else None
    certificate = authority.issue_cert(name, not_after=until)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "face.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    zone = LocalZone(tmp_path / "zone")
    listener = bind("127.0.0.1", 0)
    has_tls = trouble != "no tls here"
    async with running(
        build_service({ZONE_ID: zone}, TokenBook([KEY_PAIR])),
        listener,
        certificate=tmp_path / "face.pem" if has_tls else None,
    ):
        scheme = "http" if trouble == "tls here" else "https"
        ca_file = tmp_path / "ca.pem" if trouble not in {"self-signed", "tls here"} else None
        client = client_of(
            f"{scheme}://127.0.0.1:{listener.getsockname()[1]}",
            ca_file=ca_file,
            patience=replace(HASTY, total_seconds=0.5),
        )
        with pytest.raises(Unavailable, match=said):
            await client.list_snapshots(SnapshotFilter())
        await client.aclose()
    await zone.aclose()


async def test_everything_goes_through_the_proxy_that_is_set(wire: Wire) -> None:
    """a proxy can be set"; its password stands nowhere."""
    token = Canned(200, b'{"access_token": "t", "token_type": "Bearer", "expires_in": 60}')
    page = Canned(200, b'{"snapshots": [], "total_count": 0}')
    wire.proxy.decide = lambda seen: token if seen.is_token else page
    proxy = wire.proxy.url.replace("http://", "http://user:hunter2@")
    client = client_of("http://127.0.0.1:9", proxy=SecretStr(proxy))
    assert (await client.list_snapshots(SnapshotFilter())).items == ()
    await client.aclose()
    assert [seen.target.partition("?")[0] for seen, _ in wire.proxy.seen] == [
        "http://127.0.0.1:9/v2/oauth2/token",
        "http://127.0.0.1:9/v2/zone/ac1/volume_snapshots",
    ]
    assert "proxy-authorization" in wire.proxy.seen[0][0].headers


async def test_a_proxy_that_is_not_there_means_that_nothing_was_sent() -> None:
    client = client_of(
        "https://api.example.invalid", proxy=SecretStr("http://127.0.0.1:9"), patience=replace(HASTY, read_tries=1)
    )
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match="not carried out"):
        await client.delete_snapshot("ss-aaaaaaaa")
    await client.aclose()
