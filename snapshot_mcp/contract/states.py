"""The states of jobs and snapshots (CONTRACT.md, "Snapshot" and "Job").

An unknown status is kept as it came (a provider may add one): it is neither usable nor final.
"""

from enum import IntEnum, StrEnum


class JobStatus(StrEnum):
    PENDING = "pending"
    WORKING = "working"
    SUCCESSFUL = "successful"
    FAILED = "failed"


FINAL_JOB_STATUSES = frozenset({JobStatus.SUCCESSFUL, JobStatus.FAILED})
"""A job that has one of these keeps it. It goes from `pending` to `working` or `failed`, from `working` to one of these."""


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
    """A snapshot whose create failed has ceased; a deleted one that is recovered within the grace is available again."""

    PENDING = "pending"
    AVAILABLE = "available"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    CEASED = "ceased"


GONE_SNAPSHOT_STATUSES = frozenset({SnapshotStatus.DELETED, SnapshotStatus.CEASED})
"""Left out of a list that names neither a status nor ids (CONTRACT.md, "Order")."""


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
