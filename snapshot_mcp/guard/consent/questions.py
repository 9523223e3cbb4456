"""Questions to a person through the client: each is unique and answered once.

A question belongs to a call and the loss that it shows; an answer uses it up, however it arrives (a round of the SDK's, a
second conversation, a replay). Blocking; call it in a worker thread.
"""

from dataclasses import dataclass, replace

from snapshot_mcp.guard.consent.approval import Approval, Call, moment_from_text, moment_to_text
from snapshot_mcp.guard.consent.register import Register, Rows, new_id
from snapshot_mcp.guard.consent.states import Door, State
from snapshot_mcp.guard.plan.plan import Plan

QUESTION_SECONDS = 15 * 60.0
"""How long an answer may take; some hosts give up their call much sooner."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An open question. `nonce` makes it unique; `plan` is the one it was first asked with."""

    nonce: str
    plan: Plan


class Questions:
    """The open questions; each method is one transaction."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def ask(self, call: Call, plan: Plan) -> Asked:
        """Return the open question for this call and this loss, or create one."""
        with self._register.transaction() as rows:
            query = "SELECT * FROM questions WHERE call_key = ? AND digest = ?"
            row = rows.execute(query, (call.key, plan.digest)).fetchone()
            if row and moment_from_text(row["asked"]).is_within(rows.now, QUESTION_SECONDS):
                return Asked(row["nonce"], Plan.model_validate_json(row["plan"]))
            nonce = new_id(10)
            rows.execute(
                "INSERT OR REPLACE INTO questions (call_key, digest, nonce, plan, asked) VALUES (?, ?, ?, ?, ?)",
                (call.key, plan.digest, nonce, plan.model_dump_json(), moment_to_text(rows.now)),
            )
            rows.record_call("question", call, digest=plan.digest, question=nonce)
            return Asked(nonce, plan)

    def answer(
        self, call: Call, asked: Asked, state: State, answer: str, *, door: Door = Door.CLIENT
    ) -> Approval | None:
        """Use up the question and create an approval in `state`; return None if it was already used up.

        A no counts even then: it takes back a yes given in another conversation.
        """
        with self._register.transaction() as rows:
            rows.sweep()
            used = rows.execute(
                "DELETE FROM questions WHERE call_key = ? AND nonce = ?", (call.key, asked.nonce)
            ).rowcount
            existing = rows.open_of(call)
            if existing and state is State.DENIED:
                return rows.deny(existing, door=door, by=call.principal)
            if existing or not used:
                return None
            return _decide(rows, call, asked.plan, state, door, question=asked.nonce, answer=answer)

    def refuse(self, call: Call, plan: Plan) -> Approval:
        """Record a person's no to this call, whatever the plan; close its question and approval."""
        with self._register.transaction() as rows:
            rows.sweep()
            asked = rows.execute("SELECT nonce FROM questions WHERE call_key = ?", (call.key,)).fetchone()
            rows.execute("DELETE FROM questions WHERE call_key = ?", (call.key,))
            existing = rows.open_of(call)
            if existing:
                return rows.deny(existing, door=Door.CLIENT, by=call.principal)
            question = asked["nonce"] if asked else ""
            return _decide(rows, call, plan, State.DENIED, Door.CLIENT, question=question, answer="no")

    def close(self, call: Call) -> None:
        """Close what is open of a call: its question, and a consent that was not used."""
        with self._register.transaction() as rows:
            rows.execute("DELETE FROM questions WHERE call_key = ?", (call.key,))
            if existing := rows.open_of(call):
                rows.expire(existing, "the process that it was given to has ended its call")


def _decide(rows: Rows, call: Call, plan: Plan, state: State, door: Door, **fields: str) -> Approval:
    approval = Approval(new_id(8, "ap-"), call, state, plan, rows.now)
    if state is not State.PENDING:
        approval = replace(approval, door=door, decided_by=call.principal, decided=rows.now)
    if state is State.DENIED:
        approval = replace(approval, ended=rows.now)
    rows.insert(approval)
    rows.record("answer", approval, door=door, **fields)
    return approval
