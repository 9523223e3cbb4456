"""The routes of CONTRACT.md as one table: what each reads, what it returns, and which Provider method it calls.

The router and the OpenAPI document are both built from the table, so they cannot disagree.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import Job, Page, Quota, ResourceFilter
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.service import answers, requests
from snapshot_mcp.service.answers import empty_answer, job_to_wire, json_answer, to_wire
from snapshot_mcp.service.roles import Role

ZONE_PATH = "/v2/zone/{zone}"
_SNAPSHOTS = f"{ZONE_PATH}/volume_snapshots"
_SNAPSHOT = f"{_SNAPSHOTS}/{{snapshot_id}}"
_IMAGE = f"{_SNAPSHOTS}/capture_instance"
_IMAGE_OF = f"{_IMAGE}/{{snapshot_id}}"
_VOLUME = f"{_SNAPSHOTS}/create_volume"
_VOLUME_OF = f"{_VOLUME}/{{snapshot_id}}"
_JOB = f"{ZONE_PATH}/job/{{job_id}}"
_LATER = " (revision 2016-12)"


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A parsed request: `query` and `body` are instances of the operation's models."""

    provider: Provider
    request: Request
    query: Any = None
    body: Any = None

    def path(self, name: str) -> str:
        """Return a parameter of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[ApiRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of CONTRACT.md's tables; a zone without its `feature` does not have the route.

    `change_role` is the role that a change needs; every key pair may read.
    """

    name: str
    method: str
    path: str
    summary: str
    answer: Any
    handle: Handler
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    feature: Feature | None = None
    change_role: Role = Role.WRITER
    status: int = 200
    errors: tuple[int, ...] = field(default=(400, 401, 403, 404, 409, 413, 421, 429, 500, 501, 503, 504, 507))

    @property
    def role(self) -> Role:
        """The least role that may call it."""
        return Role.READER if self.method == "GET" else self.change_role


_table: list[Operation] = []


def _operation(
    name: str, method: str, path: str, answer: Any = Job, *, note: str = "", **options: Any
) -> Callable[[Handler], Handler]:
    """Add the decorated handler to the table; its docstring, with the `note`, is the operation's summary."""

    def add(handle: Handler) -> Handler:
        summary = (handle.__doc__ or name).removesuffix(".") + note
        _table.append(Operation(name, method, path, summary, answer, handle, **options))
        return handle

    return add


def _job_answer(call: ApiRequest, job: Job) -> Response:
    return json_answer(job_to_wire(job, call.path("zone")))


def _page_answer(key: str, page: Page[Any]) -> Response:
    return json_answer({key: [to_wire(item) for item in page.items], "total_count": page.total_count})


@_operation("ListSnapshots", "GET", _SNAPSHOTS, answers.SnapshotsAnswer, query=requests.SnapshotsQuery)
async def list_snapshots(call: ApiRequest) -> Response:
    """List snapshots, newest first."""
    return _page_answer("snapshots", await call.provider.list_snapshots(call.query.filter()))


@_operation("CreateSnapshots", "POST", _SNAPSHOTS, body=requests.CreateBody)
async def create_snapshots(call: ApiRequest) -> Response:
    """Back resources up."""
    body: requests.CreateBody = call.body
    job = await call.provider.create_snapshots(body.resources, body.snapshot_name, is_full=bool(body.is_full))
    return _job_answer(call, job)


@_operation("ApplySnapshots", "POST", f"{_SNAPSHOTS}/apply", body=requests.ApplyBody, change_role=Role.FULL)
async def apply_snapshots(call: ApiRequest) -> Response:
    """Roll resources back."""
    body: requests.ApplyBody = call.body
    job = await call.provider.apply_snapshots(
        body.snapshots, terms=body.terms, safety_snapshot_name=body.safety_snapshot_name
    )
    return _job_answer(call, job)


@_operation("CaptureInstanceFromNamedSnapshot", "POST", _IMAGE_OF, body=requests.CaptureInstanceNamedBody, note=_LATER)
@_operation("CaptureInstanceFromSnapshot", "POST", _IMAGE, body=requests.CaptureInstanceBody)
async def capture_instance(call: ApiRequest) -> Response:
    """Export an instance's snapshot to an image."""
    return _job_answer(call, await call.provider.capture_instance(_snapshot_id(call), call.body.image_name))


@_operation("CreateVolumeFromNamedSnapshot", "POST", _VOLUME_OF, body=requests.CreateVolumeNamedBody, note=_LATER)
@_operation("CreateVolumeFromSnapshot", "POST", _VOLUME, body=requests.CreateVolumeBody)
async def create_volume(call: ApiRequest) -> Response:
    """Export a volume's snapshot to a new volume."""
    return _job_answer(call, await call.provider.create_volume(_snapshot_id(call), call.body.volume_name))


@_operation("DeleteSnapshots", "DELETE", _SNAPSHOT, query=requests.DeleteQuery, change_role=Role.FULL)
async def delete_snapshot(call: ApiRequest) -> Response:
    """Delete a snapshot and everything that was built on it."""
    snapshot_id = call.path("snapshot_id")
    _check_same(snapshot_id, call.query.snapshot)
    return _job_answer(call, await call.provider.delete_snapshot(snapshot_id, terms=call.query.terms))


@_operation("UpdateSnapshot", "PUT", _SNAPSHOT, None, body=requests.UpdateBody, status=204)
async def update_snapshot(call: ApiRequest) -> Response:
    """Change name, description or tags."""
    await call.provider.update_snapshot(call.path("snapshot_id"), call.body.update())
    return empty_answer()


@_operation("Lease", "POST", f"{ZONE_PATH}/lease", body=requests.LeaseBody, feature=Feature.RECOVER)
async def lease(call: ApiRequest) -> Response:
    """Bring deleted snapshots back."""
    return _job_answer(call, await call.provider.recover_snapshots(call.body.resources))


@_operation("VerifySnapshots", "POST", f"{_SNAPSHOTS}/verify", body=requests.VerifyBody, feature=Feature.VERIFY)
async def verify_snapshots(call: ApiRequest) -> Response:
    """Read snapshots, and all that they build on, back whole."""
    return _job_answer(call, await call.provider.verify_snapshots(call.body.snapshots))


@_operation("GetJob", "GET", _JOB)
async def get_job(call: ApiRequest) -> Response:
    """Return one job."""
    return _job_answer(call, await call.provider.get_job(call.path("job_id")))


@_operation("CancelJob", "DELETE", _JOB, feature=Feature.CANCEL)
async def cancel_job(call: ApiRequest) -> Response:
    """End a job that has had no effect yet."""
    return _job_answer(call, await call.provider.cancel_job(call.path("job_id")))


@_operation("ListUnfinishedJobs", "GET", f"{ZONE_PATH}/unfinished_jobs", list[Job])
async def list_unfinished_jobs(call: ApiRequest) -> Response:
    """List the unfinished jobs, oldest first."""
    jobs = await call.provider.list_unfinished_jobs()
    return json_answer([job_to_wire(job, call.path("zone")) for job in jobs])


@_operation(
    "ListFinishedJobs",
    "GET",
    f"{ZONE_PATH}/finished_jobs",
    answers.FinishedJobsAnswer,
    query=requests.FinishedJobsQuery,
    feature=Feature.HISTORY,
)
async def list_finished_jobs(call: ApiRequest) -> Response:
    """List the jobs that have ended, the newest end first."""
    page = await call.provider.list_finished_jobs(call.query.since, call.query.limit)
    jobs = [job_to_wire(job, call.path("zone")) for job in page.items]
    return json_answer({"jobs": jobs, "total_count": page.total_count})


@_operation("ListVolumes", "GET", f"{ZONE_PATH}/volumes", answers.VolumesAnswer, query=requests.VolumesQuery)
async def list_volumes(call: ApiRequest) -> Response:
    """List volumes."""
    return _page_answer("volumes", await call.provider.list_volumes(_filter(call.query, call.query.volumes)))


@_operation("ListInstances", "GET", f"{ZONE_PATH}/instances", answers.InstancesAnswer, query=requests.InstancesQuery)
async def list_instances(call: ApiRequest) -> Response:
    """List instances."""
    return _page_answer("instances", await call.provider.list_instances(_filter(call.query, call.query.instances)))


@_operation("ListImages", "GET", f"{ZONE_PATH}/images", answers.ImagesAnswer, query=requests.ImagesQuery)
async def list_images(call: ApiRequest) -> Response:
    """List images."""
    return _page_answer("images", await call.provider.list_images(_filter(call.query, call.query.images)))


@_operation("ListQuotaLeft", "GET", f"{ZONE_PATH}/quota_left", list[Quota])
async def list_quota_left(call: ApiRequest) -> Response:
    """List how much the zone has room for."""
    return json_answer([to_wire(quota) for quota in await call.provider.list_quota_left()])


OPERATIONS = tuple(_table)
"""Every route of a zone but the event stream; `service.face` adds that one, and token, health and OpenAPI."""


def _filter(query: Any, ids: tuple[str, ...]) -> ResourceFilter:
    return ResourceFilter.model_validate({"ids": ids, **query.model_dump(include=ResourceFilter.model_fields.keys())})


def _snapshot_id(call: ApiRequest) -> str:
    """Return the path's id in the later revision, else the body's."""
    if "snapshot_id" not in call.request.path_params:
        return str(call.body.snapshot)
    snapshot_id = call.path("snapshot_id")
    _check_same(snapshot_id, call.body.snapshot)
    return snapshot_id


def _check_same(path_id: str, other_id: str) -> None:
    if other_id and other_id != path_id:
        raise BadRequest(
            f"The path names snapshot {clean_text(path_id)!r}, but `snapshot` is {clean_text(other_id)!r}.",
            hint="Leave `snapshot` out, or send the id of the path.",
        )
