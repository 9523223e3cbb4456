"""Freeze a guest's filesystems until standard input ends, and thaw them whatever happens: the backup's worker may be killed.

A program of its own, of the standard library alone: `frozen.py agent SOCKET` asks the guest's agent itself, and `frozen.py virsh
VIRSH DOMAIN` has libvirt ask it. It says `frozen`, and at the end `thawed`, or why not. It thaws after a few seconds in any case.
"""

import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FREEZE_SECONDS = 20.0
"""A guest writes out what it has before it is frozen."""

FROZEN_SECONDS = 5.0
"""How long it stays frozen at most; the instant takes some milliseconds."""

THAW_TRIES, THAW_SECONDS = 30, 2.0
MAX_ANSWER_BYTES = 1 << 16

SAME_ANSWER = b"\xff"
"""The agent answers `guest-sync-delimited` with this byte before the answer, which no JSON contains."""


class NotFrozenError(Exception):
    """The agent did not do it; the text says why."""


class Agent:
    """The guest's agent on its socket. Its answers come out of the guest: they are bounded."""

    def __init__(self, path: str) -> None:
        folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(FREEZE_SECONDS)
        self._socket.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
        os.close(folder)
        self._unread = b""

    def freeze(self) -> None:
        """Freeze what can be frozen. Raises NotFrozenError, OSError."""
        if int(self._ask("guest-fsfreeze-freeze", FREEZE_SECONDS)) <= 0:
            raise NotFrozenError("the guest has no filesystem that can be frozen")

    def thaw(self) -> None:
        """Thaw what is frozen. Raises NotFrozenError, OSError."""
        self._ask("guest-fsfreeze-thaw", THAW_SECONDS)

    def _ask(self, command: str, seconds: float) -> Any:
        number = random.randrange(1, 1 << 31)
        self._unread = b""
        self._send("guest-sync-delimited", {"id": number})
        until = time.monotonic() + seconds
        while self._line(until, SAME_ANSWER).get("return") != number:
            pass
        self._send(command)
        answer = self._line(until)
        if "return" not in answer:
            raise NotFrozenError(str(answer.get("error", answer))[:200])
        return answer["return"]

    def _send(self, command: str, arguments: dict[str, int] | None = None) -> None:
        words = json.dumps({"execute": command} | ({"arguments": arguments} if arguments else {}))
        self._socket.sendall((SAME_ANSWER if arguments else b"") + words.encode() + b"\n")

    def _line(self, until: float, begin: bytes = b"") -> dict[str, Any]:
        while True:
            line, end, rest = self._unread.partition(b"\n")
            if end:
                self._unread = rest
                if begin and begin not in line:
                    continue  # the answer to something earlier
                found = json.loads(line.rpartition(SAME_ANSWER)[2])
                return found if isinstance(found, dict) else {}
            if len(line) > MAX_ANSWER_BYTES or time.monotonic() > until:
                raise NotFrozenError("the agent does not answer")
            self._socket.settimeout(max(0.01, until - time.monotonic()))
            more = self._socket.recv(4096)
            if not more:
                raise NotFrozenError("the agent's socket was closed")
            self._unread += more


class Virsh:
    """The agent behind libvirt."""

    def __init__(self, virsh: str, domain: str) -> None:
        self._virsh, self._domain = virsh, domain

    def freeze(self) -> None:
        """Freeze what can be frozen. Raises NotFrozenError, OSError."""
        self._run("domfsfreeze", FREEZE_SECONDS)

    def thaw(self) -> None:
        """Thaw what is frozen. Raises NotFrozenError, OSError."""
        self._run("domfsthaw", FREEZE_SECONDS)

    def _run(self, command: str, seconds: float) -> None:
        try:
            subprocess.run(
                [self._virsh, command, "--domain", self._domain],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=seconds,
            )
        except subprocess.CalledProcessError as error:
            raise NotFrozenError(error.stderr.decode(errors="replace").strip()[:200]) from None
        except subprocess.TimeoutExpired:
            raise NotFrozenError(f"virsh {command} did not end") from None


def main(kind: str, *where: str) -> int:
    """Freeze, wait for the end of standard input, thaw. Return 0 if it was frozen all that time and is thawed."""
    guest: Agent | Virsh | None = None
    try:
        guest = Virsh(*where) if kind == "virsh" else Agent(*where)
        guest.freeze()
        print("frozen", flush=True)
        is_in_time = bool(select.select([sys.stdin], [], [], FROZEN_SECONDS)[0])
        failure = "" if is_in_time else "it was thawed before the instant: that took too long"
    except (NotFrozenError, OSError, ValueError, TypeError) as error:
        failure = str(error) or type(error).__name__
        print(failure, flush=True)
    finally:
        still = _thaw(guest) if guest else ""
    print(still or failure or "thawed", flush=True)
    return 1 if still or failure else 0


def _thaw(guest: Agent | Virsh) -> str:
    failure = ""
    for _ in range(THAW_TRIES):
        try:
            guest.thaw()
            return ""
        except (NotFrozenError, OSError, ValueError) as error:
            failure = str(error) or type(error).__name__
        time.sleep(0.1)
    return f"it could not be thawed: {failure}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
