"""Between a person's yes and the byte lie a worker, a path and time: what was agreed is what happens, or nothing does.

Each roll-back here was agreed to, and its worker is stopped, ended, or never there; then something happens to the disk.
"""

import os
import signal
import subprocess
import sys

import pytest

from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from tests.guard.conftest import Person, agrees
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.whole_way import workers
from tests.whole_way.paths import CHUNK, REPLACED, elsewhere, put_back
from tests.whole_way.scene import Scene
from tests.whole_way.workers import Nursery, until

pytestmark = pytest.mark.anyio

DAYS_SECONDS = 3 * 86400.0


async def agreed(scene: Scene, snapshot_id: str, *, safety: bool = True) -> GuardedOutcome:
    """A roll-back that a person says yes to, as far as the zone accepts it."""
    call = scene.guard().rollback_to_snapshots
    outcome = await call(scene.zone, [snapshot_id], Person([agrees]), safety_snapshot=safety)
    assert outcome.status == "started", outcome
    return outcome


async def waiting(scene: Scene, *, safety: bool = True) -> tuple[GuardedOutcome, bytes]:
    """An agreed roll-back whose worker hangs before it has taken it, and what the disk holds."""
    snapshot_id = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.freeze(scene.zone_folder)
    return await agreed(scene, snapshot_id, safety=safety), content


async def half_written(scene: Scene, nursery: Nursery) -> tuple[GuardedOutcome, bytes, bytes]:
    """An agreed roll-back whose worker was killed after the second of its writes; the contents before and after it."""
    before = scene.path.read_bytes()
    snapshot_id = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    assert nursery.start(scene.zone_folder, step=2, kind="write")
    outcome = await agreed(scene, snapshot_id)
    until(lambda: workers.worker_pid(scene.zone_folder) is None)
    half = scene.path.read_bytes()
    assert half[: 2 * CHUNK] == before[: 2 * CHUNK]
    assert half[2 * CHUNK :] == content[2 * CHUNK :]
    return outcome, before, content


async def ends_as(scene: Scene, outcome: GuardedOutcome, code: str) -> Job:
    job = await scene.finish(outcome.job_id, "failed")
    assert job.error is not None
    assert job.error.code == code, job
    return job


# What waits


async def test_a_roll_back_begins_at_once_behind_exports_that_wait(scene: Scene, nursery: Nursery) -> None:
    """It does not queue behind exports."""
    before = scene.path.read_bytes()
    snapshot_id = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    gate = scene.folder / "gate"
    nursery.start(scene.zone_folder, gate=gate)
    exports = [await scene.provider.create_volume(snapshot_id, f"copy {n}") for n in range(24)]
    outcome = await agreed(scene, snapshot_id)
    await scene.finish(outcome.job_id, "successful")
    assert scene.path.read_bytes() == before
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    assert not (await scene.provider.get_job(exports[0].job_id)).is_finished
    gate.touch()
    await scene.settle()
    await scene.verify(scene.guard())


@pytest.mark.parametrize("how", ["days", "a reboot"])
@pytest.mark.parametrize("worker", ["hangs", "is killed"])
async def test_what_waited_too_long_is_not_carried_out_by_whoever_looks_later(
    scene: Scene, nursery: Nursery, worker: str, how: str
) -> None:
    """Time is counted by the zone's own uptime from admission; after a reboot it is over; a read starts nothing whose time
    is over."""
    outcome, _ = await waiting(scene, safety=False)
    if worker == "is killed":
        workers.kill(scene.zone_folder)
    present = scene.scribble(3)
    scene.pass_time(DAYS_SECONDS) if how == "days" else scene.reboot()
    await scene.provider.list_unfinished_jobs()
    workers.thaw(scene.zone_folder)
    nursery.start(scene.zone_folder)
    await ends_as(scene, outcome, "expired")
    await scene.settle()
    assert scene.path.read_bytes() == present
    assert scene.effects() == []
    assert (await scene.guard().get_approval(outcome.approval_id)).state == "spent"
    person = Person(["keep"])
    assert (await scene.guard().rollback_to_snapshots(scene.zone, outcome_targets(scene), person)).status == "declined"
    assert len(person.questions) == 1, "the yes was for then"
    await scene.verify(scene.guard())


def outcome_targets(scene: Scene) -> list[str]:
    return [scene.rows("SELECT snapshot_id FROM snapshots WHERE name = 'friday'")[0]["snapshot_id"]]


async def test_a_yes_that_waits_is_taken_back_by_deny(scene: Scene) -> None:
    """Until the first byte is overwritten `deny` takes it back."""
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    outcome, content = await waiting(scene, safety=False)
    guard = app.build_guard(load_settings(scene.environ))
    await guard.deny(outcome.approval_id)
    workers.thaw(scene.zone_folder)
    await ends_as(scene, outcome, "cancelled")
    await scene.settle()
    assert scene.path.read_bytes() == content
    assert scene.effects() == []
    await scene.verify(guard)


async def test_the_worker_that_was_killed_before_it_began_is_replaced_within_the_time(scene: Scene) -> None:
    """One yes carries out one act, whoever carries it out."""
    before = scene.path.read_bytes()
    outcome, content = await waiting(scene)
    workers.kill(scene.zone_folder)
    await scene.finish(outcome.job_id, "successful")
    await scene.settle()
    assert scene.path.read_bytes() == before
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    assert len(scene.effects()) == 1
    await scene.verify(scene.guard())


@pytest.mark.parametrize("safety", [True, long(False)], ids=["", "without a safety snapshot"])
@pytest.mark.parametrize("path", REPLACED)
async def test_a_path_that_leads_elsewhere_before_the_hold_is_not_overwritten(
    scene: Scene, path: str, safety: bool
) -> None:
    """Which disk: for a file the filesystem's id, the inode and the birth time. More than one hard link is told in the loss."""
    outcome, _ = await waiting(scene, safety=safety)
    REPLACED[path](scene.path)
    present = {one: one.read_bytes() for one in (scene.path, elsewhere(scene.path)) if one.exists()}
    workers.thaw(scene.zone_folder)
    job = await scene.finish(outcome.job_id, "failed")
    assert job.error is not None
    assert job.error.code in {"terms_changed", "not_usable"}, job
    await scene.settle()
    assert {one: one.read_bytes() for one in present} == present
    assert scene.effects() == []
    await scene.verify(scene.guard())


@pytest.mark.parametrize("path", ["another file", "the same inode", "a hard link"])
async def test_a_path_that_leads_elsewhere_after_the_yes_needs_another(scene: Scene, path: str) -> None:
    """The plan knows which file the disk is, and how many names it has."""
    snapshot_id = await scene.back_up("friday")
    scene.scribble(2)
    guard = scene.guard()
    pending = await guard.rollback_to_snapshots(scene.zone, [snapshot_id], Person(can_ask=False))
    await guard.approve(pending.approval_id, None)
    REPLACED[path](scene.path)
    present = scene.path.read_bytes()
    outcome = await guard.rollback_to_snapshots(scene.zone, [snapshot_id], Person(can_ask=False))
    assert outcome.status == "plan_changed", outcome
    await scene.settle()
    assert scene.path.read_bytes() == present
    assert scene.effects() == []
    await scene.verify(guard)


# What was broken off


@pytest.mark.parametrize("reboot", [False, long(True)], ids=["", "after a reboot"])
@pytest.mark.parametrize("path", ["another file", "the same inode", "a symlink", "nothing"])
async def test_what_was_broken_off_does_not_go_on_over_another_file(
    scene: Scene, nursery: Nursery, path: str, reboot: bool
) -> None:
    """An interrupted roll-back resumes only onto the same disk, also after a reboot; otherwise it ends as failed, and
    `list_resources` shows it."""
    outcome, before, content = await half_written(scene, nursery)
    if reboot:
        scene.reboot()
    REPLACED[path](scene.path)
    present = scene.path.read_bytes() if scene.path.exists() else None
    own = elsewhere(scene.path).read_bytes() if elsewhere(scene.path).exists() else None
    nursery.start(scene.zone_folder)
    await scene.finish(outcome.job_id, "failed")
    await scene.settle()
    assert (scene.path.read_bytes() if scene.path.exists() else None) == present
    assert own is None or elsewhere(scene.path).read_bytes() == own
    assert (await scene.disk()).problem
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    if put_back(scene.path):
        await roll_back_anew(scene, before)
    await scene.verify(scene.guard())


@pytest.mark.parametrize("path", ["another file", "nothing"])
async def test_what_a_half_written_disk_waits_for_is_said_as_it_is(scene: Scene, nursery: Nursery, path: str) -> None:
    """One that waits for a person was said to be “resumed at the next start”, and of its own file, which had come back,
    that “what lies at its path now is not the file”."""
    outcome, before, _ = await half_written(scene, nursery)
    if path == "nothing":
        scene.path.rename(elsewhere(scene.path))
    else:
        REPLACED[path](scene.path)
    nursery.start(scene.zone_folder)
    await scene.finish(outcome.job_id, "failed")
    await scene.settle()
    assert put_back(scene.path)
    with pytest.raises(NotUsable) as refused:
        await scene.provider.create_snapshots([scene.disk_id], "of a mixture")
    problem = (await scene.disk()).problem or ""
    says_resumed = ["is resumed when the zone's worker next starts" in one for one in (refused.value.hint, problem)]
    says_person = [
        "The roll-back waits for a person and is not resumed." in one for one in (refused.value.hint, problem)
    ]
    assert (set(says_resumed), set(says_person)) == ({path == "nothing"}, {path != "nothing"}), (refused.value, problem)
    assert "now is not" not in f"{refused.value} {problem}"
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder)
    if path == "nothing":
        until(lambda: scene.resumptions("successful"))
    await roll_back_anew(scene, before)


async def roll_back_anew(scene: Scene, expected: bytes) -> None:
    """Bring a disk whose own file is back at its path into one state: by the interrupted roll-back, or by another yes."""
    await scene.settle()
    if (await scene.disk()).status == "pending":
        person = Person([agrees])
        outcome = await scene.guard().rollback_to_snapshots(
            scene.zone, outcome_targets(scene), person, safety_snapshot=False
        )
        await scene.finish(outcome.job_id, "successful")
    assert scene.path.read_bytes() == expected


@pytest.mark.long
async def test_zone_list_says_what_was_broken_off(scene: Scene, nursery: Nursery) -> None:
    """`zone list` and `list_resources` show it."""
    outcome, _, _ = await half_written(scene, nursery)
    REPLACED["another file"](scene.path)
    present = scene.path.read_bytes()
    nursery.start(scene.zone_folder)
    await scene.finish(outcome.job_id, "failed")
    command = [sys.executable, "-m", "snapshot_mcp", "zone", "list"]
    said = subprocess.run(
        command, env=scene.environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    ).stdout
    assert scene.disk_id in said
    assert "interrupted" in said
    assert scene.path.read_bytes() == present


@pytest.mark.parametrize("reboot", [False, True], ids=["", "after a reboot"])
async def test_what_was_broken_off_goes_on_over_the_same_file(scene: Scene, nursery: Nursery, reboot: bool) -> None:
    """No disk is half rolled back and called whole."""
    outcome, before, content = await half_written(scene, nursery)
    assert (await scene.disk()).status == "pending"
    if reboot:
        scene.reboot()
    nursery.start(scene.zone_folder)
    await scene.finish(outcome.job_id, "successful")
    assert scene.path.read_bytes() == before
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    assert len(scene.effects()) == 1
    await scene.verify(scene.guard())


@pytest.mark.parametrize("reboot", [False, True], ids=["", "after a reboot"])
async def test_what_was_broken_off_does_not_go_on_over_what_was_written_since(
    scene: Scene, nursery: Nursery, reboot: bool
) -> None:
    """An overwrite of content that no safety snapshot holds is none of what was agreed to."""
    outcome, _, content = await half_written(scene, nursery)
    present = scene.scribble(9)
    if reboot:
        scene.reboot()
    nursery.start(scene.zone_folder)
    await ends_as(scene, outcome, "terms_changed")
    for _ in range(2):
        workers.kill(scene.zone_folder)
        await scene.settle()
        assert scene.path.read_bytes() == present
    assert (await scene.disk()).problem
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    await scene.verify(scene.guard())


@pytest.mark.parametrize("where", ["over what was cut off", "behind the old end"])
async def test_what_was_broken_off_does_not_cut_off_what_was_appended_since(
    scene: Scene, nursery: Nursery, where: str
) -> None:
    """What lies beyond the end of the snapshot is content, too."""
    content = scene.path.read_bytes()
    os.truncate(scene.path, 2 * CHUNK)
    snapshot_id = await scene.back_up("friday")
    scene.path.write_bytes(content[::-1])
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder, step=1, kind="write")
    outcome = await agreed(scene, snapshot_id)
    until(lambda: workers.worker_pid(scene.zone_folder) is None)
    assert scene.path.stat().st_size == 2 * CHUNK
    with scene.path.open("r+b") as file:
        file.seek(2 * CHUNK if where == "over what was cut off" else 4 * CHUNK)
        file.write(b"appended" * (2 * CHUNK // 8))
    present = scene.path.read_bytes()
    nursery.start(scene.zone_folder)
    await ends_as(scene, outcome, "terms_changed")
    assert scene.path.read_bytes() == present
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content[::-1]
    await scene.verify(scene.guard())


async def test_a_half_rolled_back_file_that_comes_back_after_another_was_rolled_back_is_not_called_whole(
    scene: Scene, nursery: Nursery
) -> None:
    """No disk is half rolled back and called whole."""
    await half_written(scene, nursery)
    REPLACED["another file"](scene.path)
    nursery.start(scene.zone_folder)
    await scene.settle()
    await scene.finish((await agreed(scene, outcome_targets(scene)[0])).job_id, "successful")
    assert put_back(scene.path)
    assert (await scene.disk()).status == "pending"


async def test_what_was_written_since_to_the_end_of_a_chunk_is_not_taken_for_half_written(
    scene: Scene, nursery: Nursery
) -> None:
    """A chunk that begins as the snapshot has it may hold somebody's sector by now; no safety snapshot holds that."""
    snapshot_id = await scene.back_up("friday")
    scene.path.write_bytes(scene.path.read_bytes()[::-1])
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder, step=2, kind="write")
    outcome = await agreed(scene, snapshot_id, safety=False)
    until(lambda: workers.worker_pid(scene.zone_folder) is None)
    with scene.path.open("r+b") as file:
        file.seek(2 * CHUNK - 512)
        file.write(b"since".ljust(512, b"."))
    present = scene.path.read_bytes()
    nursery.start(scene.zone_folder)
    await ends_as(scene, outcome, "terms_changed")
    assert scene.path.read_bytes() == present
    await scene.verify(scene.guard())


@pytest.mark.long
async def test_two_half_rolled_back_files_of_a_disk_are_each_told_from_a_whole_one(
    scene: Scene, nursery: Nursery
) -> None:
    """Also while the roll-back of the one that came second is broken off, and after that was carried on to its end."""
    first, _, _ = await half_written(scene, nursery)
    (friday,) = outcome_targets(scene)
    REPLACED["another file"](scene.path)
    nursery.start(scene.zone_folder)
    await scene.settle()
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder, step=2, kind="write")
    second = await agreed(scene, friday)
    until(lambda: workers.worker_pid(scene.zone_folder) is None)
    swap(scene)
    assert (await scene.disk()).status == "pending"
    swap(scene)
    nursery.start(scene.zone_folder)
    await scene.finish(second.job_id, "successful")
    assert (await scene.disk()).status == "available"
    swap(scene)
    assert (await scene.disk()).status == "pending", "the first one waits for a person still"
    with pytest.raises(ZoneError, match="is needed"):
        await scene.provider.delete_snapshot(first.safety_snapshot_ids[0])
    third = await agreed(scene, friday, safety=False)
    await scene.finish(third.job_id, "successful")
    assert (await scene.disk()).problem is None
    assert scene.path.read_bytes() == scene.content_of(friday)
    await scene.verify(scene.guard())


def swap(scene: Scene) -> None:
    """Let the file at the path and the one elsewhere change places."""
    aside = scene.path.with_name("aside.img")
    scene.path.rename(aside)
    elsewhere(scene.path).rename(scene.path)
    aside.rename(elsewhere(scene.path))


@pytest.mark.parametrize("step", [step if step in {2, 6, 10} else long(step) for step in range(1, 13)])
async def test_a_roll_back_whose_worker_dies_at_any_step_is_one_act(scene: Scene, nursery: Nursery, step: int) -> None:
    """Once entered it is answered as a job: carried out once and with its way back, or not at all."""
    before = scene.path.read_bytes()
    snapshot_id = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder, step=step, how=signal.SIGKILL)
    outcome = await agreed(scene, snapshot_id)
    job = await scene.finish(outcome.job_id)
    await scene.settle()
    assert job.is_successful, job
    assert scene.path.read_bytes() == before
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    assert len(scene.effects()) == 1
    again = await scene.guard().get_approval(outcome.approval_id)
    with pytest.raises(ZoneError):
        await scene.guard().deny(again.id)
    await scene.verify(scene.guard())
