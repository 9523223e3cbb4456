"""Questions to a person through the client (door (a)): each is asked as one that was never asked before, and answered once.

A question is open for a call and the loss that it shows; whatever carries its answer (a round of the SDK's, a second
conversation, a replay) uses it up. Blocking; callers go through a worker thread.
"""

from dataclasses import dataclass, replace

from snapshot_mcp.guard.consent.approval import Approval, Call, moment_from_text, moment_to_text
from snapshot_mcp.guard.consent.register import Register, Rows, new_id
from snapshot_mcp.guard.consent.states import Door, State
from snapshot_mcp.guard.plan.plan import Plan

QUESTION_SECONDS = 15 * 60.0
"""So long an answer may take. An older host gives its call up much sooner."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that is open. `nonce` makes it one that was never asked before, `plan` is the one it was first asked with."""

    nonce: str
    plan: Plan


class Questions:
    """Each method one transaction."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def ask(self, call: Call, plan: Plan) -> Asked:
        """Return the question that is open for this call and this loss, or open one."""
        with self._register.transaction() as rows:
            row = rows.execute("SELECT * FROM questions WHERE call_key = ?", (call.key,)).fetchone()
            if (
                row
                and row["digest"] == plan.digest
                and moment_from_text(row["asked"]).is_within(rows.now, QUESTION_SECONDS)
            ):
                return Asked(row["nonce"], Plan.model_validate_json(row["plan"]))
            nonce = new_id(10)
            rows.execute(
                "INSERT OR REPLACE INTO questions (call_key, digest, nonce, plan, asked) VALUES (?, ?, ?, ?, ?)",
                (call.key, plan.digest, nonce, plan.model_dump_json(), moment_to_text(rows.now)),
            )
            rows.record_call("question", call, digest=plan.digest, question=nonce)
            return Asked(nonce, plan)

    def answer(self, call: Call, asked: Asked, state: State, answer: str) -> Approval | None:
        """Use up the question: its answer opens an approval in `state`. None when it was used up before.

        A no counts even then: a person may have said yes in another conversation before, and takes it back here.
        """
        with self._register.transaction() as rows:
            rows.sweep()
            used = rows.execute(
                "DELETE FROM questions WHERE call_key = ? AND nonce = ?", (call.key, asked.nonce)
            ).rowcount
            existing = rows.open_of(call)
            if existing and state is State.DENIED:
                return rows.deny(existing, door=Door.CLIENT, by=call.principal)
            if existing or not used:
                return None
            return _decide(rows, call, asked.plan, state, question=asked.nonce, answer=answer)

    def refuse(self, call: Call, plan: Plan) -> Approval:
        """A person said no to this call, to whichever plan: nothing of it stays open."""
        with self._register.transaction() as rows:
            rows.sweep()
            asked = rows.execute("SELECT nonce FROM questions WHERE call_key = ?", (call.key,)).fetchone()
            rows.execute("DELETE FROM questions WHERE call_key = ?", (call.key,))
            existing = rows.open_of(call)
            if existing:
                return rows.deny(existing, door=Door.CLIENT, by=call.principal)
            return _decide(rows, call, plan, State.DENIED, question=asked["nonce"] if asked else "", answer="no")


def _decide(rows: Rows, call: Call, plan: Plan, state: State, **fields: str) -> Approval:
    approval = Approval(new_id(8, "ap-"), call, state, plan, rows.now)
    if state is not State.PENDING:
        approval = replace(approval, door=Door.CLIENT, decided_by=call.principal, decided=rows.now)
    if state is State.DENIED:
        approval = replace(approval, ended=rows.now)
    rows.insert(approval)
    rows.record("answer", approval, door=Door.CLIENT, **fields)
    return approval
