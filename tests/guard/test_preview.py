"""`plan_only`: every consequence, and nothing else: no approval is opened, refreshed, extended or spent, and nobody is asked."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.guard.test_attacks import Victim, says
from tests.guard.test_attacks import victim as victim
from tests.marks import long
from tests.server.lab import data_of, text_of

pytestmark = pytest.mark.anyio
TABLES = ("approvals", "questions", "targets", "pin", "pin_attempts", "renames")


def records_of(victim: Victim) -> list[Any]:
    """Everything that the guard keeps but the audit record."""
    with closing(sqlite3.connect(victim.siege.folder / "home" / "guard.sqlite")) as db:
        return [db.execute(f"SELECT * FROM {name} ORDER BY rowid").fetchall() for name in TABLES]


def events_of(victim: Victim) -> list[str]:
    return [one["event"] for one in victim.siege.guard.audit.records()]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("state", ["none", "pending", long("granted"), long("denied")])
async def test_a_plan_touches_no_approval_in_any_state(victim: Victim, mode: str, state: str) -> None:
    victim.siege.mode = mode
    call = {"snapshot_id": victim.last}
    if state != "none":
        approval_id = data_of(await victim.siege.delete("last"))["approval_id"]
        if state == "denied":
            await victim.siege.guard.deny(approval_id)
        elif state == "granted":
            await victim.siege.guard.approve(approval_id, None)
    else:
        await victim.siege.delete("last", plan_only=True)
    before = records_of(victim)
    asked: list[Any] = []

    async def never(context: Any, params: Any) -> Any:
        asked.append(params)

    async with victim.siege.connect(never) as client:
        for extra in ({}, {"wait_seconds": 50}):
            shown = await client.call_tool("delete_snapshot", call | {"plan_only": True} | extra)
            data = data_of(shown)
            assert data["status"] == "plan"
            assert data["frees_bytes"] > 0
            assert data["hint"] in text_of(shown)
            assert all(line in text_of(shown) for line in data["plan"])
            assert any(victim.last in line for line in data["plan"])
            assert not data.keys() & {"approval_id", "approval_link", "how_to_approve", "job_id", "outcome"}
        rolled = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [victim.full], "plan_only": True})
        assert data_of(rolled)["status"] == "plan"
    assert asked == []
    assert records_of(victim) == before
    assert events_of(victim)[-3:] == ["previewed"] * 3
    assert await victim.acts() == 0
    assert len(await victim.zone.list_unfinished_jobs()) == 0


async def test_after_the_plan_the_yes_that_was_there_still_counts_once(victim: Victim) -> None:
    approval_id = data_of(await victim.siege.delete("last"))["approval_id"]
    await victim.siege.guard.approve(approval_id, None)
    assert data_of(await victim.siege.delete("last", plan_only=True))["status"] == "plan"
    started = data_of(await victim.siege.delete("last", wait_seconds=50))
    assert (started["status"], started["outcome"]) == ("started", "successful")
    assert await victim.acts() == 1


async def test_what_a_rule_forbids_is_said_in_the_plan_and_nobody_is_asked(victim: Victim) -> None:
    victim.siege.rules = "minimum_age_hours = 1"
    shown = await victim.siege.delete("last", says("delete"), plan_only=True)
    assert data_of(shown)["status"] == "plan"
    assert "minimum_age_hours" in text_of(shown)
    assert "would be refused" in text_of(shown)
    assert await victim.acts() == 0
