"""How each operation is written on the wire, in both revisions of the contract: pure.

The specification sends repeated keys, 0 and 1, and a snapshot's id in the body; the revision of 2016-12 sends
comma-separated values, `IS_FULL` and its like, and the id in the path (CONTRACT.md, "Differences of the later revision").
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.anchcloud.settings import ApiRevision

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One request of the zone: `target` is path and query below the zone's URL, `what` says it in words."""

    method: str
    target: str
    what: str
    body: bytes | None = None


def path_id(value: str, what: str) -> str:
    """Return an id as one path segment. Raises BadRequest for one that would name something else than itself."""
    try:
        segment = quote(value, safe="")
    except UnicodeEncodeError:
        segment = ""
    if not segment.strip(".") or len(value) > 255:
        raise BadRequest(f"{clean_text(value)!r} is no {what} id.", hint="Give an id as a list answered it.")
    return segment


def _query(pairs: Query) -> str:
    return urlencode(pairs, errors="replace")


def _terms(terms: Terms) -> dict[str, Any]:
    """What is not compared is left out."""
    return terms.model_dump(mode="json", exclude_none=True)


def _body(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ApiCalls:
    """The operations in one revision's form."""

    revision: ApiRevision

    @property
    def _is_later(self) -> bool:
        return self.revision is ApiRevision.LATER

    def _many(self, key: str, values: Sequence[str]) -> Query:
        if not values:
            return []
        return [(key, ",".join(values))] if self._is_later else [(key, value) for value in values]

    def list_snapshots(self, query: SnapshotFilter) -> ApiCall:
        pairs = [*self._many("snapshots", query.snapshots)]
        if query.resource_id:
            pairs.append(("resource_id", query.resource_id))
        if query.snapshot_type is not None:
            form = f"IS_{query.snapshot_type.name}" if self._is_later else str(int(query.snapshot_type))
            pairs.append(("snapshot_type", form))
        pairs += self._many("status", query.status)
        if query.search_word:
            pairs.append(("search_word", query.search_word))
        pairs += self._many("tags", query.tags)
        if query.verbose:
            pairs.append(("verbose", str(query.verbose)))
        if query.root_id:
            pairs.append(("root_id", query.root_id))
        pairs += [("offset", str(query.offset)), ("limit", str(query.limit))]
        return ApiCall("GET", f"/volume_snapshots?{_query(pairs)}", "Listing snapshots")

    def list_resources(self, kind: str, query: ResourceFilter) -> ApiCall:
        """`kind` is the path and the name of the ids' parameter: volumes, instances or images."""
        pairs = [*self._many(kind, query.ids), *self._many("status", query.status)]
        if query.search_word:
            pairs.append(("search_word", query.search_word))
        if query.verbose:
            pairs.append(("verbose", str(query.verbose)))
        pairs += [("offset", str(query.offset)), ("limit", str(query.limit))]
        return ApiCall("GET", f"/{kind}?{_query(pairs)}", f"Listing {kind}")

    def create_snapshots(self, resource_ids: Sequence[str], name: str, *, is_full: bool) -> ApiCall:
        form: object = ("IS_FULL" if is_full else "IS_AUTH") if self._is_later else int(is_full)
        body = _body({"resources": list(resource_ids), "snapshot_name": name, "is_full": form})
        return ApiCall("POST", "/volume_snapshots", f"Backing up {_ids(resource_ids)}", body)

    def delete_snapshot(self, snapshot_id: str, terms: Terms | None = None) -> ApiCall:
        target = f"/volume_snapshots/{path_id(snapshot_id, 'snapshot')}"
        if terms is not None:
            text = json.dumps(_terms(terms), ensure_ascii=False, separators=(",", ":"))
            target += f"?{_query([('terms', text)])}"
        return ApiCall("DELETE", target, f"Deleting snapshot {clean_text(snapshot_id)!r}")

    def apply_snapshots(
        self, snapshot_ids: Sequence[str], terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> ApiCall:
        values: dict[str, Any] = {"snapshots": list(snapshot_ids)}
        if terms is not None:
            values["terms"] = _terms(terms)
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

    def get_job(self, job_id: str) -> ApiCall:
        return ApiCall("GET", f"/job/{path_id(job_id, 'job')}", f"Looking at job {clean_text(job_id)!r}")

    def cancel_job(self, job_id: str) -> ApiCall:
        return ApiCall("DELETE", f"/job/{path_id(job_id, 'job')}", f"Cancelling job {clean_text(job_id)!r}")

    def list_unfinished_jobs(self) -> ApiCall:
        return ApiCall("GET", "/unfinished_jobs", "Listing unfinished jobs")

    def list_quota_left(self) -> ApiCall:
        return ApiCall("GET", "/quota_left", "Looking at the quota")

    def stream(self) -> ApiCall:
        return ApiCall("GET", "/notifier/stream", "Watching jobs")


def _ids(ids: Sequence[str]) -> str:
    return clean_text(", ".join(repr(one) for one in ids), 200)
