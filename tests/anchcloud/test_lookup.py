"""The proof of a lost change: pure decisions over two pictures of the zone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.models import Image, Job, Snapshot, SnapshotResource, Volume
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.anchcloud.lookup import FOUND_JOB_PREFIX, ChangeRequest, Match, Picture, find, unknown

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
REQUESTED = [one for one in JobAction if one != JobAction.COPY]
"""What a client can ask for; copies elsewhere are entered by the zone itself."""

CREATE = ChangeRequest(JobAction.CREATE, ("vol-1",), "nightly")


def snap(snapshot_id: str, name: str = "nightly", status: str = "available", **fields: Any) -> Snapshot:
    resource = SnapshotResource(resource_id="vol-1", resource_type="volume")
    return Snapshot(snapshot_id=snapshot_id, snapshot_name=name, status=status, resource=resource, **fields)


def job(job_id: str, *ids: str, action: str = JobAction.CREATE, status: str = "working", **fields: Any) -> Job:
    return Job(job_id=job_id, action=action, resource_ids=ids, status=status, **fields)


def picture(*things: Any) -> Picture:
    jobs = {one.job_id: one for one in things if isinstance(one, Job)}
    ids = {Snapshot: "snapshot_id", Volume: "volume_id", Image: "image_id"}
    items = {getattr(one, ids[type(one)]): one for one in things if not isinstance(one, Job)}
    return Picture(jobs, items)


def test_nothing_new_is_no_finding() -> None:
    old = picture(job("j-1", "ss-1"), snap("ss-1"))
    assert find(CREATE, old, old) == Match()
    assert find(CREATE, picture(), picture()) == Match()


def test_a_new_job_that_made_the_snapshot_is_it() -> None:
    after = picture(job("j-2", "ss-2"), snap("ss-2", status="pending", transition_status="creating"))
    assert find(CREATE, picture(), after).job == after.jobs["j-2"]


def test_a_new_job_that_names_the_resource_is_it() -> None:
    after = picture(job("j-2", "vol-1"))
    assert find(CREATE, picture(), after).job == after.jobs["j-2"]


@pytest.mark.parametrize(
    "stranger",
    [
        job("j-9", "vol-2"),
        job("j-9", "vol-1", action=JobAction.DELETE),
        job("j-9", "vol-1", extra={"snapshot_name": "another"}),
    ],
)
def test_another_change_is_not_taken_for_it(stranger: Job) -> None:
    assert find(CREATE, picture(), picture(stranger)).job is None


def test_a_job_that_made_another_name_is_not_taken_for_it() -> None:
    assert find(CREATE, picture(), picture(job("j-9", "ss-9"), snap("ss-9", "another"))).job is None
    assert find(CREATE, picture(), picture(job("j-9", "vol-1", "ss-9"), snap("ss-9", "another"))).job is None


def test_two_possible_jobs_are_named_and_none_is_chosen() -> None:
    finding = find(CREATE, picture(), picture(job("j-2", "vol-1"), job("j-3", "vol-1")))
    assert finding.job is None
    assert "j-2" in finding.unclear
    assert "j-3" in finding.unclear


def test_jobs_without_ids_prove_nothing_alone() -> None:
    """The specification's Job has no `resource_ids`."""
    assert "j-2" in find(CREATE, picture(), picture(job("j-2"))).unclear
    assert find(CREATE, picture(), picture(job("j-2"), snap("ss-2", status="pending"))).job is not None


def test_a_snapshot_without_a_job_in_sight_is_a_finished_create() -> None:
    finding = find(CREATE, picture(snap("ss-1")), picture(snap("ss-1"), snap("ss-2")))
    assert finding.job is not None
    assert finding.job.job_id.startswith(FOUND_JOB_PREFIX)
    assert finding.job.is_successful
    assert finding.job.resource_ids == ("ss-2",)
    assert find(CREATE, picture(), picture(snap("ss-2", status="ceased"))).job.status == "failed"  # type: ignore[union-attr]


def test_an_old_snapshot_that_moved_into_the_page_is_not_new() -> None:
    before = picture(snap("ss-1", "x", create_time=NOW))
    after = picture(snap("ss-0", create_time=NOW - timedelta(days=3)))
    assert find(CREATE, before, after) == Match()


def test_what_belongs_to_another_call_is_not_claimed_again() -> None:
    after = picture(job("j-2", "ss-2"), snap("ss-2"))
    assert find(CREATE, picture(), after, claimed={"j-2", "ss-2"}) == Match()


@pytest.mark.parametrize("action", [JobAction.CREATE, JobAction.DELETE, JobAction.APPLY])
def test_the_job_of_another_call_is_never_taken_for_it(action: JobAction) -> None:
    """Guards that a claimed job settles no lost change, also where nothing but the job shows that anything was changed."""
    change = ChangeRequest(action, ("vol-1",), "nightly" if action == JobAction.CREATE else "")
    after = picture(job("j-2", "vol-1", action=action))
    assert find(change, picture(), after).job == after.jobs["j-2"]
    assert find(change, picture(), after, claimed={"j-2"}) == Match()
    both = picture(job("j-2", "vol-1", action=action), job("j-3", "vol-1", action=action))
    assert find(change, picture(), both, claimed={"j-2"}).job == both.jobs["j-3"]


def test_delete_is_proved_by_its_job_its_status_or_its_absence() -> None:
    change = ChangeRequest(JobAction.DELETE, ("ss-1",))
    before = picture(snap("ss-1"))
    started = job("j-2", "ss-1", "ss-2", action=JobAction.DELETE)
    assert find(change, before, picture(snap("ss-1"), started)).job == started
    assert find(change, before, picture(snap("ss-1", status="deleted"))).job is not None
    assert find(change, before, picture()).job is not None
    assert find(change, before, before) == Match()
    gone = picture(snap("ss-1", status="deleted"))
    assert find(change, gone, gone) == Match()
    assert find(change, picture(), picture()) == Match()


def test_roll_back_is_proved_by_its_job_or_by_the_head() -> None:
    change = ChangeRequest(JobAction.APPLY, ("ss-1",))
    before, moved = picture(snap("ss-1")), picture(snap("ss-1", is_head=1))
    assert find(change, before, moved).job is not None
    assert find(change, moved, moved) == Match(), "it was the head before"
    started = job("j-2", "vol-1", action=JobAction.APPLY)
    assert find(change, moved, picture(snap("ss-1", is_head=1), started)).job == started


def test_half_a_roll_back_is_no_proof() -> None:
    change = ChangeRequest(JobAction.APPLY, ("ss-1", "ss-2"))
    before = picture(snap("ss-1"), snap("ss-2"))
    finding = find(change, before, picture(snap("ss-1", is_head=1), snap("ss-2")))
    assert finding.job is None
    assert "ss-2" in finding.unclear


def test_recovery_is_proved_by_what_came_back() -> None:
    change = ChangeRequest(JobAction.LEASE, ("ss-1",))
    assert find(change, picture(snap("ss-1", status="deleted")), picture(snap("ss-1"))).job is not None
    assert find(change, picture(snap("ss-1")), picture(snap("ss-1"))) == Match()


@pytest.mark.parametrize(
    ("action", "made"),
    [
        (JobAction.CREATE_VOLUME, Volume(volume_id="vol-9", volume_name="copy", status="available")),
        (JobAction.CAPTURE_INSTANCE, Image(image_id="img-9", image_name="copy", status="available")),
    ],
)
def test_exports_are_proved_by_what_was_made(action: JobAction, made: Volume | Image) -> None:
    change = ChangeRequest(action, ("ss-1",), "copy")
    finding = find(change, picture(), picture(made))
    assert finding.job is not None
    assert finding.job.resource_ids == (made.id,)
    assert find(change, picture(made), picture(made)) == Match()
    assert find(ChangeRequest(action, ("ss-1",), "other"), picture(), picture(made)).job is None
    known = job("j-2", made.id, action=action)
    assert find(change, picture(), picture(made, known)).job == known


def test_unknown_names_what_to_look_at() -> None:
    """Every unknown outcome names what to look at."""
    for action in REQUESTED:
        error = unknown(ChangeRequest(action, ("ss-1", "ss-2"), "a name"), "Doing it", "no answer", "")
        assert "unfinished jobs" in error.hint
        assert "ss-1" in error.hint or "a name" in error.hint


THINGS = st.lists(
    st.one_of(
        st.builds(
            snap,
            st.sampled_from(["ss-1", "ss-2", "ss-3"]),
            st.sampled_from(["nightly", "other"]),
            st.sampled_from(["pending", "available", "deleted", "ceased", "new status"]),
            is_head=st.integers(0, 1),
        ),
        st.builds(
            job,
            st.sampled_from(["j-1", "j-2", "j-3"]),
            st.sampled_from(["vol-1", "vol-2", "ss-1", "ss-2"]),
            action=st.sampled_from([str(action) for action in JobAction]),
            status=st.sampled_from(["pending", "working", "successful", "failed"]),
        ),
    ),
    max_size=6,
)
CHANGES = st.builds(
    ChangeRequest,
    st.sampled_from(REQUESTED),
    st.sampled_from([("ss-1",), ("ss-1", "ss-2"), ("vol-1",)]),
    st.just("nightly"),
)


@given(CHANGES, THINGS, THINGS, st.frozensets(st.sampled_from(["ss-1", "ss-2", "j-1", "j-2"])))
def test_only_what_is_new_and_unclaimed_is_ever_found(
    change: ChangeRequest, before_things: list[Any], after_things: list[Any], claimed: frozenset[str]
) -> None:
    """Whatever the zone shows: a found job was not there before, is of the action, and belongs to nobody else."""
    before, after = picture(*before_things), picture(*after_things)
    finding = find(change, before, after, claimed)
    assert not (finding.job and finding.unclear)
    if finding.job is None:
        return
    assert finding.job.action == change.action
    assert finding.job.job_id not in before.jobs
    assert finding.job.job_id not in claimed
    if change.action == JobAction.CREATE and finding.job.job_id.startswith(FOUND_JOB_PREFIX):
        assert not set(finding.job.resource_ids) & (set(before.items) | claimed)
