"""The states of jobs and snapshots, as tables (contract.md, "Snapshot" and "Job").

A status that stands in no table is kept as it came (a provider may add one): it is neither usable nor final.
"""

from enum import IntEnum, StrEnum


class JobStatus(StrEnum):
    PENDING = "pending"
    WORKING = "working"
    SUCCESSFUL = "successful"
    FAILED = "failed"


JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.WORKING, JobStatus.FAILED}),
    JobStatus.WORKING: frozenset({JobStatus.SUCCESSFUL, JobStatus.FAILED}),
    JobStatus.SUCCESSFUL: frozenset(),
    JobStatus.FAILED: frozenset(),
}
"""A job's status and those that may follow it."""

FINAL_JOB_STATUSES = frozenset(status for status, following in JOB_TRANSITIONS.items() if not following)


class JobAction(StrEnum):
    CREATE = "CreateSnapshots"
    DELETE = "DeleteSnapshots"
    APPLY = "ApplySnapshots"
    CAPTURE_INSTANCE = "CaptureInstanceFromSnapshot"
    CREATE_VOLUME = "CreateVolumeFromSnapshot"
    LEASE = "Lease"


class SnapshotType(IntEnum):
    """The specification's numbers; `IS_INCREMENTAL` and `IS_FULL` (revision 2016-12) are read as these."""

    INCREMENTAL = 0
    FULL = 1


class SnapshotStatus(StrEnum):
    PENDING = "pending"
    AVAILABLE = "available"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    CEASED = "ceased"


SNAPSHOT_TRANSITIONS: dict[SnapshotStatus, frozenset[SnapshotStatus]] = {
    SnapshotStatus.PENDING: frozenset({SnapshotStatus.AVAILABLE, SnapshotStatus.CEASED}),
    SnapshotStatus.AVAILABLE: frozenset({SnapshotStatus.SUSPENDED, SnapshotStatus.DELETED}),
    SnapshotStatus.SUSPENDED: frozenset({SnapshotStatus.AVAILABLE, SnapshotStatus.DELETED, SnapshotStatus.CEASED}),
    SnapshotStatus.DELETED: frozenset({SnapshotStatus.AVAILABLE, SnapshotStatus.CEASED}),
    SnapshotStatus.CEASED: frozenset(),
}
"""A snapshot's status and those that may follow it. A failed create ceases; a deleted one comes back within the grace."""

GONE_SNAPSHOT_STATUSES = frozenset({SnapshotStatus.DELETED, SnapshotStatus.CEASED})
"""Left out of a list that names neither a status nor ids (contract.md, "Order")."""


class TransitionStatus(StrEnum):
    NONE = ""
    CREATING = "creating"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    DELETING = "deleting"
    RECOVERING = "recovering"


class ResourceType(StrEnum):
    """What a snapshot can be of."""

    VOLUME = "volume"
    INSTANCE = "instance"
