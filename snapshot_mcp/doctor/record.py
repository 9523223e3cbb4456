"""The guard's side: the PIN, what waits for a person and the page for it, and the record."""

from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.text import age_in_words, clean_text
from snapshot_mcp.doctor.symptom import Symptom, look, well, wrong
from snapshot_mcp.guard import Guard
from snapshot_mcp.guard.page.process import LOCK_NAME
from snapshot_mcp.providers.local.holders import is_locked


async def look_at_record(guard: Guard, home: Path, command: str) -> list[Symptom]:
    """Return what is found in the guard's database, which may be a copy of the one in `home`.

    `command` runs this program in a shell.
    """
    try:
        found = [await _pin(guard, command), *await _approvals(guard, command)]
        return [*found, *await _page(guard, home, command), _audit(guard, command)]
    except ZoneError as error:
        return [wrong("record", error.message, error.hint)]


async def _pin(guard: Guard, command: str) -> Symptom:
    if not await guard.has_pin():
        text = "No PIN is set: in zones with a strict rule nothing can be approved, elsewhere nothing proves a person."
        return look("PIN", text, f"{command} pin")
    if await guard.is_pin_locked():
        text = "The PIN is locked after wrong attempts: nobody can approve in a terminal for a quarter of an hour."
        return wrong("PIN", text, f"If these attempts were not yours, read: {command} audit")
    return well("PIN", "A PIN is set.")


async def _approvals(guard: Guard, command: str) -> list[Symptom]:
    waiting = [one for one in await guard.list_approvals() if one.state == "pending"]
    now = datetime.now(UTC)
    symptoms = [
        look(
            "approvals",
            f"{one.id} waits for a person since {one.opened.time:%Y-%m-%d %H:%M} UTC"
            f" ({age_in_words(one.opened.time, now)}): {clean_text(one.title, 200)}.",
            f"{command} approve {one.id}",
        )
        for one in waiting
    ]
    return symptoms or [well("approvals", "None waits for a person.")]


async def _page(guard: Guard, home: Path, command: str) -> list[Symptom]:
    port = await guard.page_port()
    if not port:
        return []
    if await anyio.to_thread.run_sync(is_locked, home / LOCK_NAME):
        return [well("page", f"The approval page listens on port {port} of this machine.")]
    return [look("page", "The approval page was ended while links to it are in use.", f"{command} approvals")]


def _audit(guard: Guard, command: str) -> Symptom:
    verdict = guard.audit.verify()
    if verdict.problem:
        return wrong(
            "record", f"The record was tampered with or damaged: {verdict.problem}.", f"{command} audit verify"
        )
    count = verdict.records
    return well("record", f"{count} entr{'y' if count == 1 else 'ies'}, none changed or missing.")
