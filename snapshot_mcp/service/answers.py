"""The answers of the REST face: JSON bodies, and one envelope for every error (CONTRACT.md, "What surrounds them").

Beside `code` and `message` an error may have a `hint`, and the `job_id` of the job that blocks the request.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from snapshot_mcp.contract.errors import BadRequest, Forbidden, InternalError, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import Image, Instance, Job, Snapshot, Volume, ZoneModel
from snapshot_mcp.ground.web import Refused

logger = logging.getLogger(__name__)

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Envelope(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(min_length=1)
    message: str = Field(min_length=1)
    hint: str | None = None
    job_id: str | None = None


class SnapshotsAnswer(BaseModel):
    """A page of snapshots."""

    snapshots: list[Snapshot]
    total_count: int = Field(ge=0)


class VolumesAnswer(BaseModel):
    """A page of volumes."""

    volumes: list[Volume]
    total_count: int = Field(ge=0)


class InstancesAnswer(BaseModel):
    """A page of instances."""

    instances: list[Instance]
    total_count: int = Field(ge=0)


class ImagesAnswer(BaseModel):
    """A page of images."""

    images: list[Image]
    total_count: int = Field(ge=0)


class FinishedJobsAnswer(BaseModel):
    """The newest of the jobs that have ended."""

    jobs: list[Job]
    total_count: int = Field(ge=0)


class TokenAnswer(BaseModel):
    """A token, as OAuth 2 returns it."""

    access_token: str
    token_type: str
    expires_in: int


class HealthAnswer(BaseModel):
    """The answer of `/healthz`."""

    status: str


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response that is not cached."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status, {**_HEADERS, **(headers or {})}, "application/json")


def empty_answer() -> Response:
    """Return a response without a body (204)."""
    return Response(b"", 204, _HEADERS)


def to_wire(answer: ZoneModel) -> dict[str, Any]:
    """Return the JSON form without the optional fields that are unset; the contract's own fields are always there."""
    return {key: value for key, value in answer.to_wire().items() if value is not None}


def job_to_wire(job: Job, zone_id: str) -> dict[str, Any]:
    """Return the JSON form of a job, with the zone id of the path: the operator may know the zone by another name."""
    return {**to_wire(job), "zone": zone_id}


def error_answer(error: ZoneError, status: int = 0, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in its envelope; `status` overrides the error's own (405, 413)."""
    envelope = {"code": error.code, "message": error.message or error.code}
    if error.hint:
        envelope["hint"] = error.hint
    if isinstance(error, ResourceBusy) and error.job_id:
        envelope["job_id"] = error.job_id
    if error.retry_after_seconds is not None:
        headers = {"retry-after": str(math.ceil(error.retry_after_seconds)), **(headers or {})}
    return json_answer(envelope, status or error.http_status, headers)


def refusal_answer(refused: Refused) -> Response:
    """Return the envelope of a request that was refused for its Host, its Origin or its size."""
    if refused.status == 403:
        return error_answer(Forbidden(refused.message))
    hint = "The operator can allow a host name with --allow-host." if refused.status == 421 else ""
    return error_answer(BadRequest(refused.message, hint=hint), refused.status)


def unexpected_answer(error: Exception) -> Response:
    """Log an unknown exception, which is a bug, with its traceback; return an error that does not show it."""
    logger.error("The REST face failed", exc_info=error)
    return error_answer(InternalError("Internal error in the zone.", hint="See the zone's log for details."))
