"""The routes of CONTRACT.md as one table: what each reads, what it answers, and which Provider method it is.

The router and the OpenAPI document are both made from it, so neither can say what the other does not.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import Job, ResourceFilter
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.service import answers, requests
from snapshot_mcp.service.answers import empty_answer, job_to_wire, json_answer, to_wire
from snapshot_mcp.service.roles import Role

ZONE_PATH = "/v2/zone/{zone}"


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A parsed request: `query` and `body` are instances of the operation's models."""

    provider: Provider
    request: Request
    query: Any = None
    body: Any = None

    def path(self, name: str) -> str:
        value = self.request.path_params[name]
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of CONTRACT.md's tables. Without the `feature` the zone's face does not have the route.

    `change_role` is the role that a change needs; whoever has a key pair may look.
    """

    name: str
    method: str
    path: str
    summary: str
    answer: Any
    handle: Callable[[ApiRequest], Awaitable[Response]]
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    feature: Feature | None = None
    change_role: Role = Role.WRITER
    status: int = 200
    errors: tuple[int, ...] = field(default=(400, 401, 403, 404, 409, 413, 421, 429, 500, 501, 503, 504, 507))

    @property
    def role(self) -> Role:
        return Role.READER if self.method == "GET" else self.change_role


def _job_answer(call: ApiRequest, job: Job) -> Response:
    return json_answer(job_to_wire(job, call.path("zone")))


async def list_snapshots(call: ApiRequest) -> Response:
    page = await call.provider.list_snapshots(call.query.filter())
    return json_answer({"snapshots": [to_wire(item) for item in page.items], "total_count": page.total_count})


async def create_snapshots(call: ApiRequest) -> Response:
    body: requests.CreateBody = call.body
    job = await call.provider.create_snapshots(body.resources, body.snapshot_name, is_full=bool(body.is_full))
    return _job_answer(call, job)


async def delete_snapshot(call: ApiRequest) -> Response:
    snapshot_id = call.path("snapshot_id")
    _agree(snapshot_id, call.query.snapshot)
    return _job_answer(call, await call.provider.delete_snapshot(snapshot_id, terms=call.query.terms))


async def apply_snapshots(call: ApiRequest) -> Response:
    body: requests.ApplyBody = call.body
    job = await call.provider.apply_snapshots(
        body.snapshots, terms=body.terms, safety_snapshot_name=body.safety_snapshot_name
    )
    return _job_answer(call, job)


async def capture_instance(call: ApiRequest) -> Response:
    return _job_answer(call, await call.provider.capture_instance(_snapshot_id(call), call.body.image_name))


async def create_volume(call: ApiRequest) -> Response:
    return _job_answer(call, await call.provider.create_volume(_snapshot_id(call), call.body.volume_name))


async def update_snapshot(call: ApiRequest) -> Response:
    await call.provider.update_snapshot(call.path("snapshot_id"), call.body.update())
    return empty_answer()


async def lease(call: ApiRequest) -> Response:
    return _job_answer(call, await call.provider.recover_snapshots(call.body.resources))


async def get_job(call: ApiRequest) -> Response:
    return _job_answer(call, await call.provider.get_job(call.path("job_id")))


async def cancel_job(call: ApiRequest) -> Response:
    return _job_answer(call, await call.provider.cancel_job(call.path("job_id")))


async def list_unfinished_jobs(call: ApiRequest) -> Response:
    jobs = await call.provider.list_unfinished_jobs()
    return json_answer([job_to_wire(job, call.path("zone")) for job in jobs])


async def list_quota_left(call: ApiRequest) -> Response:
    return json_answer([to_wire(quota) for quota in await call.provider.list_quota_left()])


async def list_volumes(call: ApiRequest) -> Response:
    page = await call.provider.list_volumes(_resource_filter(call.query, call.query.volumes))
    return json_answer({"volumes": [to_wire(item) for item in page.items], "total_count": page.total_count})


async def list_instances(call: ApiRequest) -> Response:
    page = await call.provider.list_instances(_resource_filter(call.query, call.query.instances))
    return json_answer({"instances": [to_wire(item) for item in page.items], "total_count": page.total_count})


async def list_images(call: ApiRequest) -> Response:
    page = await call.provider.list_images(_resource_filter(call.query, call.query.images))
    return json_answer({"images": [to_wire(item) for item in page.items], "total_count": page.total_count})


def _resource_filter(query: Any, ids: tuple[str, ...]) -> ResourceFilter:
    return ResourceFilter.model_validate({"ids": ids, **query.model_dump(include=ResourceFilter.model_fields.keys())})


def _snapshot_id(call: ApiRequest) -> str:
    """The path's id in the later revision, else the body's."""
    if "snapshot_id" not in call.request.path_params:
        return str(call.body.snapshot)
    snapshot_id = call.path("snapshot_id")
    _agree(snapshot_id, call.body.snapshot)
    return snapshot_id


def _agree(path_id: str, other_id: str) -> None:
    if other_id and other_id != path_id:
        raise BadRequest(
            f"The path names snapshot {clean_text(path_id)!r} and `snapshot` says {clean_text(other_id)!r}.",
            hint="The path's id decides: leave `snapshot` out, or send the same.",
        )


_SNAPSHOTS = f"{ZONE_PATH}/volume_snapshots"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "ListSnapshots",
        "GET",
        _SNAPSHOTS,
        "List snapshots, newest first",
        answers.SnapshotsAnswer,
        list_snapshots,
        query=requests.SnapshotsQuery,
    ),
    Operation(
        "CreateSnapshots",
        "POST",
        _SNAPSHOTS,
        "Back resources up",
        Job,
        create_snapshots,
        body=requests.CreateBody,
    ),
    Operation(
        "ApplySnapshots",
        "POST",
        f"{_SNAPSHOTS}/apply",
        "Roll resources back",
        Job,
        apply_snapshots,
        body=requests.ApplyBody,
        change_role=Role.FULL,
    ),
    Operation(
        "CaptureInstanceFromSnapshot",
        "POST",
        f"{_SNAPSHOTS}/capture_instance",
        "Export an instance's snapshot to an image",
        Job,
        capture_instance,
        body=requests.CaptureInstanceBody,
    ),
    Operation(
        "CaptureInstanceFromNamedSnapshot",
        "POST",
        f"{_SNAPSHOTS}/capture_instance/{{snapshot_id}}",
        "Export an instance's snapshot to an image (revision 2016-12)",
        Job,
        capture_instance,
        body=requests.CaptureInstanceNamedBody,
    ),
    Operation(
        "CreateVolumeFromSnapshot",
        "POST",
        f"{_SNAPSHOTS}/create_volume",
        "Export a volume's snapshot to a new volume",
        Job,
        create_volume,
        body=requests.CreateVolumeBody,
    ),
    Operation(
        "CreateVolumeFromNamedSnapshot",
        "POST",
        f"{_SNAPSHOTS}/create_volume/{{snapshot_id}}",
        "Export a volume's snapshot to a new volume (revision 2016-12)",
        Job,
        create_volume,
        body=requests.CreateVolumeNamedBody,
    ),
    Operation(
        "DeleteSnapshots",
        "DELETE",
        f"{_SNAPSHOTS}/{{snapshot_id}}",
        "Delete a snapshot and everything that was built on it",
        Job,
        delete_snapshot,
        query=requests.DeleteQuery,
        change_role=Role.FULL,
    ),
    Operation(
        "UpdateSnapshot",
        "PUT",
        f"{_SNAPSHOTS}/{{snapshot_id}}",
        "Change name, description or tags",
        None,
        update_snapshot,
        body=requests.UpdateBody,
        status=204,
    ),
    Operation(
        "Lease",
        "POST",
        f"{ZONE_PATH}/lease",
        "Bring deleted snapshots back",
        Job,
        lease,
        body=requests.LeaseBody,
        feature=Feature.RECOVER,
    ),
    Operation("GetJob", "GET", f"{ZONE_PATH}/job/{{job_id}}", "One job", Job, get_job),
    Operation(
        "CancelJob",
        "DELETE",
        f"{ZONE_PATH}/job/{{job_id}}",
        "End a job that has had no effect yet",
        Job,
        cancel_job,
        feature=Feature.CANCEL,
    ),
    Operation(
        "ListUnfinishedJobs",
        "GET",
        f"{ZONE_PATH}/unfinished_jobs",
        "Jobs under way, oldest first",
        answers.JobsAnswer,
        list_unfinished_jobs,
    ),
    Operation(
        "ListVolumes",
        "GET",
        f"{ZONE_PATH}/volumes",
        "List volumes",
        answers.VolumesAnswer,
        list_volumes,
        query=requests.VolumesQuery,
    ),
    Operation(
        "ListInstances",
        "GET",
        f"{ZONE_PATH}/instances",
        "List instances",
        answers.InstancesAnswer,
        list_instances,
        query=requests.InstancesQuery,
    ),
    Operation(
        "ListImages",
        "GET",
        f"{ZONE_PATH}/images",
        "List images",
        answers.ImagesAnswer,
        list_images,
        query=requests.ImagesQuery,
    ),
    Operation(
        "ListQuotaLeft",
        "GET",
        f"{ZONE_PATH}/quota_left",
        "What the zone still has room for",
        answers.QuotasAnswer,
        list_quota_left,
    ),
)
"""All but the token, the stream, health and the OpenAPI document, which are no zone's or no JSON (`service.face`)."""
