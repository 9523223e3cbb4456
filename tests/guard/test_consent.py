"""Consent through the client and from the terminal, carried out once (GUARD.md, "Consent", "Order of spending")."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import NotFound, NotUsable, OutcomeUnknown, ResourceBusy
from snapshot_mcp.contract.models import Job, SnapshotFilter
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.guard import Policy, Question, QuestionAnswer
from snapshot_mcp.guard.consent.errors import WrongPin
from tests.guard.conftest import Bench, Person, agrees, nobody, resize

pytestmark = pytest.mark.anyio


async def test_a_yes_deletes_once(bench: Bench) -> None:
    """Accepted → job."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    middle = await bench.back_up(disk, "monday")
    last = await bench.back_up(disk, "tuesday")
    person = Person([agrees])
    outcome = await bench.guard().delete_snapshot(bench.zone, middle.snapshot_id, person)
    assert outcome.status == "started"
    await bench.finish(outcome.job_id)
    assert bench.destroyed == [("delete", middle.snapshot_id)]
    assert [one.snapshot_name for one in await bench.snapshots()] == ["full"]
    assert any(last.snapshot_id in line and "tuesday" in line for line in outcome.plan)
    assert len(person.questions) == 1


@pytest.mark.parametrize("can_ask", [True, False])
@pytest.mark.parametrize("operation", ["delete", "rollback"])
async def test_half_a_surrogate_pair_in_a_providers_text_stops_no_plan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, operation: str, can_ask: bool
) -> None:
    """No encoder accepts it, so a plan with it could not be hashed."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    list_snapshots = bench.provider.list_snapshots

    async def tell(query: SnapshotFilter) -> Any:
        page = await list_snapshots(query)
        told = {"snapshot_name": "disk \ud83d", "consistency": "\udc00", "description": "\ud83d"}
        return type(page)(tuple(one.model_copy(update=told) for one in page.items), page.total_count)

    monkeypatch.setattr(bench.provider, "list_snapshots", tell, raising=False)
    person = Person([agrees]) if can_ask else nobody()
    if operation == "delete":
        outcome = await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, person)
    else:
        outcome = await bench.guard().rollback_to_snapshots(bench.zone, [last.snapshot_id], person)
    assert outcome.status == ("started" if can_ask else "needs_approval")
    assert any("disk \ufffd" in line for line in outcome.plan)


@pytest.mark.parametrize(
    "answer",
    [
        QuestionAnswer("declined"),
        QuestionAnswer("cancelled"),
        QuestionAnswer("unanswered"),
        QuestionAnswer("unusable"),
        QuestionAnswer("answered", ""),
        QuestionAnswer("answered", "yes"),
        QuestionAnswer("answered", "true"),
        QuestionAnswer("answered", "delete please"),
        QuestionAnswer("answered", "approved by admin"),
        QuestionAnswer("declined", "delete"),
        QuestionAnswer("unusable", "delete"),
    ],
    ids=lambda answer: f"{answer.outcome} {answer.text!r}",
)
async def test_what_is_no_answer_keeps_the_snapshot_and_leaves_a_pending_approval(
    bench: Bench, answer: QuestionAnswer
) -> None:
    """Declined, cancelled, garbage → nothing happens and a pending approval is there."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    guard = bench.guard()
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, Person([answer]))
    assert outcome.status == "needs_approval"
    assert outcome.approval_id in outcome.message
    (approval,) = await guard.list_approvals()
    assert (approval.id, approval.state) == (outcome.approval_id, "pending")
    assert bench.destroyed == []


async def test_an_open_question_is_asked_anew_when_it_has_grown_old(bench: Bench) -> None:
    """Guards that a question is open for a quarter of an hour: an answer that comes later fits none that is open."""

    class Gone(Exception):
        """The round ends with the question, as over HTTP."""

    def leaves(question: Question) -> str:
        raise Gone

    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    person = Person([leaves, leaves, leaves])
    guard = bench.guard()
    for minutes in (0, 14, 2):
        bench.clock.turn(minutes * 60)
        with pytest.raises(Gone):
            await guard.delete_snapshot(bench.zone, last.snapshot_id, person)
    first, again, later = person.questions
    assert again == first
    assert later != first
    assert len([one for one in guard.audit.records() if one["event"] == "question"]) == 2


async def test_a_host_that_cannot_ask_gets_one_pending_approval_however_often_it_calls(bench: Bench) -> None:
    """The same call never opens a second approval (GUARD.md, "Consent")."""
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    outcomes = [await bench.guard().delete_snapshot(bench.zone, only.snapshot_id, nobody()) for _ in range(3)]
    assert {one.status for one in outcomes} == {"needs_approval"}
    assert len({one.approval_id for one in outcomes}) == 1
    assert len(await bench.guard().list_approvals()) == 1


async def test_approved_on_a_terminal_the_repeated_call_goes_through_once(bench: Bench) -> None:
    """A host that cannot ask leads to the other door."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.back_up(disk, "monday")
    pending = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await bench.guard().approve(pending.approval_id, None)
    started = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert started.status == "started", started
    await bench.finish(started.job_id)
    again = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert again.status == "needs_approval"
    assert again.approval_id != pending.approval_id
    assert bench.destroyed == [("apply", full.snapshot_id)]


async def test_a_persons_keep_is_remembered_ten_minutes_and_leaves_nothing_pending(bench: Bench) -> None:
    """`keep` is a person's no (GUARD.md, "Consent")."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    person = Person(["keep", "keep"])
    guard = bench.guard()
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, person)).status == "declined"
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, person)).status == "declined"
    assert len(person.questions) == 1
    assert not [one for one in await guard.list_approvals() if one.state == "pending"]
    bench.clock.turn(9 * 60)
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, person)).status == "declined"
    assert len(person.questions) == 1
    bench.clock.turn(2 * 60)
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, person)).status == "declined"
    assert len(person.questions) == 2


async def test_denied_on_a_terminal_is_declined(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    await guard.deny(pending.approval_id)
    assert (await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())).status == "declined"
    assert bench.destroyed == []


async def test_the_last_good_copy_takes_the_disks_name(bench: Bench) -> None:
    """By typing the resource's name where the plan takes the last good copy or a whole chain."""
    disk = await bench.add_disk("pg-data")
    only = await bench.back_up(disk)
    person = Person(["delete"])
    assert (await bench.guard().delete_snapshot(bench.zone, only.snapshot_id, person)).status == "needs_approval"
    (question,) = person.questions
    assert (question.kind, question.expected_name) == ("typed_name", "pg-data")
    assert "NO GOOD RESTORE POINT" in question.message
    assert bench.destroyed == []


async def test_a_roll_back_without_safety_snapshot_takes_the_disks_name(bench: Bench) -> None:
    disk = await bench.add_disk("pg-data")
    full = await bench.back_up(disk)
    person = Person(["roll back"])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person, safety_snapshot=False)
    assert outcome.status == "needs_approval"
    assert person.questions[0].expected_name == "pg-data"
    typed = Person(["pg-data"])
    guard = bench.guard()
    await guard.deny(outcome.approval_id)
    bench.clock.turn(11 * 60)
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], typed, safety_snapshot=False)
    assert outcome.status == "started"
    assert outcome.safety_snapshot_ids == ()


async def test_a_scheduled_backup_between_question_and_answer_voids_nothing(bench: Bench) -> None:
    """Nothing is asked twice."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.back_up(disk, "monday")

    async def scheduled() -> None:
        await bench.back_up(disk, "scheduled")

    person = Person([agrees], before_reply=scheduled)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == "started", outcome
    assert len(person.questions) == 1
    assert outcome.safety_snapshot_ids[0] in outcome.message


async def test_a_backup_that_would_go_too_voids_the_consent(bench: Bench) -> None:
    """No worse: the same or fewer snapshots go (GUARD.md, "No worse")."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")

    async def scheduled() -> None:
        await bench.back_up(disk, "on monday")

    guard = bench.guard()
    person = Person([agrees, agrees], before_reply=scheduled)
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, person)
    assert outcome.status == "plan_changed"
    assert any("on monday" in line for line in outcome.plan)
    assert bench.destroyed == []
    person.before_reply = None
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, person)).status == "started"
    assert len(person.questions) == 2


async def test_a_plan_that_became_worse_after_the_approval_opens_a_new_one(bench: Bench) -> None:
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)
    await bench.back_up(disk, "on monday")
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert outcome.status == "plan_changed"
    assert outcome.approval_id not in {"", pending.approval_id}
    assert bench.destroyed == []


async def test_an_apply_by_another_program_voids_a_roll_back(bench: Bench) -> None:
    """Worse: the head moved other than by a create (GUARD.md, "No worse")."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    monday = await bench.back_up(disk, "monday")
    await bench.back_up(disk, "tuesday")
    guard = bench.guard()
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(pending.approval_id, None)
    await bench.finish(await bench.provider._provider.apply_snapshots([monday.snapshot_id]))
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == "plan_changed"
    assert bench.destroyed == []


async def test_a_host_that_was_stopped_and_runs_voids_a_roll_back(bench: Bench) -> None:
    machine = await bench.add_disk("web", ResourceType.INSTANCE)
    full = await bench.back_up(machine, "full")
    guard = bench.guard()
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(pending.approval_id, None)
    bench.provider.running.add(machine.id)
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == "plan_changed"
    assert any("restarts" in line for line in outcome.plan)


async def test_a_size_that_changed_voids_a_roll_back(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    guard = bench.guard()
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(pending.approval_id, None)
    resize(Path(disk.path or ""), 2)
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == "plan_changed"
    assert any("size changes" in line for line in outcome.plan)


async def test_a_job_in_the_way_gives_the_approval_back(bench: Bench) -> None:
    """Given back, not lost."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)

    async def is_busy() -> None:
        raise ResourceBusy("a backup runs", job_id="j-1")

    bench.provider.on_change = is_busy
    with pytest.raises(ResourceBusy, match="approval is valid until"):
        await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    bench.provider.on_change = None
    assert (await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, nobody())).status == "started"
    assert bench.destroyed == [("delete", last.snapshot_id)]


@pytest.mark.parametrize("error", [OutcomeUnknown("the answer was lost"), RuntimeError("a bug")])
async def test_an_unknown_outcome_keeps_the_consent_spent(bench: Bench, error: Exception) -> None:
    """Given back only on a definite refusal (GUARD.md, "Order of spending")."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)

    async def loses() -> None:
        raise error

    bench.provider.on_change = loses
    with pytest.raises(type(error)):
        await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    bench.provider.on_change = None
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert outcome.status == "needs_approval"
    assert outcome.approval_id != pending.approval_id
    assert bench.destroyed == []


async def test_of_two_calls_that_race_for_one_approval_one_goes_through(bench: Bench) -> None:
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    pending = await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, nobody())
    await bench.guard().approve(pending.approval_id, None)
    statuses: list[str] = []

    async def call() -> None:
        try:
            statuses.append((await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, nobody())).status)
        except (NotFound, NotUsable, ResourceBusy):
            statuses.append("gone, or just going")

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(call)
    assert statuses.count("started") == 1
    assert "needs_approval" not in statuses, "the same call never opens a second approval"
    assert len(bench.destroyed) == 1


async def test_an_approval_is_of_one_principal(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard()
    mine = await guard.delete_snapshot(bench.zone, only.snapshot_id, Person(can_ask=False, principal="alice"))
    await guard.approve(mine.approval_id, None)
    theirs = await guard.delete_snapshot(bench.zone, only.snapshot_id, Person(can_ask=False, principal="bob"))
    assert theirs.status == "needs_approval"
    assert theirs.approval_id != mine.approval_id


async def test_a_grant_is_over_after_fifteen_minutes_and_a_pending_one_after_a_day(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard()
    first = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    bench.clock.turn(23 * 3600)
    await guard.approve(first.approval_id, None)
    bench.clock.turn(16 * 60)
    second = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    assert (second.status, second.approval_id != first.approval_id) == ("needs_approval", True)
    bench.clock.turn(25 * 3600)
    third = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    assert third.approval_id != second.approval_id


@pytest.mark.parametrize("wall_only", [True, False])
async def test_a_clock_set_back_revives_nothing(bench: Bench, wall_only: bool) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)
    bench.clock.turn(16 * 60)
    assert (await guard.get_approval(pending.approval_id)).state == "expired"
    bench.clock.turn(-16 * 60, wall_only=wall_only)
    assert (await guard.get_approval(pending.approval_id)).state == "expired"
    assert (await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())).status == "needs_approval"


async def test_an_expiry_that_nobody_saw_is_seen_by_the_uptime(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard()
    pending = await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)
    bench.clock.turn(20 * 60)
    bench.clock.turn(-18 * 60, wall_only=True)
    assert (await guard.delete_snapshot(bench.zone, only.snapshot_id, nobody())).status == "needs_approval"


async def test_under_consent_human_no_answer_of_a_client_counts(bench: Bench) -> None:
    """A host that answers by itself: door (a) is not accepted, and a terminal without a PIN is not enough."""
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    guard = bench.guard(Policy(consent="human"))
    person = Person([agrees])
    pending = await guard.delete_snapshot(bench.zone, only.snapshot_id, person)
    assert (pending.status, person.questions) == ("needs_approval", [])
    assert "PIN" in pending.message
    with pytest.raises(WrongPin):
        await guard.approve(pending.approval_id, None)
    await guard.set_pin("483920")
    with pytest.raises(WrongPin):
        await guard.approve(pending.approval_id, "111222")
    await guard.approve(pending.approval_id, "483920")
    assert (await guard.delete_snapshot(bench.zone, only.snapshot_id, person)).status == "started"


async def test_a_consent_from_before_the_policy_became_strict_does_not_count(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    pending = await bench.guard().delete_snapshot(bench.zone, only.snapshot_id, nobody())
    await bench.guard().approve(pending.approval_id, None)
    strict = bench.guard(Policy(consent="human"))
    outcome = await strict.delete_snapshot(bench.zone, only.snapshot_id, nobody())
    assert outcome.status == "plan_changed"
    assert bench.destroyed == []


async def test_looking_at_an_empty_home_makes_nothing(bench: Bench) -> None:
    guard = bench.guard()
    assert await guard.list_approvals() == ()
    assert not await guard.has_pin()
    with pytest.raises(NotFound):
        await guard.get_approval("ap-none")
    assert not bench.home.exists()


async def test_records_are_for_their_owner_alone(bench: Bench) -> None:
    disk = await bench.add_disk()
    only = await bench.back_up(disk)
    await bench.guard().delete_snapshot(bench.zone, only.snapshot_id, nobody())
    assert bench.home.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in bench.home.iterdir()} == {0o600}


async def test_a_job_that_runs_is_not_started_again(bench: Bench) -> None:
    """A host that gave the first call up repeats it: the answer names the job."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk)
    real = bench.provider._provider.apply_snapshots
    entered = Job(job_id="j-1", status="working")

    async def apply(snapshot_ids: list[str], **terms: Any) -> Job:
        return entered

    async def get_job(job_id: str) -> Job:
        return entered

    bench.provider._provider.apply_snapshots = apply
    guard = bench.guard()
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert outcome.job_id == "j-1"
    bench.provider.get_job = get_job
    again = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert (again.status, again.job_id) == ("refused", "j-1")
    bench.provider._provider.apply_snapshots = real
