"""Roles of key pairs, and the key file of a running face: what each may do, and that a removed one ends at once."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteReceiveStream

from snapshot_mcp.contract.errors import Forbidden
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service import KeyFile, KeyPair, Role
from snapshot_mcp.service.operations import OPERATIONS
from tests.disks import back_up, make_image
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import Served, ask, fetch_token, served

pytestmark = pytest.mark.anyio

ZONE = "/v2/zone/ac1"
FORBIDDEN = {
    Role.READER: {one.name for one in OPERATIONS if one.method != "GET"},
    Role.WRITER: {"DeleteSnapshots", "ApplySnapshots"},
    Role.FULL: set[str](),
}
"""A writer may do everything but delete and apply, a reader may look."""


@dataclass
class Keyed:
    face: Served
    file: KeyFile
    pairs: dict[Role, KeyPair]

    async def token(self, role: Role) -> str:
        pair = self.pairs[role]
        return await fetch_token(self.face.url, pair.client_id, pair.client_secret.get_secret_value())

    async def remove(self, role: Role) -> None:
        await anyio.to_thread.run_sync(self.file.remove, self.pairs[role].client_id)

    async def status(self, token: str) -> int:
        return (await ask(self.face.url, "GET", f"{ZONE}/volumes", token=token)).status


@pytest.fixture
async def keyed(shared_zone: LocalZone, tmp_path: Path) -> AsyncIterator[Keyed]:
    """A face whose key file has a pair of each role."""
    file = KeyFile(tmp_path / "keys.json")
    pairs = {role: await anyio.to_thread.run_sync(file.add, role) for role in Role}
    async with served(shared_zone, keys=file) as face:
        yield Keyed(face, file, pairs)


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_may_do_what_it_is_for(role: Role, keyed: Keyed, subtests: pytest.Subtests) -> None:
    """ "a reader may look (GET), a writer also …, full everything; a 403 `forbidden` names the role and what it lacks"."""
    token = await keyed.token(role)
    for one in OPERATIONS:
        with subtests.test(operation=one.name):
            path = one.path.format(zone="ac1", snapshot_id="ss-aaaaaaaa", job_id="j")
            answer = await ask(keyed.face.url, one.method, path, b"{}", token=token)
            if one.name in FORBIDDEN[role]:
                assert (answer.status, answer.json["code"]) == (403, "forbidden")
                needed = "full" if one.name in FORBIDDEN[Role.WRITER] else "writer"
                for word in (f"'{role}'", f"'{needed}'", one.summary, keyed.pairs[role].client_id):
                    assert word in answer.json["message"]
                assert f"zone keys --new {needed}" in answer.json["hint"]
            else:
                assert answer.status not in {401, 403}


async def test_a_client_with_a_writers_pair_backs_up_and_is_refused_to_delete(
    keyed: Keyed, shared_zone: LocalZone, tmp_path: Path
) -> None:
    """ "a script that backs up need not be able to delete": the refusal is definite, and nothing was deleted."""
    volume = (await shared_zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    pair = keyed.pairs[Role.WRITER]
    client = keyed.face.client(client_id=pair.client_id, client_secret=pair.client_secret)
    snapshot = await back_up(client, volume)
    for refused in (client.delete_snapshot(snapshot), client.apply_snapshots([snapshot])):
        with pytest.raises(Forbidden, match="'writer'") as refusal:
            await refused
        assert refusal.value.is_definite
    assert (await client.list_snapshots(SnapshotFilter(snapshots=(snapshot,)))).items[0].status == "available"
    await client.aclose()


async def test_a_removed_pair_is_refused_at_once_and_its_tokens_too(keyed: Keyed) -> None:
    """ "A key removed from the file under a running face is refused at once, its tokens too"."""
    removed, kept = await keyed.token(Role.WRITER), await keyed.token(Role.READER)
    assert await keyed.status(removed) == 200
    await keyed.remove(Role.WRITER)
    assert await keyed.status(removed) == 401
    with pytest.raises(AssertionError, match="unauthorized"):
        await keyed.token(Role.WRITER)
    assert await keyed.status(kept) == 200


async def test_another_secret_or_role_in_the_file_holds_at_once(keyed: Keyed) -> None:
    """The tokens of the old secret end; a token has the role that its pair has now."""
    token = await keyed.token(Role.FULL)
    text = keyed.file.path.read_text()
    delete = f"{ZONE}/volume_snapshots/ss-aaaaaaaa"
    assert (await ask(keyed.face.url, "DELETE", delete, token=token)).status == 404
    keyed.file.path.write_text(text.replace('"full"', '"reader"'))
    assert (await ask(keyed.face.url, "DELETE", delete, token=token)).status == 403
    secret = keyed.pairs[Role.FULL].client_secret.get_secret_value()
    keyed.file.path.write_text(text.replace(secret, "a-new-secret"))
    assert await keyed.status(token) == 401
    assert await fetch_token(keyed.face.url, keyed.pairs[Role.FULL].client_id, "a-new-secret")


async def test_a_file_that_cannot_be_used_lets_nobody_in(keyed: Keyed) -> None:
    """Half an edit, a file that others can read, no file: 503 until it is mended, and then the tokens are good again."""
    token = await keyed.token(Role.FULL)
    text = keyed.file.path.read_text()

    async def is_shut() -> bool:
        answer = await ask(keyed.face.url, "GET", f"{ZONE}/volumes", token=token)
        assert str(keyed.file.path) not in answer.body.decode()
        return answer.status == 503 and answer.json["code"] == "unavailable"

    keyed.file.path.write_text(text[:50])
    assert await is_shut()
    keyed.file.path.write_text(text)
    assert await keyed.status(token) == 200
    keyed.file.path.chmod(0o644)
    assert await is_shut()
    keyed.file.path.unlink()
    assert await is_shut()
    assert (await ask(keyed.face.url, "GET", "/healthz")).status == 200
    keyed.file.path.touch(0o600)
    keyed.file.path.write_text(text)
    assert await keyed.status(token) == 200


async def test_the_open_streams_of_a_removed_pair_end(keyed: Keyed) -> None:
    """ "and its open streams end"; those of other pairs go on."""
    ended = {role: anyio.Event() for role in (Role.WRITER, Role.READER)}
    open_streams = {role: anyio.Event() for role in ended}

    async def listen(role: Role) -> None:
        host, port = keyed.face.url.removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            head = (
                f"GET {ZONE}/notifier/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {tokens[role]}\r\n\r\n"
            )
            await stream.send(head.encode())
            await _until_it_ends(stream, open_streams[role])
        ended[role].set()

    tokens = {role: await keyed.token(role) for role in ended}
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            for role in ended:
                tasks.start_soon(listen, role)
            for opened in open_streams.values():
                await opened.wait()
            await keyed.remove(Role.WRITER)
            await ended[Role.WRITER].wait()
            assert not ended[Role.READER].is_set()
            tasks.cancel_scope.cancel()


async def _until_it_ends(stream: ByteReceiveStream, opened: anyio.Event) -> None:
    received = b""
    async for chunk in stream:
        received += chunk
        if b"event: hb" in received:
            opened.set()
        if received.endswith(b"0\r\n\r\n"):  # the end of a chunked body
            return
