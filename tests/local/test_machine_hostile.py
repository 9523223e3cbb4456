"""Monitors and agents that say anything are refused, in bounded time and words."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import Form, Machine
from snapshot_mcp.providers.local.machine import devices, filters
from snapshot_mcp.providers.local.machine.monitor import COMMANDS, MonitorError
from tests.disks import MIB, make_image
from tests.local.test_machine import Agent, wait_until

pytestmark = pytest.mark.anyio

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""}, "capabilities": []}}\n'
DEEP = b"[" * 100_000


class Hostile(threading.Thread):
    """A server that sends what it likes: first a greeting, then an answer to each line."""

    def __init__(self, path: Path, greeting: bytes, answer: bytes) -> None:
        super().__init__(daemon=True)
        self._greeting, self._say = greeting, answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.relpath(path))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                connection.sendall(self._greeting)
                for line in lines:
                    request = json.loads(line)
                    id_ = json.dumps(request.get("id")).encode()
                    is_first = request["execute"] == "qmp_capabilities"
                    connection.sendall(
                        b'{"return": {}, "id": ' + id_ + b"}\n" if is_first else self._say.replace(b"ID", id_)
                    )
        except OSError:
            pass


@pytest.mark.parametrize(
    ("greeting", "answer"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", b""),
        (b"{}\n", b""),
        (DEEP + b"\n", b""),
        (b"x" * (6 << 20), b""),
        (b"\xff\xfe\n", b""),
        (b"", b""),
        (GREETING, b'{"return": null, "id": ID}\n'),
        (GREETING, b'{"return": [[[]]], "id": ID}\n'),
        (GREETING, b'{"return": {"qemu": {"major": "9", "minor": []}}, "id": ID}\n'),
        (GREETING, b'{"error": {"class": "GenericError", "desc": "\\u202e' + b"A" * 5000 + b'"}, "id": ID}\n'),
        (GREETING, b'{"error": 7, "id": ID}\n'),
        (GREETING, b'{"event": "STOP"}\n' * 1000 + b'{"return": {}, "id": "other"}\n{"return": [], "id": ID}\n'),
        (GREETING, b'{"return": "' + b"y" * (6 << 20)),
        (GREETING, DEEP + b"\n"),
        (GREETING, b"\n"),
    ],
)
async def test_what_is_no_monitor_is_refused(
    greeting: bytes, answer: bytes, unused_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snapshot_mcp.providers.local.machine.qmp.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("snapshot_mcp.providers.local.machine.qmp.ANSWER_SECONDS", 0.5)
    Hostile(tmp_path / "qmp", greeting, answer)
    path = make_image(tmp_path / "disk", MIB)
    with pytest.raises((NotUsable, ResourceBusy)) as refused:
        await unused_zone.add_resource(path, form=Form("raw", (), Machine(str(tmp_path / "qmp"))))
    assert len(str(refused.value)) < 2000
    assert "\u202e" not in str(refused.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["snapshot-mcp-cbw-0", "/etc/passwd"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "inserted",
                    "file",
                    "qdev",
                    "node-name",
                    "drv",
                    "image",
                    "virtual-size",
                    "dirty-bitmaps",
                    "name",
                    "fds",
                    "opaque",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


class Odd:
    """A monitor that answers anything."""

    pid = 0

    def __init__(self, answers: Iterator[Any]) -> None:
        self._answers = answers
        self.sent: list[str] = []

    def execute(self, command: str, arguments: Any = None, fd: int = -1) -> Any:
        self.sent.append(command)
        return next(self._answers, [])

    def close(self) -> None:
        """Nothing is open."""


@given(st.lists(JSON, max_size=8))
def test_any_answer_is_taken_or_refused(answers: list[Any]) -> None:
    for work in (
        lambda monitor: devices.find_device(monitor, Path("/etc/hostname"), "raw", "disk"),
        lambda monitor: devices.refuse_old(monitor, "disk"),
        filters.undo,
        lambda monitor: filters.bitmaps_of(monitor, "d0"),
    ):
        monitor = Odd(iter(answers))
        with suppress(MonitorError, NotUsable):
            work(monitor)  # type: ignore[no-untyped-call]
        assert set(monitor.sent) <= COMMANDS


HOLD = """
import sys, time
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.machine.freezing import Freeze
with Freeze(Machine("", sys.argv[1]), "disk"):
    print("frozen", flush=True)
    time.sleep(60)
"""


async def test_a_guest_is_thawed_when_the_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = Agent(tmp_path / "agent")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "agent")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"frozen\n"
        assert agent.is_frozen
        os.killpg(os.getpgid(holder.pid), 0)
        holder.send_signal(signal.SIGKILL)
    await wait_until(lambda: not agent.is_frozen)
    assert agent.asked[-1] == "guest-fsfreeze-thaw"
