"""Read back all that was sent: without the recovery key that a copy *holds what was sent*, with it that it *restores*."""

from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.parts import Ledger, Piece, SentPart
from snapshot_mcp.copies.manifest import index_name, manifest_name, number_of, piece_name
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore


@dataclass(slots=True)
class CheckOutcome:
    """How much was read, and what is wrong, by part; "" for what is of no part."""

    part_count: int = 0
    byte_count: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def check_sent(
    copy: str, settings: CopySettings, store: CopyStore, ledger: Ledger, advance: Callable[[int], None]
) -> CheckOutcome:
    """Compare every stored byte with what was recorded when it was sent; what is wrong is sent again by the next run."""
    outcome = CheckOutcome()
    state = ledger.state(copy, settings.place)
    store.prepare(is_known=state.number > 0)
    numbers = {number for held in store.list(f"{state.writer}/manifests/") if (number := number_of(held.name))}
    if state.number and state.number not in numbers:
        newest = max(numbers, default="none")
        outcome.findings[""] = f"the store was rolled back: manifest {state.number} is missing, the newest is {newest}"
    elif numbers and max(numbers) > max(state.number, state.intended):
        name = manifest_name(state.writer, max(numbers))
        outcome.findings[""] = f"{name} was not written by this zone: its catalogue was put back"
    for one in ledger.sent(copy).values():
        _check_part(copy, state.writer, one, settings, store, ledger, outcome, advance)
    return outcome


def _check_part(
    copy: str,
    writer: str,
    one: SentPart,
    settings: CopySettings,
    store: CopyStore,
    ledger: Ledger,
    outcome: CheckOutcome,
    advance: Callable[[int], None],
) -> None:
    pieces = ledger.pieces(copy, one.part_id)
    objects = {
        piece_name(writer, one.part_id, number, is_sealed=settings.is_sealed): piece for number, piece in pieces.items()
    }
    objects[index_name(writer, one.part_id)] = Piece(0, "", one.index_size, one.index_hash)
    wrong = [name for name, piece in objects.items() if not _is_as_sent(store, name, piece, advance)]
    outcome.part_count += 1
    outcome.byte_count += one.stored_bytes
    if wrong:
        numbers = [
            number
            for number in pieces
            if piece_name(writer, one.part_id, number, is_sealed=settings.is_sealed) in wrong
        ]
        ledger.forget_part(copy, one.part_id, numbers)
        outcome.findings[one.part_id] = f"{len(wrong)} of its {len(objects)} objects are missing or changed"


def _is_as_sent(store: CopyStore, name: str, piece: Piece, advance: Callable[[int], None]) -> bool:
    hashed, size = blake3(), 0
    try:
        for chunk in store.get(name):
            hashed.update(chunk)
            size += len(chunk)
            advance(len(chunk))
            if size > piece.stored_size:
                return False
    except NotFound:
        return False
    return size == piece.stored_size and hashed.hexdigest() == piece.stored_hash
