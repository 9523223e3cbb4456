"""Domains of libvirt, through `virsh`: their disks, whether they run, and QEMU's monitor behind libvirt's back (`VirshMonitor`).

A domain that was asked through its monitor is marked as tainted by libvirt. Its own backups are not used: until QEMU 10.1 a full
scratch disk of theirs fails the guest's writes.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapshot_mcp.contract.errors import BadRequest, NotUsable
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.machine.monitor import (
    ANSWER_SECONDS,
    MAX_ANSWER_BYTES,
    MonitorAbsent,
    MonitorError,
    MonitorGone,
    refuse_other_commands,
)
from snapshot_mcp.providers.local.place import shown

PID_FOLDER: Final = Path("/run/libvirt/qemu")
_OFF: Final = {"shut off", "crashed"}


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk of a domain: its file or device, what the guest calls it, and the format that the domain's definition gives."""

    path: Path
    target: str
    format: str


def is_off(domain: str) -> bool:
    """Return whether a domain is shut off. Raises NotUsable (no virsh), BadRequest (no such domain)."""
    return _run("domstate", "--domain", domain).strip() in _OFF


def disks_of(domain: str) -> list[DomainDisk]:
    """Return the disks of a domain, but for CDs and floppies. Raises BadRequest for one that is not on this machine."""
    from xml.etree import ElementTree  # no start of a server or a worker needs it

    found = []
    for disk in ElementTree.fromstring(_run("dumpxml", "--inactive", "--domain", domain)).iterfind("./devices/disk"):
        if disk.get("device", "disk") != "disk":
            continue
        target, source, driver = (disk.find(name) for name in ("target", "source", "driver"))
        name = target.get("dev", "") if target is not None else ""
        place = source.get("file") or source.get("dev") if source is not None else None
        form = driver.get("type", "") if driver is not None else ""
        if not place or form not in ("raw", "qcow2"):
            what = (
                f"of the format {shown(form)}"
                if place and form
                else "without a format"
                if place
                else "not a local file or device"
            )
            raise BadRequest(
                f"The disk {shown(name)} of domain {shown(domain)} is {what}.",
                hint="Register the others by themselves: `zone add PATH --domain NAME`.",
            )
        found.append(DomainDisk(Path(place), name, form))
    if not found:
        raise BadRequest(f"Domain {shown(domain)} has no disk.", hint=f"See `virsh domblklist {quote(domain)}`.")
    return found


class VirshMonitor:
    """QEMU's monitor of a running domain. Raises MonitorAbsent if it does not run, or does not exist."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        try:
            if is_off(domain):
                raise MonitorAbsent(f"domain {domain!r} is shut off")
        except BadRequest as error:
            raise MonitorAbsent(error.message) from None
        except NotUsable as error:
            raise MonitorGone(error.message) from None
        self.pid = _pid_of(domain)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, fd: int = -1) -> Any:
        """Send a command and wait for its answer."""
        refuse_other_commands(command)
        words = ["qemu-monitor-command", "--domain", self._domain]
        words += ["--pass-fds", str(fd)] if fd >= 0 else []
        asked = json.dumps({"execute": command} | ({"arguments": dict(arguments)} if arguments else {}))
        try:
            said = _run(*words, "--cmd", asked, pass_fds=[fd] if fd >= 0 else [])
            answer = json.loads(said)
        except (BadRequest, NotUsable) as error:
            raise MonitorGone(error.message) from None
        except (ValueError, RecursionError):
            raise MonitorError("its answer is not JSON") from None
        if not isinstance(answer, dict) or "return" not in answer:
            failure = answer.get("error") if isinstance(answer, dict) else None
            raise MonitorError(failure.get("desc") if isinstance(failure, dict) else "its answer is not an answer")
        return answer["return"]

    def close(self) -> None:
        """Do nothing: each command has a connection of its own."""


def _run(*words: str, pass_fds: Sequence[int] = ()) -> str:
    """Run virsh and return what it says. Raises NotUsable if it is missing or hangs, BadRequest with its own words."""
    program = shutil.which("virsh")
    if program is None:
        raise NotUsable(
            "The program virsh is missing.", hint="Install it: apt install libvirt-clients (Debian, Ubuntu)."
        )
    try:
        done = subprocess.run(
            [program, "--quiet", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=pass_fds,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotUsable(
            f"virsh {words[0]} did not end within {ANSWER_SECONDS:.0f} s.", hint="Is libvirtd well?"
        ) from None
    if done.returncode or len(done.stdout) > MAX_ANSWER_BYTES:
        said = clean_text(done.stderr[:MAX_ANSWER_BYTES].decode(errors="replace"), MESSAGE_CHARACTERS)
        raise BadRequest(f"virsh {words[0]} failed: {said}", hint="`virsh list --all` lists the domains.")
    return done.stdout.decode(errors="replace")


def _pid_of(domain: str) -> int:
    """Return the process of a running domain, 0 if that cannot be read."""
    try:
        return int((PID_FOLDER / f"{domain}.pid").read_text())
    except (OSError, ValueError):
        return 0
