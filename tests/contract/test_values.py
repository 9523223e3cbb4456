"""Values as providers write them (CONTRACT.md, "Snapshot", "Job"): read where they make sense, one form of them written."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from snapshot_mcp.contract.models import GIB, Job, Snapshot, Volume, format_time
from snapshot_mcp.contract.states import SnapshotType

UNSET = ("snapshot_name", "snapshot_type", "status", "create_time", "is_head", "size", "total_size", "resource", "tags")


@pytest.mark.parametrize("unset", [None, ""])
def test_what_a_provider_leaves_unset_fails_no_list(unset: object) -> None:
    """An unset time is `""`; an incremental has no `total_size`, and providers write that as they write an unset time."""
    bare = Snapshot(snapshot_id="ss-1")
    assert Snapshot.model_validate({"snapshot_id": "ss-1", **dict.fromkeys(UNSET, unset)}) == bare
    job = Job.model_validate(
        {"job_id": "j", "resource_ids": unset, "error": unset, "info": unset, "finished_time": unset}
    )
    assert job == Job(job_id="j")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2016-12-01T10:00:00Z", "2016-12-01T10:00:00Z"),
        ("2016-12-01T10:00:00.123456789Z", "2016-12-01T10:00:00Z"),
        ("2016-12-01 10:00:00", "2016-12-01T10:00:00Z"),
        ("2016-12-01T10:00:00+08:00", "2016-12-01T02:00:00Z"),
        (1480586400, "2016-12-01T10:00:00Z"),
        ("0000-00-00T00:00:00Z", ""),
        ("0001-01-01T00:00:00Z", ""),
        ("0001-01-01T00:00:00+08:00", ""),
        ("9999-12-31T23:59:59-08:00", ""),
    ],
)
def test_times_are_read_and_written_in_utc(written: object, read: str) -> None:
    """Times are UTC `YYYY-MM-DDTHH:MM:SSZ`, an unset time is `""`; zeros and what no calendar holds are unset."""
    snapshot = Snapshot.model_validate({"snapshot_id": "ss-1", "create_time": written})
    assert format_time(snapshot.create_time) == snapshot.to_wire()["create_time"] == read


@pytest.mark.parametrize(("size", "read"), [("3", 3), (3.0, 3), (2.01, 3), (-1, 0), (-1.5, 0), ("-1", 0), (True, 1)])
def test_sizes_are_whole_and_rounded_up(size: object, read: int) -> None:
    """CONTRACT.md, "Sizes"."""
    assert Snapshot.model_validate({"snapshot_id": "ss-1", "size": size}).size == read


@pytest.mark.parametrize("size", [10**30, 10**400, "9" * 5000, float("inf"), float("nan"), "many", [3]])
def test_a_size_that_no_arithmetic_should_meet_does_not_fit(size: object) -> None:
    """Sums and units are computed from it: it must not break there."""
    for model, key in ((Snapshot, "snapshot_id"), (Volume, "volume_id")):
        with pytest.raises(ValidationError):
            model.model_validate({key: "x", "size": size})
    with pytest.raises(ValidationError):
        Snapshot.model_validate({"snapshot_id": "ss-1", "size_bytes": size})
    assert Volume.model_validate({"volume_id": "v", "size": 0.5}).byte_size == GIB // 2


@pytest.mark.parametrize("spelling", ["IS_FULL", "is_full", "Full", "1", 1, 1.0])
def test_a_full_snapshot_is_full_in_every_spelling(spelling: object) -> None:
    """The later revision's answers "mix both forms"."""
    assert (
        Snapshot.model_validate({"snapshot_id": "ss-1", "snapshot_type": spelling}).snapshot_type == SnapshotType.FULL
    )


def test_statuses_are_read_in_any_case_and_unknown_ones_kept() -> None:
    """A wait must end, and must not end with what nobody knows: an unknown status is neither usable nor final."""
    assert Job.model_validate({"job_id": "j", "status": "SUCCESSFUL"}).is_successful
    assert Job.model_validate({"job_id": "j", "status": "Failed"}).is_finished
    odd = Job.model_validate({"job_id": "j", "status": "Done With Failure"})
    assert (odd.status, odd.is_finished, odd.is_successful) == ("Done With Failure", False, False)
    assert Snapshot.model_validate(
        {"snapshot_id": "ss-1", "status": "AVAILABLE", "transition_status": None}
    ).is_available
    assert not Snapshot.model_validate({"snapshot_id": "ss-1", "status": "frozen"}).is_available


@pytest.mark.parametrize(
    "extra",
    [
        {"progress": {"done": 10**400, "total": 1}},
        {"progress": {"done": 1, "total": 10**400}},
        {"progress": {"done": -5, "total": 10}},
        {"progress": {"done": "1", "total": 10}},
        {"progress": []},
        "[" * 100_000,
        "{nope",
        [1],
    ],
)
def test_progress_that_makes_no_sense_is_no_progress(extra: Any) -> None:
    """`extra` is the provider's: whatever stands there, the job can be followed."""
    assert Job(job_id="j", extra=extra).progress is None


def test_progress_is_read_from_text_and_never_more_than_whole() -> None:
    progress = Job(job_id="j", extra=json.dumps({"progress": {"done": 30, "total": 10}})).progress
    assert progress is not None
    assert progress.fraction == 1.0


@pytest.mark.parametrize(
    "error", [{"code": 1400, "message": "no room"}, {"message": "no room", "code": None}, "no room"]
)
def test_why_a_job_failed_is_read_however_it_is_said(error: Any) -> None:
    """A failed job whose error has an unusual form must not look like an outage."""
    assert Job.model_validate({"job_id": "j", "status": "failed", "error": error}).reason == "no room"


def test_a_job_without_an_id_is_no_job() -> None:
    """It could never be asked for."""
    with pytest.raises(ValidationError):
        Job.model_validate({"job_id": "", "status": "pending"})
