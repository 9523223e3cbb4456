"""A person's acts beside the guarded tools: planned, held against the rules, agreed to in a terminal, and recorded.

“No flag and no pipe says yes; without a terminal nothing happens.”
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from snapshot_mcp import app
from snapshot_mcp.catalogue import admission
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.conftest import end_worker
from tests.disks import back_up, worker_pid
from tests.guard.test_record import command, records
from tests.guard.test_terminal import PIN, type_into
from tests.marks import long
from tests.server.lab import Lab
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio

YES = ("Type purge to agree", "purge")


@pytest.fixture
def lab(tmp_path: Path, nursery: Nursery) -> Iterator[Lab]:
    yield Lab(tmp_path, nursery=nursery)
    end_worker(tmp_path / "home" / "zones" / "local")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


async def deleted(lab: Lab, *names: str) -> list[str]:
    """Restore points of one disk that were deleted and can be recovered for two hours."""
    disk = await lab.add_disk("pg-data")
    zone = app.open_local_zone(lab.settings)
    found = [await back_up(zone, disk.id, name, is_full=True) for name in names]
    await zone.aclose()
    for one in found:
        await lab.delete(one)
    return found


async def statuses(lab: Lab, ids: list[str]) -> list[str]:
    zone = app.open_local_zone(lab.settings)
    page = await zone.list_snapshots(SnapshotFilter(snapshots=tuple(ids)))
    await zone.aclose()
    by_id = {one.snapshot_id: str(one.status) for one in page.items}
    return [by_id[one] for one in ids]


def end_idle_worker(folder: Path) -> None:
    """So that what is entered next waits."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGTERM)
    while worker_pid(folder):
        time.sleep(0.01)


async def in_terminal(lab: Lab, words: list[str], *answers: tuple[str, str]) -> tuple[int, str]:
    extra = {key: value for key, value in lab.environ.items() if key != "SNAPSHOT_MCP_HOME"} | {"COLUMNS": "200"}
    return await anyio.to_thread.run_sync(lambda: type_into(lab.home, words, list(answers), extra))


@pytest.mark.long
async def test_without_a_terminal_nothing_is_purged(lab: Lab) -> None:
    """`zone purge` took the promised two hours of undo away without a question, a name or a record."""
    ids = await deleted(lab, "monday", "tuesday")
    done = await command(lab, "zone", "purge")
    assert (done.returncode, "`zone purge` needs a terminal." in done.stderr) == (1, True)
    for flag in ("--yes", "-y", "--force"):
        assert (await command(lab, "zone", "purge", flag)).returncode == 2
    assert await statuses(lab, ids) == ["deleted", "deleted"]


async def test_a_person_sees_what_goes_types_the_word_and_it_is_recorded(lab: Lab) -> None:
    ids = await deleted(lab, "monday", "tuesday")
    status, shown = await in_terminal(lab, ["zone", "purge"], YES)
    assert status == 0, shown
    assert sorted(await statuses(lab, ids)) == ["ceased", "ceased"]
    (begun,), (ended,) = records(lab, "zone purge"), records(lab, "ended")
    assert set(begun["arguments"]["snapshot_ids"]) == set(ids) == set(ended["snapshot_ids"])
    assert (begun["door"], ended["status"]) == ("terminal without a PIN", "successful")
    assert begun["by"] == ended["by"] == Path.home().owner()
    assert app.build_guard(lab.settings).audit.verify().problem == ""
    assert "zone purge" in (await command(lab, "audit")).stdout
    nothing = await command(lab, "zone", "purge")
    assert (nothing.returncode, nothing.stdout) == (0, "There is nothing to purge.\n")


async def test_the_plan_names_disks_restore_points_sizes_and_the_end_of_their_recovery(lab: Lab) -> None:
    """“which deleted restore points, of which disks, sizes, that their recovery ends now”."""
    ids = await deleted(lab, "monday", "tuesday")
    zone = app.open_local_zone(lab.settings)
    page = await zone.list_snapshots(SnapshotFilter(status=("deleted",), verbose=1))
    await zone.aclose()
    act = await app.build_guard(lab.settings).plan_purge("local", page.items)
    assert act.title.startswith("Purge 2 deleted restore points in zone local, 4.0 MiB")
    assert act.lines[0].startswith("“pg-data” (vol-")
    assert act.lines[0].endswith(": 2 deleted restore points, 4.0 MiB")
    assert all(any(one in line and "deleted 20" in line for line in act.lines) for one in ids)
    assert "After the purge nothing can restore them." in act.lines[-2]


@pytest.mark.parametrize("answer", ["yes", long(""), long("y"), long("PURGE!")])
@pytest.mark.long
async def test_any_other_word_leaves_it(lab: Lab, answer: str) -> None:
    ids = await deleted(lab, "monday")
    status, shown = await in_terminal(lab, ["zone", "purge"], ("anything else to cancel", answer))
    assert (status, "Not confirmed: nothing was done." in shown) == (1, True)
    assert await statuses(lab, ids) == ["deleted"]
    assert records(lab, "zone purge") == []
    await assert_recorded(lab, "declined", ids)


@pytest.mark.parametrize("prompt", ["cancel", "PIN"])
@pytest.mark.long
async def test_a_person_who_ends_the_input_has_said_no(lab: Lab, prompt: str) -> None:
    """It ended in a traceback, and nothing was in the record."""
    ids = await deleted(lab, "monday")
    await app.build_guard(lab.settings).set_pin(PIN)
    status, shown = await in_terminal(lab, ["zone", "purge"], *([YES] if prompt == "PIN" else []), (prompt, "\x04"))
    assert (status, "Traceback" in shown) == (130, False), shown
    assert await statuses(lab, ids) == ["deleted"]
    await assert_recorded(lab, "declined", ids)


async def assert_recorded(lab: Lab, event: str, ids: list[str]) -> None:
    """It stands in the record, with the purge that it was about and who it was."""
    (record,) = records(lab, event)
    assert (record["operation"], record["zone"], record["by"]) == ("zone purge", "local", Path.home().owner())
    assert record["arguments"]["snapshot_ids"] == ids
    line = next(one for one in (await command(lab, "audit")).stdout.splitlines() if f" {event} " in one)
    assert f"zone purge {ids[0]} in local" in line


@pytest.mark.long
async def test_the_pin_is_asked_for_where_one_is_set(lab: Lab) -> None:
    ids = await deleted(lab, "monday")
    await app.build_guard(lab.settings).set_pin(PIN)
    status, shown = await in_terminal(lab, ["zone", "purge"], YES, ("PIN", "000111"))
    assert (status, "not the PIN" in shown) == (1, True)
    assert await statuses(lab, ids) == ["deleted"]
    await assert_recorded(lab, "PIN wrong", ids)
    status, shown = await in_terminal(lab, ["zone", "purge"], YES, ("PIN", ""))
    assert (status, "Not confirmed" in shown) == (1, True)
    await assert_recorded(lab, "declined", ids)
    status, shown = await in_terminal(lab, ["zone", "purge"], YES, ("PIN", PIN))
    assert (status, PIN in shown) == (0, False)
    assert await statuses(lab, ids) == ["ceased"]
    assert [one["door"] for one in records(lab, "zone purge")] == ["terminal"]


@pytest.mark.long
async def test_a_zone_that_takes_a_proven_yes_only_needs_a_pin(lab: Lab) -> None:
    """README: an approval without a PIN is never enough for `consent = "human"` or a production zone."""
    ids = await deleted(lab, "monday")
    (lab.folder / "config.toml").write_text('[zones.local]\nprovider = "local"\nproduction = true\n')
    status, shown = await in_terminal(lab, ["zone", "purge"])
    assert (status, "needs a PIN in this zone, and none is set" in shown) == (1, True)
    assert await statuses(lab, ids) == ["deleted"]


@pytest.mark.parametrize("rules", ['protect = { names = ["mon*"] }', long("read_only = true")])
async def test_what_a_rule_forbids_is_not_purged_by_any_word(lab: Lab, rules: str) -> None:
    """“policy (protect, read_only: refuse purging protected ones)”."""
    ids = await deleted(lab, "monday")
    (lab.folder / "config.toml").write_text(f"[guard]\n{rules}\n")
    status, shown = await in_terminal(lab, ["zone", "purge"])
    assert (status, "Refused by the rule" in shown) == (1, True)
    assert await statuses(lab, ids) == ["deleted"]
    assert [one["operation"] for one in records(lab, "refused")] == ["zone purge"]


@pytest.mark.long
async def test_the_rest_goes_without_what_is_protected(lab: Lab) -> None:
    ids = await deleted(lab, "monday", "tuesday")
    (lab.folder / "config.toml").write_text('[guard]\nprotect = { names = ["mon*"] }\n')
    status, _ = await in_terminal(lab, ["zone", "purge"], ("Protected, not purged: “monday”", ""))
    assert status == 1
    status, _ = await in_terminal(lab, ["zone", "purge"], YES)
    assert (status, await statuses(lab, ids)) == (0, ["deleted", "ceased"])


async def test_what_was_deleted_after_the_plan_is_not_purged(lab: Lab) -> None:
    """What was agreed is what happens: a deletion between the plan and the word keeps its two hours."""
    first = await deleted(lab, "monday")
    zone = app.open_local_zone(lab.settings)
    disk = (await lab.add_disk("web")).id
    later = await back_up(zone, disk, "later")
    await lab.delete(later)
    purged = await zone.purge(first)
    assert purged == tuple(first)
    await zone.aclose()
    assert await statuses(lab, [*first, later]) == ["ceased", "deleted"]


async def test_what_could_not_be_purged_is_said(lab: Lab) -> None:
    """It said that nothing was waiting while a job held the disk of what was."""
    ids = await deleted(lab, "monday")
    end_idle_worker(lab.home / "zones" / "local")
    with FolderCatalogue(lab.home / "zones" / "local") as catalogue:
        (disk,) = catalogue.rows("SELECT resource_id FROM resources")
        admission.create(catalogue, [disk["resource_id"]], "", False, admission.ZoneRules())
    status, shown = await in_terminal(lab, ["zone", "purge"], YES)
    assert (status, "Nothing was purged.\r\n1 snapshot could not be purged: a job" in shown) == (0, True)
    assert await statuses(lab, ids) == ["deleted"]


@pytest.mark.long
async def test_registering_and_removing_a_disk_is_recorded(lab: Lab) -> None:
    """“`zone add`, `remove`, `purge` too”: by whom, and how it ended."""
    image = lab.image("web")
    added = await command(lab, "zone", "add", str(image), "--name", "web")
    resource_id = added.stdout.split()[0]
    again = await command(lab, "zone", "add", str(image))
    removed = await command(lab, "zone", "remove", resource_id)
    assert (added.returncode, again.returncode, removed.returncode) == (0, 1, 0)
    first, second = records(lab, "zone add")
    assert (first["arguments"], first["by"]) == ({"path": str(image), "name": "web"}, Path.home().owner())
    assert second["arguments"]["path"] == str(image)
    assert [one["arguments"] for one in records(lab, "zone remove")] == [{"resource_id": resource_id}]
    assert [(one["status"], one.get("resource_id")) for one in records(lab, "ended")] == [
        ("successful", resource_id),
        ("failed", None),
        ("successful", None),
    ]
    shown = (await command(lab, "audit")).stdout
    assert f"zone remove {resource_id} in local" in shown
    assert "not known yet" not in shown
