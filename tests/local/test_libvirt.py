"""Domains of libvirt: shut off, running and refused, running through their monitor; undefined."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_mcp.cli import main
from snapshot_mcp.providers.local import LocalZone
from tests.disks import MIB, back_up, get, make_image, succeed
from tests.local.test_machine import content, exported
from tests.machines import needs_machines
from tests.patience import PATIENCE_SECONDS
from tests.qemu import create, write

pytestmark = [
    pytest.mark.long,
    needs_machines,
    pytest.mark.skipif(
        not shutil.which("libvirtd") or os.geteuid() != 0,
        reason="not configured: libvirtd is not installed (Debian: libvirt-daemon-system, libvirt-clients), or not root",
    ),
]

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
      <source file='{folder}/first.img'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='{folder}/second.qcow2'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def virsh(*words: str) -> str:
    return subprocess.run(["virsh", "-q", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def libvirt() -> Iterator[None]:
    """Libvirt's daemons, unless they run."""
    started = []
    for name, pid_file in (("virtlogd", "/run/virtlogd.pid"), ("libvirtd", "/run/libvirtd.pid")):
        if not Path(pid_file).exists() or not Path("/proc", Path(pid_file).read_text().strip() or "none").exists():
            started.append(subprocess.Popen([name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    until = time.monotonic() + PATIENCE_SECONDS
    while subprocess.run(["virsh", "list"], capture_output=True, check=False).returncode:
        assert time.monotonic() < until
        time.sleep(0.1)
    yield
    for one in reversed(started):
        one.terminate()
        one.wait()


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[str]:
    name = f"snapshot-mcp-test-{os.getpid()}"
    make_image(tmp_path / "first.img", 8 * MIB)
    write(create(tmp_path / "second.qcow2", 8 * MIB), "write -P 1 0 1M")
    xml = tmp_path / "domain.xml"
    xml.write_text(DOMAIN.format(name=name, folder=tmp_path))
    virsh("define", str(xml))
    yield name
    for words in (["destroy", name], ["undefine", name]):
        subprocess.run(["virsh", "-q", *words], check=False, capture_output=True)


@pytest.fixture
def zone(local_zone: LocalZone, monkeypatch: pytest.MonkeyPatch) -> LocalZone:
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(local_zone.folder.parents[1]))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    return local_zone


def added(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("vol-")]


async def in_thread(*words: str) -> int:
    from anyio.to_thread import run_sync

    return await run_sync(main, list(words))


@pytest.mark.anyio
async def test_a_domain_that_is_shut_off_a_running_one_and_one_that_is_gone(
    zone: LocalZone, domain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [(tmp_path / "first.img", "raw"), (tmp_path / "second.qcow2", "qcow2")]
    assert await in_thread("zone", "add", "--domain", domain) == 0
    disks = added(capsys)
    assert len(disks) == 2
    for disk, (path, form) in zip(disks, paths, strict=True):
        before = content(path, form)
        assert await exported(zone, await back_up(zone, disk)) == before
    virsh("start", domain)
    assert await in_thread("back-up", disks[0], "--wait") != 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"Domain '{domain}'" in said
    assert "is running" in said
    assert f"virsh shutdown {domain}" in said
    for disk, (path, _) in zip(disks, paths, strict=True):
        assert await in_thread("zone", "move", disk, str(path), "--domain", domain, "--monitor") == 0
    contents = {}
    for value in (3, 4):
        for number, (path, form) in enumerate(paths):
            io(domain, f"virtio-disk{number}", f"write -P {value + number} {value}M 64k")
            contents[path] = content(path, form)
        job = await succeed(zone, await zone.create_snapshots(disks, ""))
        for snapshot_id, (path, _) in zip(job.resource_ids, paths, strict=True):
            assert (await get(zone, snapshot_id)).consistency == "instant"
            assert await exported(zone, snapshot_id) == contents[path]
        named = virsh("qemu-monitor-command", domain, '{"execute":"query-named-block-nodes"}')
        assert "snapshot-mcp-cbw" not in named
        assert "snapshot-mcp-vol" in named
    virsh("destroy", domain)
    virsh("undefine", domain)
    for disk, (path, form) in zip(disks, paths, strict=True):
        assert await exported(zone, await back_up(zone, disk)) == content(path, form)


@pytest.mark.anyio
async def test_a_running_domain_is_added_only_with_its_monitor(
    zone: LocalZone, domain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    virsh("start", domain)
    assert await in_thread("zone", "add", "--domain", domain) != 0
    assert f"Domain '{domain}'" in capsys.readouterr().err
    assert not await in_thread("zone", "list")
    assert "No disk is registered" in capsys.readouterr().out
    assert await in_thread("zone", "add", "--domain", domain, "--monitor") == 0
    assert "libvirt will mark the domain as tainted" in capsys.readouterr().out
    assert await in_thread("zone", "add", "--domain", f"{domain}-x") != 0
    assert "virsh list --all" in capsys.readouterr().err


def io(domain: str, device: str, command: str) -> None:
    """Have a device of the domain write, and flush."""
    for one in (command, "flush"):
        path = f"/machine/peripheral/{device}/virtio-backend"
        virsh("qemu-monitor-command", "--hmp", domain, f'qemu-io -d {path} "{one}"')
