"""Acts that only a person starts, in a terminal: what they destroy, and which rule forbids it. Pure.

They are shown, confirmed with a typed word (and the PIN, if one is set), carried out for exactly what was shown, and recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from snapshot_mcp.contract.models import Resource, Snapshot
from snapshot_mcp.contract.own_file import OwnFile
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes, quoted
from snapshot_mcp.guard.plan.policy import Policy
from snapshot_mcp.guard.plan.rules import Refusal, refuse_disk, refuse_protected
from snapshot_mcp.guard.plan.wording import counted, format_moment

PURGE = "zone purge"
MOVE = "zone move"
DELETE_FILE = "zone remove --delete-file"
FORGET = "zone forget"
SHOWN = 40
"""Restore points listed in a plan; the rest are counted."""


@dataclass(frozen=True, slots=True)
class PersonAct:
    """What a person is shown: `title` as a question, `lines` the whole effect, `word` what is typed to confirm.

    `ids`: what the act may destroy; `refusal`: the rule that forbids all of it; `is_strict`: a PIN is required.
    """

    operation: str
    title: str
    lines: tuple[str, ...]
    word: str
    ids: tuple[str, ...] = ()
    refusal: Refusal | None = None
    is_strict: bool = False


def plan_purge(zone: str, deleted: Sequence[Snapshot], policy: Policy) -> PersonAct:
    """Plan to destroy deleted snapshots permanently; protected ones are excluded and named."""
    refusals = {one.snapshot_id: refuse_protected(policy, one) for one in deleted}
    going = [one for one in deleted if not refusals[one.snapshot_id]]
    kept = [one for one in deleted if refusals[one.snapshot_id]]
    size = format_bytes(sum(one.stored_bytes for one in going))
    lines = [
        *_disks(going),
        "They can still be recovered now. After the purge nothing can restore them.",
        f"Space freed: {size}.",
        *(f"Protected, not purged: {_one(snapshot)}" for snapshot in kept),
    ]
    return PersonAct(
        operation=PURGE,
        title=f"Purge {counted(len(going), 'deleted restore point')} in zone {zone}, {size}?",
        lines=tuple(lines),
        word="purge",
        ids=tuple(one.snapshot_id for one in going),
        refusal=refusals[kept[0].snapshot_id] if kept and not going else None,
        is_strict=policy.consent == "human",
    )


def plan_move(label: str, lines: Sequence[str], policy: Policy) -> PersonAct:
    """Plan to move a disk to a file that may not be its own; `lines` say from where to where, and why that is in doubt."""
    return PersonAct(
        operation=MOVE,
        title=f"Move {clean_text(label)} to a file that may not be its own?",
        lines=(*lines, "A roll-back of the disk will overwrite that file. Nothing is overwritten now."),
        word="move",
        is_strict=policy.consent == "human",
    )


def plan_file_deletion(zone: str, file: OwnFile, policy: Policy) -> PersonAct:
    """Plan to delete the file of an exported volume or image; its name is typed if nothing can make it again."""
    source = clean_text(file.made_from)
    again = f"The same content can be exported again from {source}."
    gone = f"Nothing can restore it: it was written to since it was made from {source}, or {source} is no longer good."
    others = f"It has {file.hard_links} names (hard links); the others remain, and no space is freed."
    lines = [
        f"File: {clean_text(file.path, MESSAGE_CHARACTERS)}",
        f"Made {format_moment(file.made_at)} from {source}, last written {format_moment(file.written_at)}.",
        again if file.is_restorable else gone,
        others if file.hard_links > 1 else f"Space freed: {format_bytes(file.frees_bytes)}.",
    ]
    return PersonAct(
        operation=DELETE_FILE,
        title=f"Delete {quoted(file.name)} ({file.item_id}), {format_bytes(file.size_bytes)}, in zone {zone} for ever?",
        lines=tuple(lines),
        word="delete" if file.is_restorable else file.item_id,
        ids=(file.item_id,),
        refusal=refuse_disk(policy, file.item_id, file.name),
        is_strict=policy.consent == "human",
    )


def plan_forget(zone: str, disk: Resource, points: Sequence[Snapshot], policy: Policy) -> PersonAct:
    """Plan to destroy all restore points of a disk for ever; its name is typed. A protected one forbids all of it."""
    refusal = refuse_disk(policy, disk.id, disk.name) or next(
        filter(None, (refuse_protected(policy, one) for one in points)), None
    )
    name = clean_text(disk.name)
    return PersonAct(
        operation=FORGET,
        title=f"Destroy all {counted(len(points), 'restore point')} of {quoted(disk.name)} ({disk.id}) in zone {zone} for ever?",
        lines=(
            *(f"- {_one(one)}" for one in points[:SHOWN]),
            *([f"… and {len(points) - SHOWN} more restore points"] if len(points) > SHOWN else []),
            "There is no undo: neither the grace period nor a purge comes first. The disk itself is not touched.",
            f"Space freed: at most {format_bytes(sum(one.stored_bytes for one in points))}.",
        ),
        word=name if name and name == disk.name else disk.id,
        ids=tuple(one.snapshot_id for one in points),
        refusal=refusal,
        is_strict=policy.consent == "human",
    )


def _disks(snapshots: Sequence[Snapshot]) -> list[str]:
    by_disk: dict[tuple[str, str], list[Snapshot]] = {}
    for one in snapshots:
        by_disk.setdefault((one.resource.resource_name, one.resource.resource_id), []).append(one)
    lines, shown = [], 0
    for (name, id_), some in by_disk.items():
        size = format_bytes(sum(one.stored_bytes for one in some))
        lines.append(f"{quoted(name)} ({clean_text(id_)}): {counted(len(some), 'deleted restore point')}, {size}")
        lines += [f"- {_one(one)}" for one in some[: max(0, SHOWN - shown)]]
        shown += len(some)
    return [*lines, f"… and {shown - SHOWN} more restore points"] if shown > SHOWN else lines


def _one(snapshot: Snapshot) -> str:
    gone = f", deleted {format_moment(snapshot.status_time)}" if snapshot.status == SnapshotStatus.DELETED else ""
    return (
        f"{quoted(snapshot.snapshot_name)} of {format_moment(snapshot.snapshot_time)},"
        f" {format_bytes(snapshot.stored_bytes)}{gone},"
        f" {clean_text(snapshot.snapshot_id)}"
    )
