"""`snapshot-mcp zone serve` as a process: the key pair's file, what is printed, and what is refused."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from pydantic import SecretStr

from snapshot_mcp.contract.errors import Forbidden, NotFound
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.service import KeyFile, Role, TokenBook
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import ask, client_of, fetch_token

pytestmark = pytest.mark.anyio

COMMAND = [sys.executable, "-m", "snapshot_mcp", "zone", "serve", "--http"]


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[tuple[Process, str, str]]:
    """The process, its URL, and what it printed."""
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": ""}
    async with await anyio.open_process([*COMMAND, "127.0.0.1:0"], env=environ) as process:
        assert process.stderr is not None
        try:
            with anyio.fail_after(PATIENCE_SECONDS):
                text = ""
                async for chunk in TextReceiveStream(process.stderr):
                    text += chunk
                    if "client_id" in text and text.endswith("\n"):
                        break
            found = re.search(r"http://127\.0\.0\.1:\d+", text)
            assert found, text
            yield process, found[0], text
        finally:
            if process.returncode is None:
                process.terminate()


async def test_first_start_writes_a_key_pair_and_says_where(tmp_path: Path) -> None:
    """the first start writes a key pair, 0600, to the home folder and prints where"; never the secret."""
    home = tmp_path / "home"
    async with serving(home) as (process, url, printed):
        file = home / "zone-serve.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (pair,) = json.loads(file.read_text())
        assert pair["role"] == "full"
        assert str(file) in printed
        assert pair["client_id"] in printed
        assert pair["client_secret"] not in printed
        assert (await ask(url, "GET", "/healthz")).json == {"status": "ok"}
        assert await fetch_token(url, pair["client_id"], pair["client_secret"])
        secret = SecretStr(pair["client_secret"])
        client = client_of(url, client_id=pair["client_id"], client_secret=secret, zone="local")
        assert (await client.list_snapshots(SnapshotFilter())).total_count == 0
        stream = await open_stream(client)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE_SECONDS):
            await process.wait()
        await stream.aclose()
        await client.aclose()
    assert not (home / "zones").exists(), "looking makes nothing"
    async with serving(home) as (_, url, printed):
        assert "wrote" not in printed
        assert await fetch_token(url, pair["client_id"], pair["client_secret"])


async def open_stream(client):  # type: ignore[no-untyped-def]
    """An open stream of a zone without jobs."""
    stream = client.watch_jobs()
    with anyio.fail_after(PATIENCE_SECONDS):
        assert await anext(stream) == ()
    return stream


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.com:80", "8010"])
@pytest.mark.long
async def test_addresses_beyond_this_machine_need_tls(address: str, tmp_path: Path) -> None:
    """A key pair does not travel unencrypted."""
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(tmp_path), "SNAPSHOT_MCP_CONFIG": ""}
    done = await anyio.run_process([*COMMAND, address], env=environ, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"snapshot-mcp: ")
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
async def test_a_certificate_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(tmp_path), "SNAPSHOT_MCP_CONFIG": ""}
    command = [*COMMAND, "127.0.0.1:0", "--tls-cert", str(tmp_path / "absent.pem")]
    done = await anyio.run_process(command, env=environ, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"absent.pem" in done.stderr
    assert b"Traceback" not in done.stderr


def test_key_pairs_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "key.json")
    (pair,), is_new = file.read_or_create()
    assert is_new
    assert pair.client_secret.get_secret_value() not in repr(pair)
    assert file.read_or_create() == ((pair,), False)
    file.path.chmod(0o640)
    with pytest.raises(Forbidden, match="Other users can read"):
        file.read()
    file.path.chmod(0o600)
    for text in (
        '{"client_secret": "half',
        "[1]",
        "[" * 10_000,
        '[{"client_id": "a", "client_secret": "s", "role": "god"}]',
    ):
        file.path.write_text(text)
        with pytest.raises(Forbidden, match="not a valid list of key pairs") as refusal:
            file.read()
        assert "half" not in str(refusal.value)
    assert [one.name for one in tmp_path.iterdir()] == ["key.json"]


def test_a_key_file_of_before_is_one_full_pair(tmp_path: Path) -> None:
    """ "Key files written by the present version (one pair, no role) are read as full", also when a pair is added."""
    file = KeyFile(tmp_path / "key.json")
    file.path.touch(0o600)
    file.path.write_text('{"client_id": "key-old", "client_secret": "as it was"}')
    (old,), is_new = file.read_or_create()
    assert (old.client_id, old.role, is_new) == ("key-old", Role.FULL, False)
    new = file.add(Role.READER)
    assert file.read() == (old, new)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert TokenBook(file).issue("key-old", "as it was")


def test_pairs_that_are_made_at_once_are_all_there(tmp_path: Path) -> None:
    """Several shells on one home: none of the pairs is lost."""
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: KeyFile(tmp_path / "key.json").add(Role.WRITER), range(24)))
    assert set(KeyFile(tmp_path / "key.json").read()) == set(made)
    assert [one.name for one in tmp_path.iterdir()] == ["key.json"]
    for pair in made:
        KeyFile(tmp_path / "key.json").remove(pair.client_id)
    with pytest.raises(NotFound):
        KeyFile(tmp_path / "key.json").remove(made[0].client_id)
    with pytest.raises(Forbidden, match="has no key pair"):
        KeyFile(tmp_path / "key.json").read_or_create()


async def keys(home: Path, *words: str) -> CompletedProcess[bytes]:
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": ""}
    command = [sys.executable, "-m", "snapshot_mcp", "zone", "keys", *words]
    return await anyio.run_process(command, env=environ, check=False, stderr=subprocess.PIPE)


@pytest.mark.long
async def test_a_person_makes_a_pair_with_a_role_and_takes_it_back(tmp_path: Path) -> None:
    """ "a script that backs up need not be able to delete"; the running face follows at once."""
    home = tmp_path / "home"
    async with serving(home) as (_, url, _printed):
        made = await keys(home, "--new", "writer")
        assert made.returncode == 0, made.stderr
        pair = json.loads(made.stdout)
        assert pair["client_secret"].encode() not in made.stderr
        token = await fetch_token(url, pair["client_id"], pair["client_secret"])
        volumes = "/v2/zone/local/volumes"
        assert (await ask(url, "GET", volumes, token=token)).status == 200
        delete = await ask(url, "DELETE", "/v2/zone/local/volume_snapshots/ss-1", token=token)
        assert (delete.status, delete.json["code"]) == (403, "forbidden")
        listed = await keys(home)
        assert f"{pair['client_id']}  writer" in listed.stdout.decode()
        assert pair["client_secret"].encode() not in listed.stdout + listed.stderr
        assert (await keys(home, "--remove", pair["client_id"])).returncode == 0
        assert (await ask(url, "GET", volumes, token=token)).status == 401
    for words in (["--remove", "key-none"], ["--new", "god"], ["--new", "full", "--remove", "x"]):
        refused = await keys(home, *words)
        assert refused.returncode in {1, 2}
        assert b"Traceback" not in refused.stderr
