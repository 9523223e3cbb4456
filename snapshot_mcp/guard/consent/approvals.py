"""Approvals: what people were asked to consent to, and what became of it (`states.py`). One row each in HOME/guard.sqlite.

An approval is bound to its call and to the plan that the person saw, and is spent in one transaction, before the provider is
called, together with the epoch of each target (GUARD.md, "Consent", "Order of spending"). Blocking; callers go through a worker
thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.consent.approval import (
    SAFETY_SECONDS,
    Approval,
    Call,
    JobEnd,
    Safety,
    moment_from_text,
    moment_to_text,
)
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.guard.consent.journal import recent_renames
from snapshot_mcp.guard.consent.register import Register, Rows, new_id, unknown
from snapshot_mcp.guard.consent.standing import ReadRoles, Roles, Standing, void_fallen
from snapshot_mcp.guard.consent.states import OPEN, Door, State
from snapshot_mcp.guard.plan.plan import Plan

DENIED_SECONDS = 10 * 60.0
"""So long a person's no is remembered and not asked again."""
HELD_SECONDS = 120.0
"""A provider's change answers within seconds; a hold older than this belongs to a process that died."""


class SpendRefusal(StrEnum):
    """Why a consent could not be spent just now."""

    NOT_GRANTED = "it is not granted any more"
    MOVED = "another approval for the same disk or snapshot was used meanwhile"
    HELD = "another call is changing the same disk, or was cut off while it did"
    TOO_MANY = "too many deletions in the last hour"


@dataclass(frozen=True, slots=True)
class History:
    """What was done before that a plan depends on.

    `epochs`: how often a consent was spent on each target. `renames`: by snapshot what it was called until lately, and until
    when (`journal.recent_renames`).
    """

    epochs: dict[str, int]
    renames: dict[str, tuple[str, datetime]]
    deletions_last_hour: int


class Approvals:
    """The rows, each method one transaction. `roles` says who still counts."""

    def __init__(self, register: Register, roles: ReadRoles = lambda: None) -> None:
        self._register = register
        self._roles = roles

    # What a call finds

    def history(self, location: str, targets: Iterable[str]) -> History:
        """Return what the records say that a plan for these targets depends on."""
        if not self._register.exists:
            return History({}, {}, 0)
        with self._register.transaction() as rows:
            epochs = {target: _epoch(rows, target) for target in targets}
            return History(epochs, recent_renames(rows, location), _deletions_last_hour(rows))

    def look(self, call: Call, plan: Plan) -> Approval | None:
        """Record the plan, and return what is there for this call: granted, else pending, else denied, else spent lately."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            rows.record_call("plan", call, loss=plan.loss.model_dump(mode="json"), digest=plan.digest)
            found = [one for one in rows.find("call_key = ?", (call.key,)) if _still_counts(one, rows.now)]
            return min(void_fallen(rows, found, standing), key=_relevance, default=None)

    def refresh(self, approval: Approval, call: Call, plan: Plan) -> Approval:
        """Let a pending approval show the plan as it is now; who looked at the old one has to look again."""
        if approval.plan.digest == plan.digest and approval.call.is_strict == call.is_strict:
            return approval
        with self._register.transaction() as rows:
            current = rows.get(approval.id)
            if current.state is State.PENDING:
                current = replace(current, plan=plan, call=call)
                rows.write(current)
                rows.record("approval shows a new plan", current, digest=plan.digest)
            return current

    def record_refusal(self, call: Call, rule: str) -> None:
        with self._register.transaction() as rows:
            rows.record_call("refused", call, rule=rule)

    # Door (b): a person decides outside of the conversation

    def open(self, call: Call, plan: Plan) -> Approval:
        """Return the open approval of this call, or open a pending one."""
        with self._register.transaction() as rows:
            rows.sweep()
            existing = rows.open_of(call)
            if existing:
                return existing
            approval = Approval(new_id(8, "ap-"), call, State.PENDING, plan, rows.now)
            rows.insert(approval)
            rows.record("approval opened", approval, digest=plan.digest)
            return approval

    def grant(self, id_: str, *, digest: str, door: Door, by: str) -> Approval:
        """Grant what the person saw. Raises: NotFound, NotDecidable."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            if objection := standing.objection_to_grant(approval, door, by):
                raise NotDecidable(f"Approval {id_} cannot be granted: {objection}.", hint="Nothing was done.")
            if approval.state is not State.PENDING:
                raise NotDecidable(f"Approval {id_} is {approval.standing} already.", hint=approval.aftermath)
            if approval.plan.digest != digest:
                raise NotDecidable(
                    f"The plan of {id_} has changed since it was shown.", hint="Look at it again and decide then."
                )
            granted = replace(approval, state=State.GRANTED, door=door, decided_by=by, decided=rows.now)
            rows.move(approval, granted, "granted")
            return granted

    def deny(self, id_: str, *, door: Door, by: str) -> Approval:
        """Deny what is pending, or withdraw what was granted and not yet used. Raises: NotFound, NotDecidable."""
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            if approval.state not in OPEN:
                raise NotDecidable(
                    f"Approval {id_} is {approval.standing} already; there is nothing to deny.",
                    hint=approval.aftermath,
                )
            return rows.deny(approval, door=door, by=by)

    # Carrying out

    def void(self, id_: str, reason: str) -> None:
        """End a granted approval that covers the present plan no longer."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is State.GRANTED:
                rows.expire(approval, reason, "voided")

    def spend(self, id_: str, plan: Plan, *, deletions_per_hour: int) -> SpendRefusal | None:
        """Use the approval up for `plan` and raise its targets' epochs, all or nothing."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            void_fallen(rows, [rows.get(id_)], standing)
            approval = rows.get(id_)
            refusal = _spend_refusal(rows, approval, plan, deletions_per_hour)
            if refusal:
                rows.record("not spent", approval, reason=refusal.value)
                return refusal
            for target in {*plan.targets, *plan.disks}:
                rows.execute(
                    "INSERT INTO targets (target, epoch, held_by, held_at) VALUES (?, ?, ?, ?) ON CONFLICT (target) DO"
                    " UPDATE SET epoch = epoch + excluded.epoch, held_by = excluded.held_by, held_at = excluded.held_at",
                    (target, int(target in plan.targets), id_, moment_to_text(rows.now)),
                )
            rows.move(approval, replace(approval, state=State.SPENT, ended=rows.now), "spent")
            return None

    def objection(self, approval: Approval) -> str:
        """Return why the people behind the approval no longer count, "" if they do."""
        return Standing(self._roles()).objection(approval)

    def void_departed(self, before: Roles, now: Roles) -> None:
        """End the open approvals that counted before the operator's file was changed and do not count now."""
        if self._register.exists:
            with self._register.transaction() as rows:
                void_fallen(rows, [one for one in rows.find() if not Standing(before).objection(one)], Standing(now))

    def jobs_on(self, disks: Iterable[str]) -> frozenset[str]:
        """The jobs that consents were lately spent on for these disks; some may still run."""
        wanted = set(disks)
        with self._register.transaction() as rows:
            spent = (one for one in rows.find("state = 'spent' AND job_id != ''") if _still_counts(one, rows.now))
            return frozenset(one.job_id for one in spent if wanted & set(one.plan.disks))

    def settle(self, id_: str, job_id: str, remark: str = "", safety_snapshot_ids: tuple[str, ...] = ()) -> None:
        """The zone has accepted the change as `job_id`, which takes these safety snapshots; the record gets the remark."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            safety = replace(approval.safety, snapshot_ids=safety_snapshot_ids or approval.safety.snapshot_ids)
            approval = replace(approval, job_id=job_id, safety=safety)
            rows.write(approval)
            _release(rows, id_)
            rows.record("started", approval, job_id=job_id, **({"reason": remark} if remark else {}))

    def give_back(self, id_: str, reason: str) -> Approval:
        """The zone refused for certain: nothing happened, and the consent is as before."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is not State.SPENT:
                rows.record("not given back", approval, reason=reason)  # a person took it back meanwhile
                return approval
            for target in approval.plan.targets:
                rows.execute("UPDATE targets SET epoch = epoch - 1 WHERE held_by = ? AND target = ?", (id_, target))
            _release(rows, id_)
            newer = rows.open_of(approval.call)
            if newer and newer.state is State.PENDING:
                rows.expire(newer, "an earlier approval holds again")
            elif newer:
                # A person has agreed anew meanwhile; a call has one open approval.
                rows.record("not given back", approval, reason=reason)
                return approval
            granted = replace(approval, state=State.GRANTED, ended=None)
            rows.move(approval, granted, "given back", reason=reason)
            return granted

    def take_back(self, id_: str, end: JobEnd, *, door: Door, by: str) -> Approval:
        """A person takes back what was spent, and the zone has cancelled its job. Raises: NotDecidable."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is not State.SPENT or (approval.job_end and approval.job_end.code != end.code):
                raise NotDecidable(f"Approval {id_} is {approval.standing} already.", hint=approval.aftermath)
            reason = f"taken back before it had an effect (before: {approval.decision.removesuffix('.')})"
            denied = replace(
                approval, state=State.DENIED, door=door, decided_by=by, decided=rows.now, ended=rows.now, reason=reason
            )
            rows.move(approval, denied, "taken back", job_id=approval.job_id)
            return denied if denied.job_end else rows.end(denied, end)

    def leave_unknown(self, id_: str, reason: str) -> None:
        """What became of the change is not known: the consent stays spent."""
        with self._register.transaction() as rows:
            approval = replace(rows.get(id_), reason="outcome unknown")
            rows.write(approval)
            rows.record("outcome unknown", approval, reason=reason)

    # The safety snapshot

    def claim_safety(self, id_: str) -> tuple[Safety, bool] | None:
        """Become the one that starts the safety snapshot. None while another call is at it.

        With it, whether somebody was at it before, who may have started it and died.
        """
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            safety = approval.safety
            if approval.state is not State.GRANTED or safety.is_started:
                return None
            if safety.claimed and safety.claimed.is_within(rows.now, HELD_SECONDS):
                return None
            claimed = replace(
                safety,
                name=safety.name or f"before roll-back {new_id(10)}",
                begun=safety.begun or rows.now,
                claimed=rows.now,
            )
            rows.write(replace(approval, safety=claimed))
            rows.record("safety snapshot wanted", approval, name=claimed.name)
            return claimed, safety.claimed is not None

    def start_safety(self, id_: str, job_id: str, snapshot_ids: tuple[str, ...] = ()) -> Approval:
        """The safety snapshot is being taken by `job_id`, or is there already as `snapshot_ids`."""
        return self._change_safety(id_, "safety snapshot started", job_id=job_id, snapshot_ids=snapshot_ids)

    def finish_safety(self, id_: str, snapshot_ids: tuple[str, ...]) -> Approval:
        return self._change_safety(id_, "safety snapshot taken", snapshot_ids=snapshot_ids)

    def drop_safety(self, id_: str, reason: str) -> Approval:
        """There will be no safety snapshot from this attempt; the next one begins anew while the approval holds."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is State.GRANTED:
                approval = replace(approval, safety=Safety())
                rows.write(approval)
                rows.record("safety snapshot failed", approval, reason=reason)
            return approval

    # Looking

    def list_all(self) -> tuple[Approval, ...]:
        """Open ones first, then by age, newest first."""
        if not self._register.exists:
            return ()
        with self._register.transaction() as rows:
            rows.sweep()
            return tuple(sorted(rows.find(), key=lambda one: (one.state not in OPEN, -one.opened.wall, one.id)))

    def get(self, id_: str) -> Approval:
        """Raises: NotFound."""
        if not self._register.exists:
            raise unknown(id_)
        with self._register.transaction() as rows:
            rows.sweep()
            return rows.get(id_)

    def _change_safety(self, id_: str, event: str, **changes: Any) -> Approval:
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is State.GRANTED:
                approval = replace(approval, safety=replace(approval.safety, **changes))
                rows.write(approval)
                rows.record(event, approval, **changes)
            return approval


def _spend_refusal(rows: Rows, approval: Approval, plan: Plan, deletions_per_hour: int) -> SpendRefusal | None:
    if approval.state is not State.GRANTED:
        return SpendRefusal.NOT_GRANTED
    for target in {*plan.targets, *plan.disks}:
        row = rows.execute("SELECT * FROM targets WHERE target = ?", (target,)).fetchone()
        if row and row["held_by"] and not moment_from_text(row["held_at"]).is_over(rows.now, HELD_SECONDS):
            return SpendRefusal.HELD
    for target, epoch in zip(plan.targets, plan.epochs, strict=True):
        if _epoch(rows, target) != epoch:
            return SpendRefusal.MOVED
    if plan.loss.operation == "delete" and _deletions_last_hour(rows) >= deletions_per_hour:
        return SpendRefusal.TOO_MANY
    return None


def _still_counts(approval: Approval, now: Moment) -> bool:
    if approval.state is State.DENIED and approval.decided:
        return approval.decided.is_within(now, DENIED_SECONDS)
    if approval.state is State.SPENT and approval.ended:
        return approval.ended.is_within(now, SAFETY_SECONDS)
    return approval.state in OPEN


def _relevance(approval: Approval) -> tuple[int, float]:
    order = (State.GRANTED, State.PENDING, State.DENIED, State.SPENT)
    return order.index(approval.state), -approval.opened.wall


def _deletions_last_hour(rows: Rows) -> int:
    spent = (one for one in rows.find("state = 'spent'") if one.call.operation == "delete")
    return sum(1 for one in spent if one.ended and not one.ended.is_over(rows.now, 3600))


def _epoch(rows: Rows, target: str) -> int:
    row = rows.execute("SELECT epoch FROM targets WHERE target = ?", (target,)).fetchone()
    return int(row[0]) if row else 0


def _release(rows: Rows, id_: str) -> None:
    rows.execute("UPDATE targets SET held_by = '', held_at = '' WHERE held_by = ?", (id_,))
