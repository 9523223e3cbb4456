"""Hold a guest frozen for an instant, by a process (`frozen`) that thaws it when we let go, or when we are killed."""

import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.machine import frozen

log = logging.getLogger(__name__)


class Freeze:
    """A guest that is frozen for the block, if it has an agent that does it.

    `is_frozen` says afterwards whether it was so throughout. If it was not, that is logged, and nothing fails.
    """

    def __init__(self, machine: Machine, label: str) -> None:
        self._label, self.is_frozen = label, False
        self._process = _start(machine)
        self._said = ""

    def __enter__(self) -> Self:
        if self._process:
            self._said = self._line()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        if self._said == "frozen":
            self._said = self._line()
        self.is_frozen = self._said == "thawed"
        self._process.stdout.close()
        threading.Thread(target=self._process.wait, daemon=True).start()  # one that must thaw goes on trying
        if not self.is_frozen:
            log.warning("the guest of %s was not frozen: %s", self._label, self._said)

    def _line(self) -> str:
        assert self._process
        assert self._process.stdout
        return clean_text(self._process.stdout.readline(), MESSAGE_CHARACTERS)


def _start(machine: Machine) -> subprocess.Popen[str] | None:
    if machine.domain:
        words = ["virsh", shutil.which("virsh") or "virsh", machine.domain]
    elif machine.agent:
        words = ["agent", machine.agent]
    else:
        return None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(frozen.__file__)), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        errors="replace",
    )
