"""Several servers at once on the same disks, their worker killed again and again: nothing lost, nothing wrong, no job
without an end (ARCHITECTURE.md, "Targets"; FORMAT.md, "Invariants")."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.disks import MIB, finish, make_image, worker_pid

pytestmark = [pytest.mark.anyio, pytest.mark.long]

SERVER = textwrap.dedent("""
    import random, sys, anyio
    from pathlib import Path
    from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
    from snapshot_mcp.contract.models import SnapshotFilter
    from snapshot_mcp.providers.local import LocalZone
    from tests.disks import finish

    folder, seed, *disks = sys.argv[1:]
    chance = random.Random(int(seed))

    async def act(zone):
        found = (await zone.list_snapshots(SnapshotFilter(limit=100, status=("available", "deleted")))).items
        one = chance.choice(found).snapshot_id if found else ""
        action = chance.choices("cardepv", [10, 4, 3, 2, 2, 1, 1])[0] if one else "c"
        match action:
            case "c":
                some = chance.sample(disks, chance.choice([1, 2]))
                return await zone.create_snapshots(some, "", is_full=chance.random() < 0.2)
            case "a":
                return await zone.apply_snapshots([one])
            case "d":
                return await zone.delete_snapshot(one)
            case "r":
                return await zone.recover_snapshots([one])
            case "e":
                return await zone.create_volume(one, "copy")
            case "p":
                await zone.purge()
            case "v":
                assert not [finding for finding in (await zone.check()).findings if finding.is_damage]

    async def main():
        zone = LocalZone(Path(folder), chain_limit=5)
        done = 0
        while done < 40:
            try:
                job = await act(zone)
            except (ResourceBusy, NotUsable):
                await anyio.sleep(0.02)
                continue
            if job and chance.random() < 0.7:
                job = await finish(zone, job, 120)
                ended_early = job.action == "CreateSnapshots" and job.error and job.error.code == "not_usable"
                assert job.is_successful or ended_early, job
            done += 1
        await zone.aclose()

    anyio.run(main)
""")


async def test_five_servers_and_a_worker_that_is_killed_again_and_again(local_zone: LocalZone, tmp_path: Path) -> None:
    chance = random.Random(1)
    images = [make_image(tmp_path / f"{number}.img", 2 * MIB, seed=number) for number in range(3)]
    disks = [(await local_zone.add_resource(image)).id for image in images]
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(local_zone.folder), str(seed), *disks], cwd=Path(__file__).parents[2]
        )
        for seed in range(5)
    ]
    while any(server.poll() is None for server in servers):
        await anyio.sleep(chance.uniform(0.3, 2))
        if pid := worker_pid(local_zone.folder):
            with suppress(ProcessLookupError):  # it was idle and ended meanwhile
                os.kill(pid, signal.SIGKILL)
    assert [server.returncode for server in servers] == [0] * 5
    for job in await local_zone.list_unfinished_jobs():
        await finish(local_zone, job)
    await local_zone.purge()
    assert (await local_zone.check()).is_clean
    with FolderCatalogue(local_zone.folder) as catalogue:
        assert catalogue.rows("SELECT * FROM claims") == []
        assert catalogue.rows("SELECT * FROM resources WHERE applying_id IS NOT NULL") == []
        without_parent = """SELECT 1 FROM snapshots s JOIN snapshots p ON p.snapshot_id = s.parent_id
            WHERE s.status = 'available' AND p.status != 'available'"""
        assert catalogue.rows(without_parent) == []
        available = {f"{row[0]}.snap" for row in catalogue.rows("SELECT * FROM snapshots WHERE status = 'available'")}
    assert {path.name for path in (local_zone.folder / "snapshots").iterdir()} == available
