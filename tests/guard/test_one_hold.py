"""A zone with one hold takes the safety snapshot in the job of the roll-back (GUARD.md, "Safety
snapshot")."""

from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, Job, SnapshotUpdate
from tests.guard.conftest import Bench, Person, agrees, nobody, scribble
from tests.guard.test_safety import content, safeties

pytestmark = pytest.mark.anyio


async def test_the_roll_back_and_its_safety_snapshot_are_one_job_and_it_leads_back(bench: Bench) -> None:
    disk = await bench.add_disk("pg-data")
    full = await bench.back_up(disk, "full")
    scribble(Path(disk.path or ""))
    present = content(disk)
    guard = bench.guard()
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    (safety,) = outcome.safety_snapshot_ids
    assert (outcome.status, outcome.safety_job_id) == ("started", "")
    assert (
        f"The same job first takes the safety snapshot {safety}; to undo the roll-back, roll back to that."
        in outcome.message
    )
    assert (await guard.get_approval(outcome.approval_id)).safety.snapshot_ids == (safety,)
    job = await bench.finish(outcome.job_id)
    assert job.details["safety_snapshots"] == {disk.id: safety}
    (taken,) = await safeties(bench)
    assert (taken.snapshot_id, taken.snapshot_name.startswith("before roll-back to full at 20")) == (safety, True)
    again = await guard.rollback_to_snapshots(bench.zone, [safety], Person([agrees]))
    await bench.finish(again.job_id)
    assert content(disk) == present


async def test_what_was_written_until_the_hold_is_in_the_safety_snapshot(bench: Bench) -> None:
    """ "82 synced writes by another program were accepted in between and overwritten, and the safety snapshot lacks them"."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")

    written: list[bytes] = []

    async def write() -> None:
        scribble(Path(disk.path or ""))
        written.append(content(disk))

    bench.provider.on_change = write
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    bench.provider.on_change = None
    await bench.finish(outcome.job_id)
    assert [content(disk)] != written
    back = await bench.guard().rollback_to_snapshots(bench.zone, outcome.safety_snapshot_ids, Person([agrees]))
    await bench.finish(back.job_id)
    assert [content(disk)] == written


async def test_two_disks_have_one_safety_snapshot_each(bench: Bench) -> None:
    first, second = await bench.add_disk("one"), await bench.add_disk("two")
    targets = [(await bench.back_up(disk, "full")).snapshot_id for disk in (first, second)]
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, targets, Person([agrees]))
    job = await bench.finish(outcome.job_id)
    assert set(outcome.safety_snapshot_ids) == set(job.details["safety_snapshots"].values())
    assert job.details["safety_snapshots"].keys() == {first.id, second.id}
    assert "safety snapshots" in outcome.message


async def test_no_safety_snapshot_is_taken_where_it_was_agreed_to_go_without(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    outcome = await bench.guard().rollback_to_snapshots(
        bench.zone, [full.snapshot_id], Person([agrees]), safety_snapshot=False
    )
    await bench.finish(outcome.job_id)
    assert (outcome.safety_snapshot_ids, await safeties(bench)) == ((), [])
    assert "way back" not in outcome.message


@pytest.mark.parametrize("name", ["x" * 255, "two\nlines\u202e", ""])
async def test_any_name_makes_a_name_of_one_line_that_a_zone_takes(bench: Bench, name: str) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.provider.update_snapshot(full.snapshot_id, SnapshotUpdate(snapshot_name=name))
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    await bench.finish(outcome.job_id)
    (taken,) = await safeties(bench)
    assert len(taken.snapshot_name) <= MAX_NAME_CHARACTERS
    assert taken.snapshot_name.isprintable()
    assert name or full.snapshot_id in taken.snapshot_name


async def test_a_call_repeated_while_the_job_runs_names_the_job_and_the_way_back(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    bench.provider.is_slow = True
    again = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert (again.status, again.job_id) == ("refused", outcome.job_id)
    assert again.safety_snapshot_ids == outcome.safety_snapshot_ids
    bench.provider.is_slow = False
    await bench.finish(outcome.job_id)


@pytest.mark.parametrize("extra", [None, {}, {"safety_snapshots": ["ss-1"]}, {"safety_snapshots": {"vol-1": None}}])
async def test_a_zone_that_does_not_name_the_way_back_is_reported(bench: Bench, extra: Any) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")

    async def apply(*_: Any, **__: Any) -> Job:
        return Job(job_id="j-1", extra=extra)

    bench.provider.apply_snapshots = apply
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert (outcome.status, outcome.safety_snapshot_ids) == ("started", ())
    assert "did not name the safety snapshot" in outcome.message
