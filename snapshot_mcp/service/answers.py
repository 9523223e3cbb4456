"""What the REST face answers: JSON bodies, and the one envelope of every error (CONTRACT.md, "What surrounds them").

`hint`, and `job_id` where a job is in the way, stand beside `code` and `message`; a client may ignore them.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from snapshot_mcp.contract.errors import BadRequest, Forbidden, InternalError, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import Image, Instance, Job, Quota, Snapshot, Volume, ZoneModel
from snapshot_mcp.ground.web import Refused

logger = logging.getLogger(__name__)

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Envelope(BaseModel):
    """Every error."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(min_length=1)
    message: str = Field(min_length=1)
    hint: str | None = None
    job_id: str | None = None


class SnapshotsAnswer(BaseModel):
    snapshots: list[Snapshot]
    total_count: int = Field(ge=0)


class VolumesAnswer(BaseModel):
    volumes: list[Volume]
    total_count: int = Field(ge=0)


class InstancesAnswer(BaseModel):
    instances: list[Instance]
    total_count: int = Field(ge=0)


class ImagesAnswer(BaseModel):
    images: list[Image]
    total_count: int = Field(ge=0)


class TokenAnswer(BaseModel):
    access_token: str
    token_type: str
    expires_in: int


class HealthAnswer(BaseModel):
    status: str


JobsAnswer = list[Job]
QuotasAnswer = list[Quota]


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status, {**_HEADERS, **(headers or {})}, "application/json")


def empty_answer() -> Response:
    return Response(b"", 204, _HEADERS)


def to_wire(answer: ZoneModel) -> dict[str, Any]:
    """Return the JSON form without what the zone leaves unset; the contract's own fields are always there."""
    return {key: value for key, value in answer.to_wire().items() if value is not None}


def job_to_wire(job: Job, zone_id: str) -> dict[str, Any]:
    """Return the job as this face's: its `zone` is the one in the path, whatever the operator calls it inside."""
    return {**to_wire(job), "zone": zone_id}


def error_answer(error: ZoneError, status: int = 0, headers: Mapping[str, str] | None = None) -> Response:
    """Return the envelope; `status` where HTTP knows it better than the tree (405, 413)."""
    envelope = {"code": error.code, "message": error.message or error.code}
    if error.hint:
        envelope["hint"] = error.hint
    extra: dict[str, str] = {}
    if isinstance(error, ResourceBusy) and error.job_id:
        envelope["job_id"] = error.job_id
    if error.retry_after_seconds is not None:
        extra["retry-after"] = str(math.ceil(error.retry_after_seconds))
    return json_answer(envelope, status or error.http_status, {**extra, **(headers or {})})


def refusal_answer(refused: Refused) -> Response:
    """Return the envelope of what the door itself refuses."""
    if refused.status == 403:
        return error_answer(Forbidden(refused.message))
    hint = "The operator can allow a host name with --allow-host." if refused.status == 421 else ""
    return error_answer(BadRequest(refused.message, hint=hint), refused.status)


def unexpected_answer(error: Exception) -> Response:
    """An unknown exception is a bug: logged once with its traceback, hidden outside."""
    logger.error("The REST face failed", exc_info=error)
    return error_answer(InternalError("The zone failed for a reason of its own.", hint="Its log has the details."))
