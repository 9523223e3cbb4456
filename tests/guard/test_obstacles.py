"""A roll-back that cannot be is refused before a person is asked, and before a safety snapshot is taken in vain."""

from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy, Unavailable
from snapshot_mcp.contract.models import Page, Snapshot
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import ResourceType
from tests.guard.conftest import OLD_ZONE, Bench, Person, agrees, nobody
from tests.guard.test_safety import safeties
from tests.local.test_in_use import holder
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

ONE_HOLD = frozenset[Feature]()
SEPARATE = frozenset({Feature.ONE_HOLD})


@pytest.mark.parametrize("without", [ONE_HOLD, SEPARATE], ids=["one hold", "separate"])
@pytest.mark.parametrize("kind", [ResourceType.VOLUME, ResourceType.INSTANCE])
async def test_nobody_is_asked_to_roll_back_a_disk_that_somebody_has_open(
    bench: Bench, without: frozenset[Feature], kind: ResourceType
) -> None:
    """ "A roll-back of a disk in use asks the person, takes a safety snapshot, then refuses and leaves the snapshot behind"."""
    bench.provider.without = without
    disk = await bench.add_disk("db", kind)
    full = await bench.back_up(disk, "full")
    bench.provider.holders[disk.id] = "process 4711 (qemu-system-x86) has it open for writing"
    for person in (Person([agrees]), nobody()):
        with pytest.raises(ResourceBusy, match=r"“db” .* is in use, .*process 4711 \(qemu-system-x86\)"):
            await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
        assert person.questions == []
    assert await bench.guard().list_approvals() == ()
    assert (await safeties(bench), bench.destroyed) == ([], [])
    bench.provider.holders.clear()
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert outcome.status == "started"


@pytest.mark.parametrize("without", [ONE_HOLD, SEPARATE], ids=["one hold", "separate"])
async def test_the_program_that_has_the_disk_open_is_named_and_nothing_is_left_behind(
    bench: Bench, without: frozenset[Feature]
) -> None:
    """The same with a real program, and the zone's own word for it."""
    bench.provider.without = without
    disk = await bench.add_disk("db")
    full = await bench.back_up(disk, "full")
    person = Person([agrees])
    with holder(f"f = os.open({disk.path!r}, os.O_RDWR)") as process:
        with pytest.raises(ResourceBusy, match=str(process.pid)):
            await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
        assert (person.questions, await safeties(bench)) == ([], [])
    assert (await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)).status == "started"


@pytest.mark.parametrize("without", [ONE_HOLD, SEPARATE], ids=["one hold", "separate"])
async def test_a_disk_that_was_opened_after_the_yes_costs_neither_the_approval_nor_a_snapshot(
    bench: Bench, without: frozenset[Feature]
) -> None:
    """The look right before the safety snapshot is taken."""
    bench.provider.without = without
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    guard = bench.guard()
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(pending.approval_id, None)
    bench.provider.holders[disk.id] = "process 4711 has it open"
    with pytest.raises(ResourceBusy, match=r"process 4711 .*The approval is valid until"):
        await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert (await guard.get_approval(pending.approval_id)).state == "granted"
    assert (await safeties(bench), bench.destroyed) == ([], [])
    bench.provider.holders.clear()
    assert (await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())).status == "started"


@pytest.mark.parametrize("without", [ONE_HOLD, OLD_ZONE], ids=["one hold", "an old zone"])
async def test_a_job_that_has_the_disk_is_named_before_a_person_is_asked(
    bench: Bench, without: frozenset[Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Or that has a job in the way"; an old zone says so by its list of unfinished jobs alone."""
    bench.provider.without = without
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    job = await bench.provider.create_snapshots([disk.id], "scheduled")
    if without is ONE_HOLD:
        bench.provider.holders[disk.id] = f"busy with job {job.job_id} (CreateSnapshots)"

    async def unfinished() -> tuple[Any, ...]:
        return (job,)

    monkeypatch.setattr(bench.provider, "list_unfinished_jobs", unfinished, raising=False)
    person = Person([agrees])
    with pytest.raises(ResourceBusy, match=job.job_id) as raised:
        await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (raised.value.job_id, person.questions) == (job.job_id, [])
    monkeypatch.delattr(bench.provider, "list_unfinished_jobs")
    bench.provider.holders.clear()
    await bench.finish(job)
    assert (await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)).status == "started"


async def test_an_export_is_in_nobodys_way(bench: Bench) -> None:
    """Exports share what they read (CONTRACT.md, "Busy")."""
    bench.provider.without = OLD_ZONE
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    export = await bench.provider.create_volume(full.snapshot_id, "copy")

    async def unfinished() -> tuple[Any, ...]:
        return (export.model_copy(update={"resource_ids": (full.snapshot_id,)}),)

    bench.provider.list_unfinished_jobs = unfinished
    person = Person([agrees])
    assert (await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)).status == "started"
    await bench.finish(export)


# No sound way back


async def test_without_a_sound_way_back_the_roll_back_is_refused_or_agreed_to_without_one(bench: Bench) -> None:
    """ "Where a sound safety snapshot cannot be had, the roll-back is refused before anybody is asked, or agreed to without
    one": a disk that is half rolled back."""
    disk = await bench.add_disk("db")
    full = await bench.back_up(disk, "full")
    await bench.provider._write(
        lambda catalogue: catalogue.db.execute(
            "UPDATE resources SET applying_id = ?, problem = 'the file cannot be written' WHERE resource_id = ?",
            (full.snapshot_id, disk.id),
        )
    )
    person = Person([agrees])
    with pytest.raises(NotUsable, match=r"No sound safety snapshot of disk “db”.*safety_snapshot=false"):
        await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (person.questions, await bench.guard().list_approvals()) == ([], ())
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person, safety_snapshot=False)
    assert outcome.status == "started"
    assert "NO SAFETY SNAPSHOT" in person.questions[0].message


async def test_a_disk_whose_file_is_gone_is_not_asked_about(bench: Bench) -> None:
    disk = await bench.add_disk("db")
    full = await bench.back_up(disk, "full")
    Path(disk.path or "").unlink()
    for safety_snapshot in (True, False):
        person = Person([agrees])
        with pytest.raises(NotUsable, match="cannot be rolled back: its file cannot be read"):
            await bench.guard().rollback_to_snapshots(
                bench.zone, [full.snapshot_id], person, safety_snapshot=safety_snapshot
            )
        assert person.questions == []


async def test_a_safety_snapshot_that_may_be_a_mixture_is_no_way_back(bench: Bench) -> None:
    """Good "excludes `fuzzy`, wherever it is counted": a zone that takes it separately, and allows mixtures."""
    bench.provider.without = OLD_ZONE
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    real = bench.provider._provider.list_snapshots

    async def fuzzy(query: Any) -> Page[Snapshot]:
        page = await real(query)
        return Page(
            tuple(
                one.model_copy(update={"consistency": "fuzzy"}) if one.snapshot_name.startswith("before") else one
                for one in page.items
            ),
            page.total_count,
        )

    bench.provider.list_snapshots = fuzzy
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert (outcome.status, "may be inconsistent" in outcome.message) == ("refused", True)
    assert bench.destroyed == []


# A deadline for the looks


@pytest.mark.parametrize(
    ("operation", "way"),
    [
        ("delete", "a list without an end"),
        ("roll back", "an answer that never comes"),
        long("delete", "an answer that never comes"),
        long("roll back", "a list without an end"),
    ],
)
async def test_a_provider_whose_list_does_not_end_does_not_hold_a_call(bench: Bench, way: str, operation: str) -> None:
    """ "A provider's endless list never ends a call (+109 MB in 25 s)"."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    real = bench.provider._provider.list_snapshots

    async def endless(query: Any) -> Page[Snapshot]:
        await anyio.lowlevel.checkpoint()
        if query.snapshots:
            return await real(query)  # type: ignore[no-any-return]
        if way == "an answer that never comes":
            await anyio.sleep_forever()
        page = [full.model_copy(update={"snapshot_id": f"ss-{query.offset + number}"}) for number in range(query.limit)]
        return Page(tuple(page), 1 << 40)

    bench.provider.list_snapshots = endless
    person = Person([agrees], seconds_left=1.0)
    guard = bench.guard()
    if operation == "delete":
        call = guard.delete_snapshot(bench.zone, full.snapshot_id, person)
    else:
        call = guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match=r"too long|too many"):
        await call
    assert person.questions == []
