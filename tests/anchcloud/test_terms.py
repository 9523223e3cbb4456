"""Terms, a safety snapshot's name and cancel as the client sends them, and what a lost answer of them means."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from snapshot_mcp.contract.errors import (
    ERRORS_BY_CODE,
    Cancelled,
    Expired,
    NotFound,
    NotUsable,
    OutcomeUnknown,
    TermsChanged,
    Unavailable,
    Unsupported,
)
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.terms import ResourceTerms, Terms
from snapshot_mcp.providers.anchcloud.replies import Reply, is_definite
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from tests.anchcloud.test_faults import once
from tests.disks import back_up, make_image, succeed
from tests.faulty_proxy import Canned, Fault, FaultyProxy, Seen, faulty_proxy
from tests.recording_zone import TOLD, RecordingZone
from tests.rest_face import HASTY, PATIENT, client_of, served
from tests.strange_zone import answer, error, strange_zone

pytestmark = pytest.mark.anyio

TERMS = Terms(may_go=("ss-1", "ss-é &=+%"), must_stay=("ss-2",), recovery_seconds=7200)
OLD = frozenset({Feature.TERMS, Feature.ONE_HOLD, Feature.CANCEL})


@dataclass
class Wire:
    zone: RecordingZone
    proxy: FaultyProxy
    client: AnchCloudZone
    volume: str
    snapshot: str

    @property
    def sent(self) -> list[Seen]:
        return [seen for seen, _ in self.proxy.changes()]


async def _wire(folder: Path, tmp_path: Path, without: frozenset[Feature] = frozenset()) -> AsyncIterator[Wire]:
    zone = RecordingZone(folder, without)
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16), "disk")).id
    snapshot = await back_up(zone, volume)
    async with served(zone) as face, faulty_proxy(face.url) as proxy:
        client = face.client(url=proxy.url)
        yield Wire(zone, proxy, client, volume, snapshot)
        await client.aclose()
    await zone.aclose()


@pytest.fixture
async def wire(zone_folder: Path, tmp_path: Path) -> AsyncIterator[Wire]:
    async for one in _wire(zone_folder, tmp_path):
        yield one


@pytest.fixture
async def old(zone_folder: Path, tmp_path: Path) -> AsyncIterator[Wire]:
    """A face of before: it forbids what it does not know."""
    async for one in _wire(zone_folder, tmp_path, OLD):
        yield one


def is_change(seen: Seen) -> bool:
    return seen.is_change


async def test_terms_arrive_as_they_were_given(wire: Wire) -> None:
    """CONTRACT.md, "What our own face adds": one query parameter of compact JSON; what is not compared is left out."""
    await wire.client.delete_snapshot(wire.snapshot, terms=TERMS)
    ((_, given),) = wire.zone.asked
    assert given == TERMS
    ((name, text),) = parse_qsl(urlsplit(wire.sent[0].target).query)
    assert name == "terms"
    assert ": " not in text
    given_fields = {"may_go", "must_stay", "recovery_seconds", "begin_within_seconds"}
    assert set(json.loads(text)) == given_fields | {"must_exist", "agreement"}


async def test_terms_and_the_safety_snapshot_of_a_roll_back_arrive(wire: Wire) -> None:
    """CONTRACT.md, "What our own face adds"; an identity of none stays apart from ""."""
    terms = Terms(resources={wire.volume: ResourceTerms(head_id=""), "vol-2": ResourceTerms(identity="x")})
    await wire.client.apply_snapshots([wire.snapshot], terms=terms, safety_snapshot_name="before é")
    assert wire.zone.asked == [("apply", (terms, "before é"))]


async def test_without_terms_the_specification_is_sent(wire: Wire) -> None:
    """The specification's own requests and answers stay as they are (CONTRACT.md, "What our own face adds")."""
    await succeed(wire.zone, await wire.client.apply_snapshots([wire.snapshot]))
    await wire.client.delete_snapshot(wire.snapshot)
    apply, delete = wire.sent
    assert json.loads(apply.body) == {"snapshots": [wire.snapshot]}
    assert not urlsplit(delete.target).query


async def test_a_face_without_the_feature_is_sent_nothing_of_it(old: Wire) -> None:
    """ "sends terms / safety_snapshot_name / verbose only where the face declares the feature"; terms are never dropped."""
    for change in (
        lambda: old.client.delete_snapshot(old.snapshot, terms=Terms()),
        lambda: old.client.apply_snapshots([old.snapshot], terms=Terms()),
        lambda: old.client.apply_snapshots([old.snapshot], safety_snapshot_name="before"),
    ):
        with pytest.raises(Unsupported, match="Nothing was sent"):
            await change()
    job = await old.zone.create_snapshots([old.volume], "")
    with pytest.raises(Unsupported, match="cancel"):
        await old.client.cancel_job(job.job_id)
    assert old.sent == []
    page = await old.client.list_volumes(ResourceFilter(verbose=1))
    assert [one.identity for one in page.items] == [None]
    assert (await old.client.list_instances(ResourceFilter(verbose=1))).items == ()


async def test_identity_is_there_with_the_first_answer_of_a_client(wire: Wire) -> None:
    """What a face has is known with its first answer; a plan must not lack which disk it is because of that."""
    assert Feature.TERMS not in wire.client.features
    (volume,) = (await wire.client.list_volumes(ResourceFilter(verbose=1))).items
    assert {key: getattr(volume, key) for key in TOLD} == TOLD
    (again,) = (await wire.client.list_volumes(ResourceFilter(verbose=1))).items
    assert again == volume
    assert wire.zone.asked == [("volumes", 0), ("volumes", 1), ("volumes", 1)]
    assert (await wire.client.list_images(ResourceFilter(verbose=1))).items == ()


async def test_refusals_by_the_terms_are_definite_and_of_their_class(wire: Wire) -> None:
    """ "Map error codes terms_changed, expired, cancelled (409 → the right class, definite)"."""
    for kind in (TermsChanged, Expired, Cancelled):
        wire.zone.refusal = kind("ss-9 would go too.")
        with pytest.raises(kind, match="ss-9 would go too") as refusal:
            await wire.client.delete_snapshot(wire.snapshot, terms=TERMS)
        assert refusal.value.is_definite
        assert is_definite(Reply(409, {}, json.dumps({"code": kind.code, "message": "x"}).encode()))
    assert len(wire.sent) == 3


def test_of_each_code_its_class_says_whether_it_is_definite() -> None:
    """ "Whether nothing was begun for certain is a property of the error class, once"; an outage may be a gateway's."""
    for code, kind in ERRORS_BY_CODE.items():
        reply = Reply(kind.http_status, {}, json.dumps({"code": code, "message": "x"}).encode())
        assert is_definite(reply) == (kind.is_definite and kind is not Unavailable), code
    for status, code in ((500, "not_found"), (502, "terms_changed"), (400, "outcome_unknown"), (200, "unavailable")):
        assert not is_definite(Reply(status, {}, json.dumps({"code": code, "message": "x"}).encode())), (status, code)


@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.RESET_AFTER, Fault.GATEWAY_AFTER])
async def test_a_lost_deletion_with_terms_is_looked_up(fault: Fault, wire: Wire) -> None:
    """ "a lost answer of an apply or delete with terms is looked up as today"."""
    wire.proxy.decide = once(fault, is_change)
    if fault == Fault.RESET_BEFORE:
        with pytest.raises(OutcomeUnknown, match=wire.snapshot):
            await wire.client.delete_snapshot(wire.snapshot, terms=TERMS)
    else:
        client = client_of(wire.proxy.url, patience=PATIENT)
        job = await client.delete_snapshot(wire.snapshot, terms=TERMS)
        assert job.action == "DeleteSnapshots"
        await client.aclose()
    assert len(wire.sent) == 1


async def test_a_lost_roll_back_that_is_over_names_its_safety_snapshot() -> None:
    """The job's `extra` has `safety_snapshots`: the way back. Its job is out of sight, so the zone's list tells them."""
    disk = {"resource_id": "vol-a", "resource_name": "a", "resource_type": "volume"}
    target = {"snapshot_id": "ss-1", "status": "available", "snapshot_type": 1, "resource": disk}
    safety = {**target, "snapshot_id": "ss-9", "snapshot_name": "before"}
    rows = [target]

    def listed(seen: Seen) -> Canned:
        wanted = dict(parse_qsl(urlsplit(seen.target).query))
        found = [one for one in rows if wanted.get("snapshots", one["snapshot_id"]) == one["snapshot_id"]]
        found = [one for one in found if wanted.get("search_word", "") in str(one.get("snapshot_name", ""))]
        return answer({"snapshots": found, "total_count": len(found)}, 200, "x-snapshot-features: terms, one_hold")

    def applied(seen: Seen) -> Canned:
        rows[:] = [safety, {**target, "is_head": 1}]
        return error(502, "x", "lost")

    async with strange_zone(patience=PATIENT) as (zone, client):
        zone.answers = {"GET volume_snapshots": listed, "POST apply": applied}
        job = await client.apply_snapshots(["ss-1"], terms=Terms(), safety_snapshot_name="before")
    assert job.is_successful
    assert job.details["safety_snapshots"] == {"vol-a": "ss-9"}


async def test_cancel_answers_the_job(wire: Wire) -> None:
    """contract: "The job ends as failed with the code `cancelled`"."""
    job = await wire.zone.create_snapshots([wire.volume], "")
    cancelled = await wire.client.cancel_job(job.job_id)
    assert (cancelled.job_id, cancelled.status) == (job.job_id, "failed")
    assert cancelled.error is not None
    assert cancelled.error.code == "cancelled"
    wire.zone.refusal = NotUsable("Its effect has begun.")
    with pytest.raises(NotUsable, match="begun"):
        await wire.client.cancel_job(job.job_id)
    with pytest.raises(NotFound):
        await wire.client.cancel_job("none")
    assert len(wire.sent) == 2, "of an unknown job nothing is sent"


CANCEL_ENDS: list[tuple[dict[str, object], type[Exception] | None]] = [
    ({"status": "failed", "error": {"code": "cancelled", "message": "called off"}}, None),
    ({"status": "successful"}, NotUsable),
    ({"status": "failed", "error": {"code": "storage_full", "message": "no room"}}, NotUsable),
    ({"status": "working"}, OutcomeUnknown),
]


@pytest.mark.parametrize(("end", "raised"), CANCEL_ENDS)
@pytest.mark.parametrize("lost", [error(500, "x", "lost"), Canned(200), answer({"job_id": "another"})])
async def test_a_lost_cancel_is_settled_by_reading_the_job(
    end: dict[str, object], raised: type[Exception] | None, lost: Canned
) -> None:
    """ "a lost answer of a cancel is settled by reading the job"; it is sent once."""
    state: dict[str, object] = {"job_id": "j-1", "status": "working"}

    def cancel(seen: Seen) -> Canned:
        state.update(end)
        return lost

    read: Callable[[Seen], Canned] = lambda seen: answer(state, 200, "x-snapshot-features: cancel")  # noqa: E731
    patience = HASTY if raised is OutcomeUnknown else PATIENT
    async with strange_zone(patience=patience) as (zone, client):
        zone.answers = {"GET job/": read, "DELETE job/": cancel}
        if raised is None:
            job = await client.cancel_job("j-1")
            assert job.error is not None
            assert job.error.code == "cancelled"
        else:
            with pytest.raises(raised, match="j-1"):
                await client.cancel_job("j-1")
        assert len(zone.proxy.changes()) == 1


async def test_what_a_lookup_found_to_be_over_cannot_be_cancelled(wire: Wire) -> None:
    """Its id was made up here; the zone does not know it."""
    wire.proxy.decide = once(Fault.RESET_AFTER, is_change)
    job = await wire.client.create_snapshots([wire.volume], "quick")
    if job.job_id.startswith("found-"):
        with pytest.raises(NotUsable, match="ended"):
            await wire.client.cancel_job(job.job_id)
    assert (await wire.client.list_snapshots(SnapshotFilter(search_word="quick"))).total_count == 1
