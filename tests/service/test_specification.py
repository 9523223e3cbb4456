"""The specification's own six requests, typed with curl as it types them, and by hand on a socket."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone
from tests.disks import make_image
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import Served, ask, fetch_token

pytestmark = pytest.mark.anyio

ZONE = "/v2/zone/ac1"
SNAPSHOT_FIELDS = {
    "snapshot_id",
    "snapshot_name",
    "description",
    "snapshot_type",
    "status",
    "transition_status",
    "create_time",
    "status_time",
    "snapshot_time",
    "is_taken",
    "is_head",
    "head_chain",
    "root_id",
    "parent_id",
    "size",
    "total_size",
    "total_count",
    "lastest_snapshot_time",
}
"""The answer's table in the specification, the misspelt one included."""

JOB_FIELDS = {
    "job_id",
    "id_prefix",
    "action",
    "request_id",
    "status",
    "create_time",
    "begin_time",
    "finished_time",
    "info",
    "extra",
}


async def curl(face: Served, token: str, *arguments: str) -> Any:
    """Run curl as the specification does; it sends a form's Content-Type with `--data`."""
    command = ["curl", "-sS", "--max-time", "20", "-H", f"Authorization: Bearer {token}", *arguments[:-1]]
    done = await anyio.run_process([*command, face.url + arguments[-1]], stderr=subprocess.PIPE)
    return json.loads(done.stdout)


async def raw(face: Served, token: str, *arguments: str) -> Any:
    """The same arguments, sent on a bare socket."""
    method, target = arguments[0].removeprefix("-X"), arguments[-1]
    body = arguments[arguments.index("--data") + 1].encode() if "--data" in arguments else b""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
    return (await ask(face.url, method, target, body, token=token, headers=headers)).json


SENDERS = [
    pytest.param(curl, marks=pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")),
    pytest.param(raw),
]


async def end(face: Served, token: str, send: Any, job: dict[str, Any]) -> dict[str, Any]:
    with anyio.fail_after(PATIENCE_SECONDS):
        while job["status"] in {"pending", "working"}:
            await anyio.sleep(0.02)
            job = await send(face, token, "-XGET", f"{ZONE}/job/{job['job_id']}")
    assert job["status"] == "successful", job
    return job


@pytest.mark.parametrize("send", SENDERS)
async def test_the_six_operations_answer_as_the_specification_says(
    send: Any, face: Served, token: str, shared_zone: LocalZone, tmp_path: Path
) -> None:
    """Every request of the specification, with the fields of its tables."""
    volume = (await shared_zone.add_resource(make_image(tmp_path / "volume"), "db")).id
    host = (await shared_zone.add_resource(make_image(tmp_path / "host"), "web", ResourceType.INSTANCE)).id

    async def started(action: str, *arguments: str) -> dict[str, Any]:
        job: dict[str, Any] = await send(face, token, *arguments)
        assert set(job) >= JOB_FIELDS
        assert job["action"] == action
        assert job["zone"] == "ac1"
        return await end(face, token, send, job)

    body = json.dumps({"resources": [volume, host], "snapshot_name": "nightly ✓", "is_full": 0})
    job = await started("CreateSnapshots", "-XPOST", "--data", body, f"{ZONE}/volume_snapshots")
    first, of_host = job["resource_ids"]

    query = f"snapshots={first}&snapshots={of_host}&status=available&status=pending&verbose=1&offset=0&limit=10"
    listed = await send(face, token, "-XGET", f"{ZONE}/volume_snapshots?{query}")
    assert listed["total_count"] == 2
    by_id = {snapshot["snapshot_id"]: snapshot for snapshot in listed["snapshots"]}
    assert all(set(snapshot) >= SNAPSHOT_FIELDS for snapshot in by_id.values())
    assert by_id[first]["snapshot_name"] == "nightly ✓"
    assert by_id[first]["snapshot_type"] == 1
    assert by_id[first]["parent_id"] == "self"
    assert by_id[first]["resource"] == {"resource_id": volume, "resource_name": "db", "resource_type": "volume"}
    assert by_id[first]["snapshot_time"].endswith("Z")

    listed = await send(face, token, "-XGET", f"{ZONE}/volume_snapshots")
    assert len(listed["snapshots"]) <= 10
    assert listed["total_count"] >= 2

    body = json.dumps({"resources": [volume], "snapshot_name": "second", "is_full": 0})
    second = (await started("CreateSnapshots", "-XPOST", "--data", body, f"{ZONE}/volume_snapshots"))["resource_ids"][0]

    await started(
        "ApplySnapshots", "-XPOST", "--data", json.dumps({"snapshots": [first]}), f"{ZONE}/volume_snapshots/apply"
    )
    body = json.dumps({"snapshot": of_host, "image_name": "golden"})
    target = f"{ZONE}/volume_snapshots/capture_instance"
    await started("CaptureInstanceFromSnapshot", "-XPOST", "--data", body, target)
    body = json.dumps({"snapshot": first, "volume_name": "copy"})
    await started("CreateVolumeFromSnapshot", "-XPOST", "--data", body, f"{ZONE}/volume_snapshots/create_volume")

    query = f"snapshot={second}&snapshot_name=second&description="
    await started("DeleteSnapshots", "-XDELETE", f"{ZONE}/volume_snapshots/{second}?{query}")
    assert (await send(face, token, "-XGET", f"{ZONE}/volume_snapshots?snapshots={second}&status=available")) == {
        "snapshots": [],
        "total_count": 0,
    }


@pytest.mark.parametrize("send", SENDERS)
async def test_the_literal_body_of_the_specification_is_a_bad_request(send: Any, face: Served, token: str) -> None:
    """Its literal body `{"key": "value"}` is a 400."""
    literal = '\n{\n    "key": "value"\n}'
    for path in ("", "/apply", "/capture_instance", "/create_volume"):
        answer = await send(face, token, "-XPOST", "--data", literal, f"{ZONE}/volume_snapshots{path}")
        assert answer["code"] == "bad_request"
        assert "key" in answer["message"]


async def test_json_is_read_whatever_the_content_type_says(face: Served, token: str) -> None:
    """CONTRACT.md, "JSON"."""
    body = json.dumps({"resources": ["vol-nothere0"], "snapshot_name": "n", "is_full": 0}).encode()
    for kind in ("", "application/json", "text/plain; charset=latin-1", "multipart/form-data", "x"):
        headers = {"Content-Type": kind} if kind else {}
        answer = await ask(face.url, "POST", f"{ZONE}/volume_snapshots", body, token=token, headers=headers)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), kind


async def test_later_revision_is_accepted_too(face: Served, token: str, shared_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Differences of the later revision", every row."""
    volume = (await shared_zone.add_resource(make_image(tmp_path / "volume"), "db")).id
    host = (await shared_zone.add_resource(make_image(tmp_path / "host"), "web", ResourceType.INSTANCE)).id
    made = []
    for form in ({"is_full": "IS_FULL"}, {"is_full": "IS_AUTH"}, {}):
        body = json.dumps({"resources": [volume, host], "snapshot_name": "later", **form})
        job = await end(face, token, raw, await raw(face, token, "-XPOST", "--data", body, f"{ZONE}/volume_snapshots"))
        made.append(job["resource_ids"])
    (full, of_host), *rest = made
    joined = ",".join(one for pair in made for one in pair)
    for query, expected in (
        (f"snapshots={joined}&snapshot_type=IS_FULL&status=available,pending", {full, of_host}),
        (f"snapshots={joined}&snapshot_type=IS_INCREMENTAL", {one for pair in rest for one in pair}),
        (f"snapshots={full},{of_host}&snapshots={rest[0][0]}&resource_id={volume}", {full, rest[0][0]}),
    ):
        answer = await raw(face, token, "-XGET", f"{ZONE}/volume_snapshots?{query}")
        assert {snapshot["snapshot_id"] for snapshot in answer["snapshots"]} == expected, query
    for target, name in ((f"capture_instance/{of_host}", "image_name"), (f"create_volume/{full}", "volume_name")):
        body = json.dumps({name: "of later"})
        answer = await raw(face, token, "-XPOST", "--data", body, f"{ZONE}/volume_snapshots/{target}")
        await end(face, token, raw, answer)
        wrong = json.dumps({name: "of later", "snapshot": "ss-other000"})
        answer = await raw(face, token, "-XPOST", "--data", wrong, f"{ZONE}/volume_snapshots/{target}")
        assert answer["code"] == "bad_request"


async def test_a_snapshot_that_disagrees_with_the_path_deletes_nothing(face: Served, token: str) -> None:
    """the path's id decides, and a `snapshot` that disagrees with it is an error"."""
    answer = await raw(face, token, "-XDELETE", f"{ZONE}/volume_snapshots/ss-aaaaaaaa?snapshot=ss-bbbbbbbb")
    assert answer["code"] == "bad_request"
    assert "ss-bbbbbbbb" in answer["message"]


async def test_put_answers_nothing(face: Served, token: str, shared_zone: LocalZone, tmp_path: Path) -> None:
    """PUT: "empty answer (later document)"."""
    volume = (await shared_zone.add_resource(make_image(tmp_path / "volume"))).id
    body = json.dumps({"resources": [volume], "snapshot_name": "old"})
    job = await end(face, token, raw, await raw(face, token, "-XPOST", "--data", body, f"{ZONE}/volume_snapshots"))
    target = f"{ZONE}/volume_snapshots/{job['resource_ids'][0]}"
    changed = await ask(face.url, "PUT", target, b'{"snapshot_name": "new", "tags": ["a"]}', token=token)
    assert (changed.status, changed.body) == (204, b"")


async def test_tokens_are_fetched_with_curl(face: Served) -> None:
    """POST /v2/oauth2/token: "HTTP Basic with the key pair, form `grant_type=client_credentials`"."""
    token = await fetch_token(face.url)
    assert len(token) >= 32
    assert await fetch_token(face.url) != token
