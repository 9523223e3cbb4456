"""Read back all that was sent: without the recovery key that a copy *holds what was sent*, with it that it *restores*."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.parts import CopyState, Ledger, SentPart
from snapshot_mcp.copies.keys import MachineKeys
from snapshot_mcp.copies.manifest import index_name, manifest_name
from snapshot_mcp.copies.send import recipient_of
from snapshot_mcp.copies.sending import StorePlace
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore


@dataclass(slots=True)
class CheckOutcome:
    """How much was read, and what is wrong, by part; "" for what is of no part."""

    state: CopyState
    part_count: int = 0
    byte_count: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def state_of(copy: str, settings: CopySettings, keys: MachineKeys | None, ledger: Ledger) -> CopyState:
    """Return what is known of a copy. Raises NotUsable for one that has not run yet."""
    found = ledger.find(copy, settings.place, recipient_of(copy, settings, keys))
    if found is None:
        raise NotUsable(f"Copy {copy!r} has not run yet.", hint=f"`snapshot-mcp copy run {copy}`")
    return found


def check_sent(
    copy: str,
    settings: CopySettings,
    store: CopyStore,
    keys: MachineKeys | None,
    ledger: Ledger,
    advance: Callable[[int], None],
) -> CheckOutcome:
    """Compare every stored byte with what was recorded when it was sent; what is wrong is sent again by the next run."""
    state = state_of(copy, settings, keys, ledger)
    outcome = CheckOutcome(state)
    store.prepare(is_known=state.number > 0)
    place = StorePlace(store, state.writer)
    name = manifest_name(state.writer, state.number)
    if state.number and not place.reads_back(name, state.manifest_size, state.manifest_hash):
        outcome.findings[""] = (
            f"manifest {state.number}, the newest, is missing or changed: the store was rolled back or harmed"
        )
        ledger.note_listed(replace(state, content="", manifest_size=0), _listed(ledger, state))
    for one in ledger.sent(state.copy_id).values():
        _check_part(one, place, settings, ledger, outcome, advance)
    return outcome


def _listed(ledger: Ledger, state: CopyState) -> list[str]:
    return [one.part_id for one in ledger.sent(state.copy_id).values() if one.listed_in]


def _check_part(
    one: SentPart,
    place: StorePlace,
    settings: CopySettings,
    ledger: Ledger,
    outcome: CheckOutcome,
    advance: Callable[[int], None],
) -> None:
    pieces = ledger.pieces(outcome.state.copy_id, one.part_id)
    wrong = []
    for number, piece in pieces.items():
        name = place.piece(one.part_id, number, is_sealed=settings.is_sealed)
        if not place.reads_back(name, piece.stored_size, piece.stored_hash):
            wrong.append(number)
        advance(piece.stored_size)
    has_index = place.reads_back(index_name(place.writer, one.part_id), one.index_size, one.index_hash)
    outcome.part_count += 1
    outcome.byte_count += one.stored_bytes
    if wrong or not has_index or not pieces:
        ledger.doubt(outcome.state.copy_id, one.part_id, wrong)
        count = len(wrong) + (not has_index)
        outcome.findings[one.part_id] = f"{count} of its {len(pieces) + 1} objects are missing or changed"
