"""What an owner of six disks asks for, as the calls that a sensible model makes, and what each request costs.

The answer's facts are in both forms of what comes back. `CONVERSATIONS.md` has the costs; run this file with
`WRITE_TABLES=1` to write it anew.
"""

import os
import re
import signal
import statistics
from pathlib import Path

import pytest

from snapshot_mcp import app
from tests.disks import change, worker_pid
from tests.server.estate import Talk, estate, settle
from tests.server.lab import Lab
from tests.server.test_consent import Person
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio
DOCUMENT = Path(__file__).with_name("CONVERSATIONS.md")
INTRODUCTION = """\
# What an owner's requests cost

Written by `test_conversations.py`: six disks, the embedded zone. A host shows a model either the text of a result or its
structure; tokens are characters / 4. The bars are a median of 450 and at most 1,200 for either form.

"""
TOLERANCE = 0.1
"""Ids, times and sizes differ by some characters from run to run."""
WAIT = {"wait_seconds": 50}


async def look_around(talk: Talk, ids: dict[str, str]) -> None:
    talk.asks("Are we covered?")
    found = await talk.call("list_resources")
    rows = {row["name"]: row for row in found["resources"]}
    assert {name: row.get("good_count") for name, row in rows.items()} == {
        "pg-data": 6, "mail": 1, "files": 1, "wiki": 1, "web-01": 1, "scratch": 0,
    }  # fmt: skip
    assert rows["pg-data"]["newest_good_id"] == ids["night-5"]
    talk.tells(
        ids["night-5"],
        rows["pg-data"]["newest_good_time"],
        rows["pg-data"]["stored_bytes"],
        "Without a good restore point",
    )
    talk.tells(f"{rows['scratch']['resource_id']} “scratch”")

    talk.asks("What backups do I have of the database?")
    found = await talk.call("list_snapshots", resource_id="pg-data")
    assert [row["name"] for row in found["snapshots"]] == [f"night-{night}" for night in reversed(range(6))]
    talk.tells(*(ids[f"night-{night}"] for night in range(6)), "incremental", found["snapshots"][0]["stored_bytes"])

    talk.asks("Is there a backup called nightly of the mail disk?")
    await talk.call("list_snapshots", resource_id="mail", search="nightly")
    talk.tells(ids["mail"], "search “nightly”")

    talk.asks("What builds on what in the database's backups?")
    found = await talk.call("show_chain", resource_id="pg-data")
    talk.tells(ids["night-5"], "◀ head", found["stored_bytes"])

    talk.asks("What would be freed if only the newest chain stayed?")
    found = await talk.call("show_chain", resource_id="pg-data")
    assert found["frees_bytes"] > 0
    talk.tells(found["frees_bytes"])

    talk.asks("Find the disk of the wiki")
    await talk.call("list_resources", search="wiki")
    talk.tells("wiki.img", "1 of 6 match the search")

    talk.asks("What is running right now?")
    await talk.call("list_jobs")
    assert "No unfinished jobs" in talk.turns[-1].results[0].content[0].text  # type: ignore[union-attr]


async def back_things_up(talk: Talk, lab: Lab) -> None:
    talk.asks("Back up the mail disk before I upgrade")
    made = await talk.call("create_snapshots", resource_ids=["mail"], name="before-upgrade", **WAIT)
    assert made["outcome"] == "successful"
    talk.tells(made["job_id"], made["made"][0]["snapshot_id"], "incremental", made["made"][0]["time"])

    talk.asks("Back it up again under the same name")
    again = await talk.call("create_snapshots", resource_ids=["mail"], name="before-upgrade", **WAIT)
    assert again["status"] == "exists"
    talk.tells(made["made"][0]["snapshot_id"], again["made_at"], "does not contain later changes")

    talk.asks("Back up files and wiki at one moment")
    made = await talk.call("create_snapshots", resource_ids=["files", "wiki"], name="both", **WAIT)
    talk.tells(*(one["snapshot_id"] for one in made["made"]))

    talk.asks("Back up pg-dta (a typo)")
    assert "pg-data" in (await talk.call("create_snapshots", resource_ids=["pg-dta"], name="today"))["error"]
    made = await talk.call("create_snapshots", resource_ids=["pg-data"], name="today", **WAIT)
    talk.tells("Similar names", made["made"][0]["snapshot_id"])

    talk.asks("Verify that the mail disk can be restored")
    (row,) = (await talk.call("list_resources", search="mail"))["resources"]
    found = await talk.call("verify_snapshots", snapshot_ids=[row["newest_good_id"]], **WAIT)
    assert found["outcome"] == "successful"
    talk.tells(row["newest_good_id"], "Read back whole")

    pid = worker_pid(lab.home / "zones" / "local")
    assert pid
    os.kill(pid, signal.SIGSTOP)  # as if the disk were large
    talk.asks("Start a backup of the file server")
    started = await talk.call("create_snapshots", resource_ids=["files"], name="evening")
    talk.tells(started["job_id"], "Submitted, not done")
    talk.asks("Is it finished yet?")
    waited = await talk.call("wait_for_job", job_ids=[started["job_id"]], timeout_seconds=0)
    assert waited["outcome"] == "still_running"
    talk.tells(started["job_id"], "Still running")
    talk.asks("Stop that backup")
    (job,) = (await talk.call("list_jobs"))["jobs"]
    stopped = await talk.call("cancel_job", job_id=job["job_id"])
    assert stopped["status"] == "cancelled"
    talk.tells(job["job_id"], "cancelled")
    os.kill(pid, signal.SIGCONT)


async def restore(talk: Talk, lab: Lab, ids: dict[str, str]) -> None:
    talk.asks("I need one file of the wiki's last backup, beside the original")
    (row,) = (await talk.call("list_resources", search="wiki"))["resources"]
    made = await talk.call("export_to_volume", snapshot_id=row["newest_good_id"], volume_name="wiki-old", **WAIT)
    (copy,) = made["made"]
    assert Path(copy["path"]).stat().st_size == copy["disk_bytes"]
    talk.tells(copy["path"], copy["resource_id"], copy["disk_bytes"])

    talk.asks("Make a template of the web server")
    (row,) = (await talk.call("list_resources", search="web-01"))["resources"]
    made = await talk.call("export_to_image", snapshot_id=row["newest_good_id"], image_name="web-golden", **WAIT)
    talk.tells(made["made"][0]["resource_id"], "web-golden", made["made"][0]["path"])

    change(lab.folder / "pg-data.img", 4096, seed=99)
    talk.asks("What would I get back, and lose, if the database went back to this morning?")
    plan = await talk.call("rollback_to_snapshots", snapshot_ids=[ids["night-5"]], plan_only=True)
    assert plan["status"] == "plan"
    talk.tells("Everything written to it since", "A safety snapshot", ids["night-5"], "nobody was asked")

    talk.asks("Put the database back to this morning")
    found = await talk.call("list_snapshots", resource_id="pg-data", search="night-5")
    done = await talk.call("rollback_to_snapshots", snapshot_ids=[found["snapshots"][0]["snapshot_id"]], **WAIT)
    assert (done["status"], done["outcome"]) == ("started", "successful")
    talk.tells(done["job_id"], done["safety_snapshot_ids"][0], "has the snapshot's content again")


async def tidy_up(talk: Talk, lab: Lab, ids: dict[str, str]) -> None:
    talk.asks("What would deleting the oldest database backup take with it?")
    plan = await talk.call("delete_snapshot", snapshot_id=ids["night-0"], plan_only=True)
    talk.tells(
        ids["night-0"],
        ids["night-1"],
        plan["frees_bytes"],
        "Delete the whole chain, 2 restore points",
        "It can be undone",
    )

    talk.asks("Delete it, then; I agree")
    done = await talk.call("delete_snapshot", snapshot_id=ids["night-0"], **WAIT)
    assert (done["status"], done["outcome"]) == ("started", "successful")
    talk.tells(done["job_id"], "recover_snapshots brings it back")

    talk.asks("That was the wrong one: undo the deletion")
    gone = await talk.call("list_snapshots", status=["deleted"])
    talk.tells(gone["snapshots"][0]["recoverable_until"], gone["snapshots"][0]["deleted_at"])
    back = await talk.call("recover_snapshots", snapshot_ids=[row["snapshot_id"] for row in gone["snapshots"]], **WAIT)
    assert {one["name"] for one in back["made"]} == {"night-0", "night-1"}
    talk.tells(ids["night-0"], ids["night-1"], "The head of “pg-data” stays where it is")

    talk.asks("Delete this morning's web server backup; no, keep it")
    no = await talk.call("delete_snapshot", snapshot_id=ids["web-01"])
    assert no["status"] == "declined"
    talk.tells(no["declined_at"], no["ask_again_at"], "A person said no")

    talk.asks("Call the night before last golden, and tag it keep")
    done = await talk.call("rename_snapshot", snapshot_id=ids["night-4"], name="golden", tags=["keep"])
    talk.tells(ids["night-4"], "“golden”", "“keep”")

    talk.asks("Which backups are tagged keep?")
    await talk.call("list_snapshots", tags=["keep"], verbose=True)
    talk.tells(ids["night-4"], "golden", "keep")

    talk.asks("Delete night-1 (on a host that cannot ask)")
    async with lab.connect() as mute, talk.through(mute):
        asked = await talk.call("delete_snapshot", snapshot_id=ids["night-1"])
        assert asked["status"] == "needs_approval"
        talk.tells(asked["approval_id"], f"approve {asked['approval_id']}", asked["approval_expires_at"])
        await app.build_guard(lab.settings).approve(asked["approval_id"], None)
        done = await talk.call("delete_snapshot", snapshot_id=ids["night-1"], **WAIT)
    assert (done["status"], done["outcome"]) == ("started", "successful")


async def review(talk: Talk, ids: dict[str, str]) -> None:
    talk.asks("What was done today, and who approved it?")
    found = await talk.call("list_jobs", finished=True)
    assert [job for job in found["jobs"] if job["action"] == "deletion" and job["approved_by"]]
    assert "cancelled" in str([job.get("error") for job in found["jobs"]])
    talk.tells(ids["night-1"], "deletion", "approved_by" and "local", "roll-back", "verification", "recovery")

    talk.asks("And now: are we covered?")
    await talk.call("list_resources")


async def converse(lab: Lab) -> Talk:
    """Have the whole conversation; return what it cost."""
    ids = await settle(lab)
    person = Person("roll back", "pg-data", "keep")
    async with lab.connect(elicitation_callback=person) as client:
        talk = Talk(client)
        await look_around(talk, ids)
        await back_things_up(talk, lab)
        await restore(talk, lab, ids)
        await tidy_up(talk, lab, ids)
        await review(talk, ids)
    assert person.replies == []
    return talk


async def test_an_owner_gets_what_they_ask_for_within_the_bars(nursery: Nursery) -> None:
    with estate(nursery) as lab:
        talk = await converse(lab)
    table = talk.table()
    if os.environ.get("WRITE_TABLES"):
        DOCUMENT.write_text(INTRODUCTION + table, encoding="utf-8")
    print(table)
    assert "\n".join(talk.differences) == ""
    assert len(talk.turns) >= 20
    for form in (0, 1):
        tokens = [turn.tokens[form] for turn in talk.turns]
        assert statistics.median(tokens) <= 450, table
        assert max(tokens) <= 1200, table
    covered = talk.costs("Are we covered?")
    assert (len(covered.results), max(covered.tokens) <= 425) == (1, True), covered.tokens
    calls = {turn.request: len(turn.results) for turn in talk.turns}
    assert calls["What was done today, and who approved it?"] == 1
    assert calls["That was the wrong one: undo the deletion"] == 2
    assert calls["I need one file of the wiki's last backup, beside the original"] == 2
    assert_equal_costs(table, DOCUMENT.read_text("utf-8"))


def assert_equal_costs(now: str, written: str) -> None:
    """Fail if the committed table is not about the same requests, or says other costs."""
    rows = [
        [re.split(r" *\| *", line)[1:5] for line in text.splitlines() if re.search(r"\d \|$", line)]
        for text in (now, written)
    ]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]], now
    for one, other in zip(*rows, strict=True):
        for here, there in zip(map(int, one[2:]), map(int, other[2:]), strict=True):
            assert abs(here - there) <= 5 + TOLERANCE * there, f"{DOCUMENT.name} is stale: {one} is not {other}"
