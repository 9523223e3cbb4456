"""Words a plan: as lines, and as the question to a person. Pure; names are cleaned here.

Names are untrusted, so each is quoted, put on one line and capped. A question states the consequence first and the ids last,
and contains nothing that changes by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from snapshot_mcp.contract.provider import SHARED_FATE
from snapshot_mcp.contract.text import CONSISTENCIES, clean_text, consistency_in_words, format_bytes, quoted
from snapshot_mcp.guard.plan.plan import DeletionLoss, Loss, LostSnapshot, Overwrite, Plan, Rest, RollbackLoss, Warn
from snapshot_mcp.guard.plan.question import KEEP, Question, QuestionAnswer

DESTROY = {"delete": "delete", "rollback": "roll back"}
"""The words that answer a question, by operation."""

ANSWERS = frozenset(
    f"{KEEP} delete rollback y yes ok okay true agree accept approve confirm proceed"
    " n no nope not none nothing never false cancel stop abort quit exit decline deny reject dont skip back help here"
    " keepit keepall keepeverything".split()
)
"""Words a person may type without meaning a disk of that name: typing “no” must never confirm."""

SHOWN_DISKS = 6
"""Disks listed in a question; the rest are counted."""
SHOWN_IN_QUESTION = 3
"""First and last restore points of a long list; the rest are counted. Keeps a question within 12 lines."""

NAME_IN_QUESTION = 60
OLD_NAME_CHARACTERS = 30
FUZZY = CONSISTENCIES["fuzzy"]
TYPEABLE_CHARACTERS = 40

SENTENCES = {
    Warn.LAST_POINTS: "This deletes the last restore points of this disk; none of them counts as good.",
    Warn.LAST_GOOD_POINT: "This deletes the last good restore point of this disk.",
    Warn.NO_UNDO: "It cannot be undone.",
    Warn.NO_SAFETY_SNAPSHOT: "NO SAFETY SNAPSHOT: the current content cannot be restored afterwards.",
}
"""Warnings with the same wording in every plan."""
SAFETY_FIRST = "A safety snapshot of the current content is taken first, to return to. If it fails, nothing is changed."


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plan, and the warning that it words, if any."""

    text: str
    warning: Warn | None = None


def plan_lines(plan: Plan) -> tuple[str, ...]:
    """Return the whole effect: the loss, then what remains and is freed."""
    going = _going(plan.loss) if isinstance(plan.loss, DeletionLoss) else []
    return (*going, *(one.text for one in effects(plan)))


def effects(plan: Plan) -> tuple[Line, ...]:
    """Return the plan without the list of snapshots that a deletion destroys."""
    if isinstance(plan.loss, DeletionLoss):
        return (*_deletion_effects(plan.loss), *map(Line, _deletion_rest(plan)))
    return (*_rollback_effects(plan.loss), *map(Line, _rollback_rest(plan)))


def question_for(plan: Plan, nonce: str) -> Question:
    """Return the question about this loss; `nonce` makes it unique."""
    loss = plan.loss
    words = (DESTROY[loss.operation], KEEP)
    lines = _deletion_question(loss) if isinstance(loss, DeletionLoss) else _rollback_question(loss)
    lines += [
        *_fate(plan.rest),
        *_copied(plan.rest, "for {} days after the deletion" if isinstance(loss, DeletionLoss) else ""),
    ]
    reference = f"{plan.digest[:10]}-{nonce}"
    if loss.is_grave:
        name = _typeable_name(loss, f"plan-{plan.digest[:8]}")
        lines += [f"To agree, type {name} here; to keep everything, type {KEEP}."]
        return Question("\n".join([*lines, _ids_line(loss, reference)]), "typed_name", words, name)
    lines += [f"Answer “{words[0]}” to agree, “{KEEP}” to keep everything."]
    return Question("\n".join([*lines, _ids_line(loss, reference)]), "word", words)


def is_yes(question: Question, answer: QuestionAnswer) -> bool:
    """Whether the answer agrees: exactly the word, or exactly the name."""
    expected = question.words[0] if question.kind == "word" else question.expected_name
    given = answer.text.strip()
    return answer.outcome == "answered" and (
        given.casefold() == expected.casefold() if question.kind == "word" else given == expected
    )


def title_of(plan: Plan) -> str:
    """Return the act in one line, for a list."""
    loss = plan.loss
    if isinstance(loss, DeletionLoss):
        return f"Delete {_count(loss)} of {_disk(loss, NAME_IN_QUESTION)}"
    return "Roll back " + _enumerate([_disk(one, NAME_IN_QUESTION) for one in loss.overwrites])


def what_changed(now: Loss, consented: Loss) -> str:
    """Return why a consent no longer covers the loss, naming a replaced disk, which the lines of a plan do not show."""
    if isinstance(now, RollbackLoss) and isinstance(consented, RollbackLoss):
        before = {one.resource_id: one.identity for one in consented.overwrites}
        for one in now.overwrites:
            if before.get(one.resource_id) not in {None, one.identity}:
                return f"disk {_disk(one)} is no longer the file or device that was agreed to"
    return "what would be lost now is not what was agreed to"


def format_moment(moment: datetime | None) -> str:
    """Return a time as people read it, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "unknown time"


def format_duration(seconds: int) -> str:
    """Return a duration in its largest unit, up to hours."""
    if seconds >= 3600:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds} s"


# Deletion


def _going(loss: DeletionLoss) -> list[str]:
    lines = [f"Delete {_count(loss)} of {_disk(loss)} in zone {loss.zone}:"]
    for one in loss.snapshots:
        mark = "" if one.snapshot_id == loss.snapshot_id else " (built on it)"
        lines.append(f"{_lost(one)}, {clean_text(one.snapshot_id)}{mark}")
    return lines


def _deletion_effects(loss: DeletionLoss) -> list[Line]:
    return [*_warned(loss.warnings), *([Line(_undo(loss))] if loss.undo_seconds else [])]


def _deletion_rest(plan: Plan) -> list[str]:
    undo = plan.loss.undo_seconds if isinstance(plan.loss, DeletionLoss) else 0
    when = ", once the deletion can no longer be undone" if undo else ""
    remains = f"Good restore points that remain: {plan.rest.good_remaining}{_newest_good(plan.rest)}."
    most = "at most " if plan.rest.shares_fate else ""  # blocks that other restore points have too are not told apart
    freed = f"Space freed: {most}{format_bytes(plan.rest.frees_bytes)}{when}."
    return [
        remains,
        *_not_good(plan.rest),
        *_fate(plan.rest),
        *_copied(plan.rest, "for {} days after the deletion"),
        freed,
    ]


def _copied(rest: Rest, stay: str) -> list[str]:
    """Say which copies elsewhere have what is at stake."""
    return [
        f"Copied elsewhere: {clean_text(one.copy_name)} has {one.number} of {one.total}"
        f"{f', {stay.format(one.keep_days)}' if stay else ''}."
        for one in rest.copies
    ]


def _newest_good(rest: Rest) -> str:
    if not rest.good_remaining:
        return ""
    name = f"{quoted(rest.newest_good_name)} of {format_moment(rest.newest_good_time)}"
    consistency = consistency_in_words(rest.newest_good_consistency)
    return f", the newest {name} ({clean_text(rest.newest_good_id)})" + (f", {consistency}" if consistency else "")


def _fate(rest: Rest) -> list[str]:
    return [SHARED_FATE] if rest.shares_fate else []


def _not_good(rest: Rest) -> list[str]:
    return [f"Not counted as good: {rest.fuzzy_remaining} fuzzy, {FUZZY}."] if rest.fuzzy_remaining else []


def _deletion_question(loss: DeletionLoss) -> list[str]:
    lines = [f"Delete {_count(loss)} of {_disk(loss, NAME_IN_QUESTION)}?"]
    if loss.is_none_good:
        lines.append("NO RESTORE POINT OF THIS DISK WOULD REMAIN. None of those deleted counts as good.")
    elif loss.takes_last_good_copy:
        lines.append("NO GOOD RESTORE POINT OF THIS DISK WOULD REMAIN.")
    lines.append(_undo(loss))
    shown = [f"- {_lost(one, NAME_IN_QUESTION)}" for one in loss.snapshots]
    if len(shown) > 2 * SHOWN_IN_QUESTION:
        hidden = len(shown) - 2 * SHOWN_IN_QUESTION + 1
        shown = [*shown[:SHOWN_IN_QUESTION], f"- … {hidden} more …", *shown[-SHOWN_IN_QUESTION + 1 :]]
    return lines + shown


def _count(loss: DeletionLoss) -> str:
    if len(loss.snapshots) == 1:
        return "1 restore point" if not loss.is_whole_chain else "1 restore point (full, the whole chain)"
    size = format_bytes(sum(one.size_bytes for one in loss.snapshots))
    what = "the whole chain, " if loss.is_whole_chain else ""
    return f"{what}{len(loss.snapshots)} restore points ({size})"


def _undo(loss: DeletionLoss) -> str:
    if loss.undo_seconds:
        return f"It can be undone for {format_duration(loss.undo_seconds)} after the deletion, not later."
    return SENTENCES[Warn.NO_UNDO]


def _lost(one: LostSnapshot, limit: int = 80) -> str:
    return f"{quoted(one.name, limit)} of {format_moment(one.time)}, {format_bytes(one.size_bytes)}{about(one)}"


def about(one: LostSnapshot | Overwrite, lead: str = ", ") -> str:
    """Return what a person should know of a snapshot besides its name: its consistency and its recent former name."""
    notes = [consistency_in_words(one.consistency)]
    if one.renamed_from:
        when = f" at {one.renamed_at:%Y-%m-%d %H:%M} UTC" if one.renamed_at else ""
        notes.append(f"renamed from {quoted(one.renamed_from, OLD_NAME_CHARACTERS)}{when}")
    said = ", ".join(filter(None, notes))
    return f"{lead}{said}" if said else ""


# Roll-back


def _rollback_effects(loss: RollbackLoss) -> list[Line]:
    lines: list[Line] = []
    for one in loss.overwrites:
        what = f"snapshot {quoted(one.snapshot_name)} ({clean_text(one.snapshot_id)}){about(one)}"
        lines.append(Line(f"Overwrite {_disk(one)} in zone {loss.zone} with {what}."))
        lines.append(Line(f"Everything written to it since {format_moment(one.since)} is lost."))
        lines += _warned(one.warnings, one)
    return [*lines, *(_warned(loss.warnings) or [Line(SAFETY_FIRST)])]


def _rollback_rest(plan: Plan) -> list[str]:
    loss, rest = plan.loss, plan.rest
    if rest.good_remaining:
        lines = [f"Good restore points: {rest.good_remaining}{_newest_good(rest)}. A roll-back deletes none of them."]
    else:
        lines = ["There is no good restore point."]
    lines += [*_not_good(rest), *_fate(rest), *_copied(rest, "")]
    if isinstance(loss, RollbackLoss) and loss.has_safety_snapshot:
        kind = "a full one, which takes longer" if rest.safety_is_full else "an incremental one"
        lines.append(f"The safety snapshot will be {kind}.")
    return lines


def _rollback_question(loss: RollbackLoss) -> list[str]:
    lines: list[str] = []
    if len(loss.overwrites) > 2:
        lines.append(f"Overwrite {len(loss.overwrites)} disks?")
        named = loss.overwrites if len(loss.overwrites) <= SHOWN_DISKS else loss.overwrites[: SHOWN_DISKS - 1]
        lines += [
            f"- {_disk(one, NAME_IN_QUESTION // 2)}: everything written since {format_moment(one.since)} is lost"
            f"{about(one, '; the snapshot is ')}"
            for one in named
        ]
        hidden = loss.overwrites[len(named) :]
        if hidden:
            oldest = min((one.since for one in hidden if one.since), default=None)
            lines.append(
                f"- … and {len(hidden)} more: everything written since {format_moment(oldest)} or later is lost"
            )
        hosts = list(dict.fromkeys(one.restarts for one in loss.overwrites if one.restarts))
        if hosts:
            shown = ", ".join(quoted(host, 30) for host in hosts[:3]) + (" …" if len(hosts) > 3 else "")
            lines.append(f"{counted(len(hosts), 'running machine')} will restart: {shown}.")
        lines += filter(None, [_changes_of_many(loss)])
    else:
        for one in loss.overwrites:
            lines.append(f"Overwrite {_disk(one, NAME_IN_QUESTION)}?")
            lines.append(
                f"Everything written to it since {format_moment(one.since)} is lost; it returns to"
                f" {quoted(one.snapshot_name, NAME_IN_QUESTION)}{about(one)}."
            )
            side_effects = {line.warning: line.text for line in _warned(one.warnings, one)}
            lines += filter(None, [side_effects.pop(Warn.RESTART, ""), " ".join(side_effects.values())])
    lines.append(SAFETY_FIRST if loss.has_safety_snapshot else SENTENCES[Warn.NO_SAFETY_SNAPSHOT])
    return lines


def _changes_of_many(loss: RollbackLoss) -> str:
    resized = sum(Warn.RESIZE in one.warnings for one in loss.overwrites)
    linked = sum(Warn.HARD_LINKS in one.warnings for one in loss.overwrites)
    sizes = f"{counted(resized, 'disk')} will change in size." if resized else ""
    names = (
        f"The files of {counted(linked, 'disk')} have additional names (hard links), overwritten too." if linked else ""
    )
    return f"{sizes} {names}".strip()


def _disk(one: Overwrite | DeletionLoss, limit: int = 80) -> str:
    name = f"{quoted(one.resource_name, limit)} ({clean_text(one.resource_id)})" if one.resource_name else ""
    return name or clean_text(one.resource_id) or "an unnamed disk"


# Common


def _warned(warnings: Iterable[Warn], of: Overwrite | None = None) -> list[Line]:
    found = SENTENCES | (_sentences_of(of) if of else {})
    return [Line(found[one], one) for one in warnings]


def _sentences_of(one: Overwrite) -> dict[Warn, str]:
    sizes = f"from {format_bytes(one.size_before)} to {format_bytes(one.size_after)}"
    return {
        Warn.RESTART: f"The running machine {quoted(one.restarts, NAME_IN_QUESTION)} restarts.",
        Warn.RESIZE: f"Its size changes {sizes}.",
        Warn.HARD_LINKS: f"Its file has {one.hard_links} names (hard links); all of them are overwritten.",
    }


def _typeable_name(loss: DeletionLoss | RollbackLoss, code: str) -> str:
    """Return what a person types to confirm: the disk's name, else its id, else the snapshot's id, else `code`.

    Names and ids are untrusted: one may be untypeable, or an answer such as `yes`.
    """
    if isinstance(loss, DeletionLoss):
        candidates = [loss.resource_name, loss.resource_id, loss.snapshot_id]
    else:
        one = loss.overwrites[0]
        candidates = [one.resource_name, one.resource_id, one.snapshot_id]
    return next(filter(_is_typeable, candidates), code)


def _is_typeable(text: str) -> bool:
    """Whether it can be typed as shown, and is not something that people type to answer."""
    letters = "".join(one for one in text.casefold() if one.isalnum())
    is_plain = text.isprintable() and text.isascii() and clean_text(text) == text and len(text) <= TYPEABLE_CHARACTERS
    return is_plain and letters not in {"", *ANSWERS}


def _ids_line(loss: DeletionLoss | RollbackLoss, reference: str) -> str:
    if isinstance(loss, DeletionLoss):
        ids = f"snapshot {clean_text(loss.snapshot_id)}"
    else:
        shown = [clean_text(one.snapshot_id) for one in loss.overwrites]
        ids = (
            ("snapshot " if len(shown) == 1 else "snapshots ")
            + ", ".join(shown[:3])
            + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
        )
    return f"Zone {loss.zone}, {ids}, question {reference}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it belongs."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _enumerate(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) <= 2 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
