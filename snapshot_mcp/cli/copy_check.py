"""`copy check`: a copy holds what was sent; with the recovery key it restores, chain by chain into a scratch zone."""

import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.ground.files import make_private_folder

if TYPE_CHECKING:
    from snapshot_mcp.contract.parts import Ledger, Part
    from snapshot_mcp.copies.check import CheckOutcome
    from snapshot_mcp.copies.keys import MachineKeys, RecoveryKey
    from snapshot_mcp.copies.library import FoundCopy
    from snapshot_mcp.copies.settings import CopySettings
    from snapshot_mcp.copies.stores import CopyStore
    from snapshot_mcp.settings import Settings


async def check_one(
    settings: "Settings", zone_name: str, copy: str, one: "CopySettings", key: "RecoveryKey | None"
) -> dict[str, Any]:
    """Check one copy of a zone; what is wrong is recorded, so that the next run mends it."""
    from snapshot_mcp import app
    from snapshot_mcp.copies.keys import read_keys
    from snapshot_mcp.copies.stores import open_store

    store, keys = open_store(one), read_keys(settings.home)
    async with aclosing(app.open_local_zone(settings, zone_name)) as zone:
        with progress_bar("reading") as advance:
            outcome = await zone.with_parts(lambda parts, ledger: _holds(copy, one, store, keys, ledger, advance))
        findings = [f"{part}: {text}" if part else text for part, text in outcome.findings.items()]
        state = outcome.state
        if key:
            findings += await _restores(settings, store, key, state.writer)
        problem = "; ".join(findings[:5])
        await zone.with_parts(
            lambda parts, ledger: ledger.note_checked(state.copy_id, is_restored=bool(key), problem=problem)
        )
    return {
        "copy": copy,
        "zone": zone_name,
        "parts": outcome.part_count,
        "bytes": outcome.byte_count,
        "restored": bool(key) and not findings,
        "findings": findings,
    }


def _holds(
    copy: str, one: "CopySettings", store: "CopyStore", keys: "MachineKeys | None", ledger: "Ledger", advance: Any
) -> "CheckOutcome":
    from snapshot_mcp.copies.check import check_sent, state_of

    sent = ledger.sent(state_of(copy, one, keys, ledger).copy_id)
    total, done = sum(part.stored_bytes for part in sent.values()), 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        advance(done, total)

    return check_sent(copy, one, store, keys, ledger, count)


async def _restores(settings: "Settings", store: "CopyStore", key: "RecoveryKey", writer: str) -> list[str]:
    """Restore everything of a writer into a scratch zone, a chain at a time, and check that; return what is wrong."""
    from snapshot_mcp.copies.fetch import Fetcher
    from snapshot_mcp.copies.library import read_library

    library = await anyio.to_thread.run_sync(read_library, store, key)
    shelf = next((one for one in library.shelves if one.manifest.writer == writer), None)
    if shelf is None:
        return ["with this recovery key nothing of this zone can be read there"]
    findings = list(shelf.findings)
    found = {one: it for one, copies in library.found().items() for it in copies if it.writer == writer}
    chains: dict[str, list[Part]] = {}
    for one in found.values():
        part = one.entry.part()
        chains.setdefault(part.parents[0] if part.parents else part.part_id, []).append(part)
    scratch = settings.home / "copies"
    make_private_folder(scratch)
    fetcher = Fetcher(store, key, is_durable=False)
    for root, parts in sorted(chains.items()):
        findings += await _restore_chain(scratch, root, parts, found, fetcher)
    return findings


async def _restore_chain(
    scratch: Path, root: str, parts: "list[Part]", found: "dict[str, FoundCopy]", fetcher: Any
) -> list[str]:
    from snapshot_mcp import app

    def fetch(part: "Part", path: Path) -> None:
        fetcher.fetch(found[part.part_id], path)

    with tempfile.TemporaryDirectory(prefix=".check-", dir=scratch) as folder:
        async with aclosing(app.make_zone_in(Path(folder) / "zone")) as zone:
            made = await zone.make_of(root, parts, fetch)
            report = await zone.check()
    wrong = [f"{one}: {why}" for one, why in made.missing.items()]
    return wrong + [f"{one.subject}: {one.text}" for one in report.findings if one.is_damage]
