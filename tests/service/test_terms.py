"""Terms, cancel and what a zone says of a disk, on the wire of our own face (CONTRACT.md, "What our own face adds")."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from snapshot_mcp.contract.errors import TermsChanged
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.terms import ResourceTerms, Terms
from snapshot_mcp.service.requests import MAX_QUERY_BYTES
from tests.disks import back_up, make_image
from tests.recording_zone import TOLD, RecordingZone
from tests.rest_face import RawAnswer, ask, fetch_token, served

pytestmark = pytest.mark.anyio

ZONE = "/v2/zone/ac1"
NEW = frozenset({Feature.TERMS, Feature.ONE_HOLD, Feature.CANCEL})


class Asker:
    """A face over a zone, one of its snapshots, and raw requests with a token."""

    def __init__(self, url: str, token: str, zone: RecordingZone, volume: str, snapshot: str) -> None:
        self.url, self.token, self.zone, self.volume, self.snapshot = url, token, zone, volume, snapshot

    async def delete(self, terms: str) -> RawAnswer:
        target = f"{ZONE}/volume_snapshots/{self.snapshot}?terms={quote(terms)}"
        return await ask(self.url, "DELETE", target, token=self.token)

    async def apply(self, **fields: object) -> RawAnswer:
        body = json.dumps({"snapshots": [self.snapshot], **fields}).encode()
        return await ask(self.url, "POST", f"{ZONE}/volume_snapshots/apply", body, token=self.token)

    async def get(self, target: str) -> RawAnswer:
        return await ask(self.url, "GET", target, token=self.token)


async def _asker(folder: Path, tmp_path: Path, without: frozenset[Feature]) -> AsyncIterator[Asker]:
    zone = RecordingZone(folder, without)
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    await zone.add_resource(make_image(tmp_path / "host", 1 << 16), "host", ResourceType.INSTANCE)
    snapshot = await back_up(zone, volume)
    async with served(zone) as face:
        yield Asker(face.url, await fetch_token(face.url), zone, volume, snapshot)
    await zone.aclose()


@pytest.fixture
async def asker(zone_folder: Path, tmp_path: Path) -> AsyncIterator[Asker]:
    async for one in _asker(zone_folder, tmp_path, frozenset()):
        yield one


@pytest.fixture
async def plain(zone_folder: Path, tmp_path: Path) -> AsyncIterator[Asker]:
    """The same over a zone that has none of it."""
    async for one in _asker(zone_folder, tmp_path, NEW):
        yield one


async def test_a_deletion_carries_its_terms_in_one_query_parameter(asker: Asker) -> None:
    """CONTRACT.md, "What our own face adds": one query parameter of compact JSON."""
    text = '{"may_go":["ss-1","ss-é"],"must_stay":["ss-2"],"recovery_seconds":7200,"begin_within_seconds":30}'
    answer = await asker.delete(text)
    assert (answer.status, answer.json["action"]) == (200, "DeleteSnapshots")
    expected = Terms(may_go=("ss-1", "ss-é"), must_stay=("ss-2",), recovery_seconds=7200, begin_within_seconds=30)
    assert asker.zone.asked == [("delete", expected)]


async def test_a_deletion_without_terms_is_as_before(asker: Asker) -> None:
    """The specification's own requests and answers stay as they are (CONTRACT.md, "What our own face adds")."""
    answer = await ask(asker.url, "DELETE", f"{ZONE}/volume_snapshots/{asker.snapshot}", token=asker.token)
    assert answer.status == 200
    assert asker.zone.asked == [("delete", None)]


MALFORMED = [
    ("", "JSON object"),
    ("{", "JSON object"),
    ("null", "JSON object"),
    ("[]", "JSON object"),
    ("NaN", "JSON object"),
    ("[" * 10_000, "JSON object"),
    ('{"may_go": "ss-1"}', "may_go"),
    ('{"may_go": [1]}', "may_go"),
    ('{"may_go": [], "may_go": ["ss-1"]}', "may_go"),
    ('{"maygo": ["ss-1"]}', "maygo"),
    ('{"recovery_seconds": -1}', "recovery_seconds"),
    ('{"begin_within_seconds": 0}', "begin_within_seconds"),
    ('{"resources": {"vol-1": {"inode": 5}}}', "inode"),
]


async def test_malformed_terms_are_a_clear_bad_request(asker: Asker, subtests: pytest.Subtests) -> None:
    """ "A terms JSON that is malformed is a clear 400": it never becomes a deletion without terms."""
    for text, word in MALFORMED:
        with subtests.test(text=text[:40]):
            answer = await asker.delete(text)
            assert (answer.status, answer.json["code"]) == (400, "bad_request")
            assert "terms" in answer.json["message"] or "may_go" in answer.json["message"]
            assert word in answer.json["message"]
    twice = f"{ZONE}/volume_snapshots/{asker.snapshot}?terms=%7B%7D&terms=%7B%7D"
    assert (await ask(asker.url, "DELETE", twice, token=asker.token)).status == 400
    assert asker.zone.asked == []


async def test_terms_of_120_long_ids_go_through_and_the_limit_is_said(asker: Asker) -> None:
    """ "MAX_QUERY_BYTES must let a terms of 100 ids in may_go + 20 in must_stay through (and say what the limit is)"."""
    terms = {"may_go": [f"{n:03}".ljust(255, "x") for n in range(100)], "must_stay": ["y" * 255] * 20}
    assert (await asker.delete(json.dumps(terms))).status == 200
    assert len(asker.zone.asked[0][1].may_go) == 100
    too_many = await asker.delete(json.dumps({"may_go": ["x" * 200] * 320}))
    assert (too_many.status, too_many.json["code"]) == (400, "bad_request")
    assert str(MAX_QUERY_BYTES) in too_many.json["hint"]
    beyond_http = await asker.delete(json.dumps({"may_go": ["x" * 200] * 430}))
    assert beyond_http.status == 400
    assert "bytes" in str(beyond_http.json)
    assert len(asker.zone.asked) == 1


async def test_a_roll_back_carries_terms_and_the_name_of_its_safety_snapshot(asker: Asker) -> None:
    """CONTRACT.md, "What our own face adds": two fields of the body."""
    terms = {"resources": {asker.volume: {"identity": "fs-1:42", "head_id": asker.snapshot}}}
    answer = await asker.apply(terms=terms, safety_snapshot_name="before the upgrade")
    assert answer.status == 200, answer.json
    expected = Terms(resources={asker.volume: ResourceTerms(identity="fs-1:42", head_id=asker.snapshot)})
    assert asker.zone.asked == [("apply", (expected, "before the upgrade"))]
    assert (await asker.apply(terms={"resources": []})).status == 400
    assert (await asker.apply(terms=[])).status == 400
    assert (await asker.apply(safety_snapshot_name="x" * 256)).status == 400
    assert len(asker.zone.asked) == 1


async def test_without_the_feature_the_fields_are_unknown_and_the_route_is_not_there(plain: Asker) -> None:
    """Sent only where the face declares them: an older one refuses unknown fields (CONTRACT.md, "Terms")."""
    for answer, field in (
        (await plain.delete("{}"), "terms"),
        (await plain.apply(terms={}), "terms"),
        (await plain.apply(safety_snapshot_name=""), "safety_snapshot_name"),
        (await plain.get(f"{ZONE}/volumes?verbose=1"), "verbose"),
        (await plain.get(f"{ZONE}/instances?verbose=1"), "verbose"),
        (await plain.get(f"{ZONE}/images?verbose=1"), "verbose"),
    ):
        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert f"'{field}': Extra inputs are not permitted" in answer.json["message"]
    cancel = await ask(plain.url, "DELETE", f"{ZONE}/job/j", token=plain.token)
    assert (cancel.status, cancel.json["code"]) == (501, "unsupported")
    assert plain.zone.asked == []
    document = (await plain.get("/openapi.json")).json
    assert "terms" not in json.dumps(document["paths"])
    assert set(document["components"]["schemas"]["ApplyBody"]["properties"]) == {"snapshots"}
    assert list(document["paths"][f"{ZONE.replace('ac1', '{zone}')}/job/{{job_id}}"]) == ["get"]


async def test_openapi_says_what_the_face_has(asker: Asker) -> None:
    """ "OpenAPI document follows"."""
    document = (await asker.get("/openapi.json")).json
    paths = document["paths"]
    parameters = paths["/v2/zone/{zone}/volume_snapshots/{snapshot_id}"]["delete"]["parameters"]
    (terms,) = [one for one in parameters if one["name"] == "terms"]
    assert terms["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Terms"}
    assert "may_go" in document["components"]["schemas"]["Terms"]["properties"]
    assert {"terms", "safety_snapshot_name"} < set(document["components"]["schemas"]["ApplyBody"]["properties"])
    assert paths["/v2/zone/{zone}/job/{job_id}"]["delete"]["operationId"] == "CancelJob"
    for kind, has_it in (("volumes", True), ("instances", True), ("images", False)):
        names = {one["name"] for one in paths[f"/v2/zone/{{zone}}/{kind}"]["get"]["parameters"]}
        assert ("verbose" in names) == has_it


async def test_identity_holder_and_hard_links_travel_when_they_are_asked_for(asker: Asker) -> None:
    """`identity` and `held_by` are fields of volumes and instances (CONTRACT.md, "What our own face adds")."""
    for kind in ("volumes", "instances"):
        (plain,) = (await asker.get(f"{ZONE}/{kind}")).json[kind]
        assert not set(TOLD) & set(plain)
        (verbose,) = (await asker.get(f"{ZONE}/{kind}?verbose=1")).json[kind]
        assert {key: verbose[key] for key in TOLD} == TOLD
    assert (await asker.get(f"{ZONE}/images?verbose=1")).status == 400


async def test_a_refusal_by_the_terms_is_a_409_with_its_code(asker: Asker) -> None:
    """A mismatch is `terms_changed`, 409, a definite refusal (CONTRACT.md, "Terms")."""
    asker.zone.refusal = TermsChanged("ss-9 would go too.", hint="Look again.")
    answer = await asker.delete("{}")
    assert (answer.status, answer.json["code"]) == (409, "terms_changed")
    assert answer.json["hint"] == "Look again."


async def test_cancel_answers_the_job(asker: Asker) -> None:
    """`DELETE /job/{id}` cancels: the job is `failed` with the code `cancelled` (CONTRACT.md, "What our own face adds")."""
    job = await asker.zone.create_snapshots([asker.volume], "")
    answer = await ask(asker.url, "DELETE", f"{ZONE}/job/{job.job_id}", token=asker.token)
    assert (answer.status, answer.json["status"]) == (200, "failed")
    assert answer.json["error"]["code"] == "cancelled"
    assert answer.json["zone"] == "ac1"
    unknown = await ask(asker.url, "DELETE", f"{ZONE}/job/none", token=asker.token)
    assert (unknown.status, unknown.json["code"]) == (404, "not_found")
