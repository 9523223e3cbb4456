"""`snapshot-mcp zone serve` as a process: the key pair's file, what is printed, and what is refused."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from pydantic import SecretStr

from snapshot_mcp.contract.errors import Forbidden
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.service import load_or_create_key_pair
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
            with anyio.fail_after(20):
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
        pair = json.loads(file.read_text())
        assert str(file) in printed
        assert pair["client_id"] in printed
        assert pair["client_secret"] not in printed
        assert (await ask(url, "GET", "/healthz")).json == {"status": "ok"}
        assert await fetch_token(url, pair["client_id"], pair["client_secret"])
        secret = SecretStr(pair["client_secret"])
        client = client_of(url, client_id=pair["client_id"], client_secret=secret, zone_id="local")
        assert (await client.list_snapshots(SnapshotFilter())).total_count == 0
        stream = await anext_within(client)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(5):
            await process.wait()
        await stream.aclose()
        await client.aclose()
    assert not (home / "zones").exists(), "looking makes nothing"
    async with serving(home) as (_, url, printed):
        assert "wrote" not in printed
        assert await fetch_token(url, pair["client_id"], pair["client_secret"])


async def anext_within(client):  # type: ignore[no-untyped-def]
    """An open stream, on which nothing happens."""
    stream = client.watch_jobs()
    with anyio.move_on_after(0.3):
        await anext(stream)
    return stream


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.com:80", "8010"])
async def test_addresses_beyond_this_machine_need_tls(address: str, tmp_path: Path) -> None:
    """A key pair does not travel unencrypted."""
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(tmp_path), "SNAPSHOT_MCP_CONFIG": ""}
    done = await anyio.run_process([*COMMAND, address], env=environ, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"snapshot-mcp: ")
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


async def test_a_certificate_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(tmp_path), "SNAPSHOT_MCP_CONFIG": ""}
    command = [*COMMAND, "127.0.0.1:0", "--tls-cert", str(tmp_path / "absent.pem")]
    done = await anyio.run_process(command, env=environ, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"absent.pem" in done.stderr
    assert b"Traceback" not in done.stderr


def test_key_pairs_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    pair, is_new = load_or_create_key_pair(file)
    assert is_new
    assert pair.client_secret.get_secret_value() not in repr(pair)
    assert load_or_create_key_pair(file) == (pair, False)
    file.chmod(0o640)
    with pytest.raises(Forbidden, match="read by others"):
        load_or_create_key_pair(file)
    file.chmod(0o600)
    file.write_text('{"client_secret": "half')
    with pytest.raises(Forbidden, match="no key pair") as refusal:
        load_or_create_key_pair(file)
    assert "half" not in str(refusal.value)
    assert [one.name for one in tmp_path.iterdir()] == ["key.json"]
