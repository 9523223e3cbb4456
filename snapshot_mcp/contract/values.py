"""Single values as they travel on the wire, and as providers really write them. Pure.

Many forms are read, one is written. An unset value is null, `""`, or left out; times have fractions, time zones or a
database's zeros; numbers come as text, sizes with a fraction; statuses in capitals. Anything else is left to pydantic to reject.
"""

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from snapshot_mcp.contract.states import JobStatus, SnapshotStatus, SnapshotType, TransitionStatus

MAX_COUNT = 1 << 62
"""Larger sizes and counts are rejected as nonsense."""


def format_time(moment: datetime | None) -> str:
    """Return the time as `YYYY-MM-DDTHH:MM:SSZ`, `""` for None."""
    return moment.astimezone(UTC).isoformat()[:19] + "Z" if moment else ""


def parse_time(value: object) -> object:
    """Parse a time as providers write it; return anything else unchanged, for pydantic to reject.

    Zero dates (`0000-00-00`, the year 1) and times out of range in UTC are unset.
    """
    if isinstance(value, str):
        if value == "" or value.startswith("0000-"):
            return None
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime):
        try:
            value = value if value.tzinfo is UTC else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)
        except OverflowError:
            return None
        return value if value.year > 1 else None
    return value


def _is_unset(value: object) -> bool:
    return value is None or value == ""


def unset_as(default: object) -> BeforeValidator:
    """Read an unset value as `default`."""
    return BeforeValidator(lambda value: default if _is_unset(value) else value)


def _parse_count(value: object) -> object:
    """Round a fraction up."""
    if _is_unset(value):
        return 0
    return math.ceil(value) if isinstance(value, float) and math.isfinite(value) else value


def _parse_name(value: object) -> object:
    """Read a number as text, and nothing in what is no text at all."""
    if isinstance(value, str):
        return value
    return str(value)[:80] if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _parse_code(value: object) -> object:
    """Accept numeric codes too."""
    return str(value) if isinstance(value, int) else "" if value is None else value


def parse_job_error(value: object) -> object:
    """Read plain text as the message of an error."""
    if _is_unset(value):
        return None
    return {"message": value} if isinstance(value, str) else value


def _in_any_case(statuses: type[StrEnum]) -> BeforeValidator:
    """Read a known status in any case; keep an unknown one as it came."""
    known = {str(status) for status in statuses}

    def read(value: object) -> object:
        if value is None:
            return ""
        return value.lower() if isinstance(value, str) and value.lower() in known else value

    return BeforeValidator(read)


def _parse_snapshot_type(value: object) -> object:
    """Read both spellings and digits as text; keep an unknown type as it came."""
    if _is_unset(value):
        return SnapshotType.INCREMENTAL
    if isinstance(value, str):
        name = value.upper().removeprefix("IS_")
        if name in SnapshotType.__members__:
            return SnapshotType[name]
        if value in {"0", "1"}:
            return SnapshotType(int(value))
    if isinstance(value, int) and value in {0, 1}:
        return SnapshotType(value)
    return value


WireTime = Annotated[
    datetime | None, BeforeValidator(parse_time), PlainSerializer(format_time, return_type=str, when_used="json")
]
OwnTime = Annotated[
    datetime | None,
    BeforeValidator(parse_time),
    PlainSerializer(lambda moment: format_time(moment) or None, return_type=str | None, when_used="json"),
]
"""A time that only our own zone reports: unset it is left out, as the specification knows no such field."""
WireText = Annotated[str, unset_as("")]
WireName = Annotated[str, BeforeValidator(_parse_name)]
"""What people read and nothing depends on: an odd one is read as well as it can be, so that it takes no row away."""
WireFlag = Annotated[int, unset_as(0)]
WireCount = Annotated[
    int, BeforeValidator(_parse_count), Field(le=MAX_COUNT), AfterValidator(lambda count: max(0, count))
]
"""Negative counts are read as 0."""
Bytes = Annotated[int, Field(ge=0, le=MAX_COUNT)]
WireCode = Annotated[str, BeforeValidator(_parse_code)]
WireSnapshotType = Annotated[SnapshotType | int | str, BeforeValidator(_parse_snapshot_type)]
WireSnapshotStatus = Annotated[str, _in_any_case(SnapshotStatus)]
WireTransitionStatus = Annotated[str, _in_any_case(TransitionStatus)]
WireJobStatus = Annotated[str, _in_any_case(JobStatus)]
