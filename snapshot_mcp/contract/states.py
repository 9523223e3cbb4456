"""The states of jobs and snapshots (CONTRACT.md, "Snapshot" and "Job").

An unknown status is kept as it came, because a provider may add one; it is neither usable nor final.
"""

from enum import IntEnum, StrEnum


class JobStatus(StrEnum):
    """Status of a job: from `pending` to `working` or `failed`, from `working` to one of FINAL_JOB_STATUSES."""

    PENDING = "pending"
    WORKING = "working"
    SUCCESSFUL = "successful"
    FAILED = "failed"


FINAL_JOB_STATUSES = frozenset({JobStatus.SUCCESSFUL, JobStatus.FAILED})
"""A job keeps such a status."""


class JobAction(StrEnum):
    """What a job does."""

    CREATE = "CreateSnapshots"
    DELETE = "DeleteSnapshots"
    APPLY = "ApplySnapshots"
    CAPTURE_INSTANCE = "CaptureInstanceFromSnapshot"
    CREATE_VOLUME = "CreateVolumeFromSnapshot"
    LEASE = "Lease"
    VERIFY = "VerifySnapshots"
    COPY = "CopySnapshots"


class SnapshotType(IntEnum):
    """Type of a snapshot, as the specification numbers it; the names of revision 2016-12 are read too."""

    INCREMENTAL = 0
    FULL = 1


class SnapshotStatus(StrEnum):
    """Status of a snapshot: `ceased` if its create failed; `deleted` ones can be recovered within the grace period."""

    PENDING = "pending"
    AVAILABLE = "available"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    CEASED = "ceased"


GONE_SNAPSHOT_STATUSES = frozenset({SnapshotStatus.DELETED, SnapshotStatus.CEASED})
"""Omitted from a list that names neither a status nor ids (CONTRACT.md, "Order")."""


class TransitionStatus(StrEnum):
    """What a snapshot is changing to."""

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
