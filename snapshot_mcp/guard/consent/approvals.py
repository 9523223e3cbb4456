"""Opens, decides, spends and closes approvals (`states.py`), one row each in HOME/guard.sqlite.

An approval is bound to its call and to the plan that the person saw. It is spent in one transaction that raises the epoch of
each target, before the provider is called (GUARD.md, "Consent", "Order of spending"). Blocking; call it in a worker thread.
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
from snapshot_mcp.guard.consent.standing import ReadRoles, Roles, Standing, void_revoked
from snapshot_mcp.guard.consent.states import OPEN, Door, State
from snapshot_mcp.guard.plan.plan import Plan

DENIED_SECONDS = 10 * 60.0
"""How long a person's no holds before the same question may be asked again."""
HELD_SECONDS = 120.0
"""A hold older than this belongs to a process that died; providers answer within seconds."""


class SpendRefusal(StrEnum):
    """Why a consent could not be spent."""

    NOT_GRANTED = "it is no longer granted"
    MOVED = "another approval for the same disk or snapshot was used in the meantime"
    HELD = "another call is changing the same disk, or was interrupted while doing so"
    TOO_MANY = "too many deletions in the last hour"


@dataclass(frozen=True, slots=True)
class History:
    """Earlier acts that a plan depends on.

    `epochs`: by target, how often a consent was spent on it. `renames`: by snapshot, its former name and when that was changed.
    """

    epochs: dict[str, int]
    renames: dict[str, tuple[str, datetime]]
    deletions_last_hour: int


class Approvals:
    """The approvals; each method is one transaction. `roles` returns the current roles of people."""

    def __init__(self, register: Register, roles: ReadRoles = lambda: None) -> None:
        self._register = register
        self._roles = roles

    # What a call finds

    def history(self, location: str, targets: Iterable[str]) -> History:
        """Return the recorded acts that a plan for these targets depends on."""
        if not self._register.exists:
            return History({}, {}, 0)
        with self._register.transaction() as rows:
            epochs = {target: _epoch(rows, target) for target in targets}
            return History(epochs, recent_renames(rows, location), _deletions_last_hour(rows))

    def look(self, call: Call, plan: Plan) -> Approval | None:
        """Record the plan, and return the call's approval: granted, else pending, else recently denied, else recently spent."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            rows.record_call("plan", call, loss=plan.loss.model_dump(mode="json"), digest=plan.digest)
            found = [one for one in rows.find("call_key = ?", (call.key,)) if _still_counts(one, rows.now)]
            return min(void_revoked(rows, found, standing), key=_relevance, default=None)

    def refresh(self, approval: Approval, call: Call, plan: Plan) -> Approval:
        """Update the plan of a pending approval; a person who saw the old plan has to look again."""
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
        """Record that a rule forbade the call."""
        with self._register.transaction() as rows:
            rows.record_call("refused", call, rule=rule)

    def record_preview(self, call: Call, plan: Plan) -> None:
        """Record that the plan was shown and nothing else; no approval is touched."""
        with self._register.transaction() as rows:
            rows.record_call("previewed", call, loss=plan.loss.model_dump(mode="json"), digest=plan.digest)

    # Decisions outside the conversation

    def open(self, call: Call, plan: Plan) -> Approval:
        """Return the open approval of this call, or create a pending one."""
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
        """Grant the plan that the person saw. Raises: NotFound, NotDecidable."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            if objection := standing.objection_to_grant(approval, door, by):
                raise NotDecidable(f"Approval {id_} cannot be granted: {objection}.", hint="Nothing was done.")
            if approval.state is not State.PENDING:
                raise NotDecidable(f"Approval {id_} is already {approval.state_in_words}.", hint=approval.what_next)
            if approval.plan.digest != digest:
                raise NotDecidable(
                    f"The plan of {id_} has changed since it was shown.", hint="Review it again, then decide."
                )
            granted = replace(approval, state=State.GRANTED, door=door, decided_by=by, decided=rows.now)
            rows.move(approval, granted, "granted")
            return granted

    def deny(self, id_: str, *, door: Door, by: str) -> Approval:
        """Deny a pending approval, or revoke a granted one that is not used yet. Raises: NotFound, NotDecidable."""
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            if approval.state not in OPEN:
                raise NotDecidable(
                    f"Approval {id_} is already {approval.state_in_words}; there is nothing to deny.",
                    hint=approval.what_next,
                )
            return rows.deny(approval, door=door, by=by)

    # Carrying out

    def void(self, id_: str, reason: str) -> None:
        """Void a granted approval that no longer covers the plan."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is State.GRANTED:
                rows.expire(approval, reason, "voided")

    def spend(self, id_: str, plan: Plan, *, deletions_per_hour: int) -> SpendRefusal | None:
        """Spend the approval on `plan` and raise its targets' epochs, atomically; return why not, None if spent."""
        standing = Standing(self._roles())
        with self._register.transaction() as rows:
            rows.sweep()
            void_revoked(rows, [rows.get(id_)], standing)
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
        """Return why the people behind the approval no longer have their roles, "" if they do."""
        return Standing(self._roles()).objection(approval)

    def void_departed(self, before: Roles, now: Roles) -> None:
        """Void the open approvals whose people lost their role when the operator's file was changed."""
        if self._register.exists:
            with self._register.transaction() as rows:
                void_revoked(rows, [one for one in rows.find() if not Standing(before).objection(one)], Standing(now))

    def jobs_on(self, disks: Iterable[str]) -> frozenset[str]:
        """Return the jobs recently approved for these disks; some may still run."""
        wanted = set(disks)
        with self._register.transaction() as rows:
            spent = (one for one in rows.find("state = 'spent' AND job_id != ''") if _still_counts(one, rows.now))
            return frozenset(one.job_id for one in spent if wanted & set(one.plan.disks))

    def settle(self, id_: str, job_id: str, remark: str = "", safety_snapshot_ids: tuple[str, ...] = ()) -> None:
        """Record that the zone accepted the change as `job_id`, which takes these safety snapshots, and release the hold."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            safety = replace(approval.safety, snapshot_ids=safety_snapshot_ids or approval.safety.snapshot_ids)
            approval = replace(approval, job_id=job_id, safety=safety)
            rows.write(approval)
            _release(rows, id_)
            rows.record("started", approval, job_id=job_id, **({"reason": remark} if remark else {}))

    def give_back(self, id_: str, reason: str) -> Approval:
        """Make a spent consent usable again after a definite refusal, if no other decision was made in the meantime."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is not State.SPENT:
                rows.record("not given back", approval, reason=reason)  # a person took it back in the meantime
                return approval
            for target in approval.plan.targets:
                rows.execute("UPDATE targets SET epoch = epoch - 1 WHERE held_by = ? AND target = ?", (id_, target))
            _release(rows, id_)
            newer = rows.open_of(approval.call)
            if newer and newer.state is State.PENDING:
                rows.expire(newer, "an earlier approval is valid again")
            elif newer:
                # A person has agreed again in the meantime; a call has at most one open approval.
                rows.record("not given back", approval, reason=reason)
                return approval
            granted = replace(approval, state=State.GRANTED, ended=None)
            rows.move(approval, granted, "given back", reason=reason)
            return granted

    def take_back(self, id_: str, end: JobEnd, *, door: Door, by: str) -> Approval:
        """Record that a person took back a spent approval whose job the zone cancelled. Raises: NotDecidable."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is not State.SPENT or (approval.job_end and approval.job_end.code != end.code):
                raise NotDecidable(f"Approval {id_} is already {approval.state_in_words}.", hint=approval.what_next)
            reason = f"taken back before it had an effect (before: {approval.decision.removesuffix('.')})"
            denied = replace(
                approval, state=State.DENIED, door=door, decided_by=by, decided=rows.now, ended=rows.now, reason=reason
            )
            rows.move(approval, denied, "taken back", job_id=approval.job_id)
            return denied if denied.job_end else rows.end(denied, end)

    def leave_unknown(self, id_: str, reason: str) -> None:
        """Record that the outcome of the change is unknown; the consent stays spent."""
        with self._register.transaction() as rows:
            approval = replace(rows.get(id_), reason="outcome unknown")
            rows.write(approval)
            rows.record("outcome unknown", approval, reason=reason)

    # The safety snapshot

    def claim_safety(self, id_: str) -> tuple[Safety, bool] | None:
        """Claim the start of the safety snapshot; return None while another call holds the claim.

        The flag says whether an earlier claim exists, whose call may have started the snapshot and died.
        """
        with self._register.transaction() as rows:
            rows.sweep()
            approval = rows.get(id_)
            safety = approval.safety
            is_claimed = safety.claimed and safety.claimed.is_within(rows.now, HELD_SECONDS)
            if approval.state is not State.GRANTED or safety.is_started or is_claimed:
                return None
            name = safety.name or f"before roll-back {new_id(10)}"
            claimed = replace(safety, name=name, begun=safety.begun or rows.now, claimed=rows.now)
            rows.write(replace(approval, safety=claimed))
            rows.record("safety snapshot wanted", approval, name=claimed.name)
            return claimed, safety.claimed is not None

    def start_safety(self, id_: str, job_id: str, snapshot_ids: tuple[str, ...] = ()) -> Approval:
        """Record that `job_id` is taking the safety snapshot, or that it exists as `snapshot_ids`."""
        return self._change_safety(id_, "safety snapshot started", job_id=job_id, snapshot_ids=snapshot_ids)

    def finish_safety(self, id_: str, snapshot_ids: tuple[str, ...]) -> Approval:
        """Record the verified safety snapshots."""
        return self._change_safety(id_, "safety snapshot taken", snapshot_ids=snapshot_ids)

    def drop_safety(self, id_: str, reason: str) -> Approval:
        """Record that this attempt gave no safety snapshot; the next one starts over while the approval is valid."""
        with self._register.transaction() as rows:
            approval = rows.get(id_)
            if approval.state is State.GRANTED:
                approval = replace(approval, safety=Safety())
                rows.write(approval)
                rows.record("safety snapshot failed", approval, reason=reason)
            return approval

    # Looking

    def list_all(self) -> tuple[Approval, ...]:
        """Return all approvals, open ones first, then the newest first."""
        if not self._register.exists:
            return ()
        with self._register.transaction() as rows:
            rows.sweep()
            return tuple(sorted(rows.find(), key=lambda one: (one.state not in OPEN, -one.opened.wall, one.id)))

    def get(self, id_: str) -> Approval:
        """Return an approval. Raises: NotFound."""
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
