"""The requests of all operations, in both revisions of the contract: pure.

The specification has repeated keys, 0 and 1, and a snapshot's id in the body; the revision of 2016-12 has comma-separated
values, `IS_FULL` and the like, and the id in the path (CONTRACT.md, "Differences of the later revision").
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter, SnapshotUpdate, format_time
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.anchcloud.settings import ApiRevision


@dataclass(frozen=True, slots=True)
class ApiCall:
    """A request to the zone: `target` is path and query below the zone's URL, `what` describes it for messages."""

    method: str
    target: str
    what: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request ready to send, with absolute URL, headers and body."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


def path_id(value: str, what: str) -> str:
    """Return an id as one path segment. Raises BadRequest for one that would change the path."""
    try:
        segment = quote(value, safe="")
    except UnicodeEncodeError:
        segment = ""
    if not segment.strip(".") or len(value) > 255:
        raise BadRequest(f"{clean_text(value)!r} is not a valid {what} id.", hint="Use an id from a list.")
    return segment


def _body(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ApiCalls:
    """The operations in one revision's form; each method builds the call of one."""

    revision: ApiRevision

    @property
    def _is_later(self) -> bool:
        return self.revision is ApiRevision.LATER

    def _list(self, path: str, what: str, filters: Mapping[str, Any]) -> ApiCall:
        """Build the call of a list; a filter without a value is left out."""
        pairs: list[tuple[str, str]] = []
        for key, value in filters.items():
            if isinstance(value, tuple) and value:
                pairs += [(key, ",".join(value))] if self._is_later else [(key, one) for one in value]
            elif value:
                pairs.append((key, str(value)))
        return ApiCall("GET", f"/{path}?{urlencode(pairs, errors='replace')}", what)

    def list_snapshots(self, query: SnapshotFilter) -> ApiCall:
        """Build the call that lists snapshots."""
        filters = dict(query) | {"offset": str(query.offset)}
        if (kind := query.snapshot_type) is not None:
            filters["snapshot_type"] = f"IS_{kind.name}" if self._is_later else str(int(kind))
        return self._list("volume_snapshots", "Listing snapshots", filters)

    def list_resources(self, kind: str, query: ResourceFilter) -> ApiCall:
        """Build the call that lists resources; `kind` is volumes, instances or images, and names the parameter of the ids."""
        filters = {kind if key == "ids" else key: value for key, value in query}
        return self._list(kind, f"Listing {kind}", filters | {"offset": str(query.offset)})

    def create_snapshots(self, resource_ids: Sequence[str], name: str, *, is_full: bool) -> ApiCall:
        form: object = ("IS_FULL" if is_full else "IS_AUTH") if self._is_later else int(is_full)
        body = _body({"resources": list(resource_ids), "snapshot_name": name, "is_full": form})
        return ApiCall("POST", "/volume_snapshots", f"Backing up {_ids(resource_ids)}", body)

    def delete_snapshot(self, snapshot_id: str, terms: Terms | None = None) -> ApiCall:
        target = f"/volume_snapshots/{path_id(snapshot_id, 'snapshot')}"
        if terms is not None:
            text = json.dumps(
                terms.model_dump(mode="json", exclude_none=True), ensure_ascii=False, separators=(",", ":")
            )
            target += f"?{urlencode({'terms': text}, errors='replace')}"
        return ApiCall("DELETE", target, f"Deleting snapshot {clean_text(snapshot_id)!r}")

    def apply_snapshots(
        self, snapshot_ids: Sequence[str], terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> ApiCall:
        values: dict[str, Any] = {"snapshots": list(snapshot_ids)}
        if terms is not None:
            values["terms"] = terms.model_dump(mode="json", exclude_none=True)
        if safety_snapshot_name:
            values["safety_snapshot_name"] = safety_snapshot_name
        return ApiCall("POST", "/volume_snapshots/apply", f"Rolling back to {_ids(snapshot_ids)}", _body(values))

    def capture_instance(self, snapshot_id: str, image_name: str) -> ApiCall:
        return self._export("capture_instance", snapshot_id, {"image_name": image_name})

    def create_volume(self, snapshot_id: str, volume_name: str) -> ApiCall:
        return self._export("create_volume", snapshot_id, {"volume_name": volume_name})

    def _export(self, operation: str, snapshot_id: str, names: dict[str, str]) -> ApiCall:
        target, what = f"/volume_snapshots/{operation}", f"Exporting snapshot {clean_text(snapshot_id)!r}"
        segment = path_id(snapshot_id, "snapshot")
        if self._is_later:
            return ApiCall("POST", f"{target}/{segment}", what, _body(names))
        return ApiCall("POST", target, what, _body({"snapshot": snapshot_id, **names}))

    def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> ApiCall:
        values = {key: value for key, value in dict(update).items() if value is not None}
        target = f"/volume_snapshots/{path_id(snapshot_id, 'snapshot')}"
        return ApiCall("PUT", target, f"Changing snapshot {clean_text(snapshot_id)!r}", _body(values))

    def lease(self, snapshot_ids: Sequence[str]) -> ApiCall:
        return ApiCall("POST", "/lease", f"Recovering {_ids(snapshot_ids)}", _body({"resources": list(snapshot_ids)}))

    def verify(self, snapshot_ids: Sequence[str]) -> ApiCall:
        body = _body({"snapshots": list(snapshot_ids)})
        return ApiCall("POST", "/volume_snapshots/verify", f"Verifying {_ids(snapshot_ids)}", body)

    def get_job(self, job_id: str) -> ApiCall:
        return ApiCall("GET", f"/job/{path_id(job_id, 'job')}", f"Reading job {clean_text(job_id)!r}")

    def cancel_job(self, job_id: str) -> ApiCall:
        return ApiCall("DELETE", f"/job/{path_id(job_id, 'job')}", f"Cancelling job {clean_text(job_id)!r}")

    def list_unfinished_jobs(self) -> ApiCall:
        return ApiCall("GET", "/unfinished_jobs", "Listing unfinished jobs")

    def list_finished_jobs(self, since: datetime, limit: int) -> ApiCall:
        return self._list("finished_jobs", "Listing finished jobs", {"since": format_time(since), "limit": limit})

    def list_quota_left(self) -> ApiCall:
        return ApiCall("GET", "/quota_left", "Reading the quota")

    def stream(self) -> ApiCall:
        return ApiCall("GET", "/notifier/stream", "Watching jobs")


def _ids(ids: Sequence[str]) -> str:
    return clean_text(", ".join(repr(one) for one in ids), 200)
