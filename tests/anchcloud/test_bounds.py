"""What a provider may send: texts, ids, bodies and lists are bounded where they are read."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.errors import NotFound, OutcomeUnknown, Unavailable
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.providers.anchcloud.bounds import MAX_TEXT_CHARACTERS, bounded, is_within_bounds
from snapshot_mcp.providers.anchcloud.transport import MAX_ANSWER_BYTES
from snapshot_mcp.zones.finding import MAX_LISTED, find_resource, read_list
from tests.faulty_proxy import Canned, Seen
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import HASTY
from tests.strange_zone import answer, error, snapshots, strange_zone

pytestmark = pytest.mark.anyio

PATIENT = replace(HASTY, read_seconds=50, change_seconds=50, total_seconds=50)
"""Megabytes take a while on a busy machine."""

LONG = "n" * (5 << 20)
"""A 5 MB name."""


@pytest.mark.long
async def test_a_name_of_5_mb_is_cut_where_it_is_read() -> None:
    """a 5 MB name must not travel on": "names at most 255 characters kept with an ellipsis mark"; all other texts too."""
    disk = {"resource_id": "vol-a", "resource_name": LONG, "resource_type": "volume"}
    fields = {
        "description": LONG,
        "consistency": LONG,
        "resource": disk,
        "tags": [LONG, "kept"],
        "more": {"note": LONG},
    }
    async with strange_zone(patience=PATIENT) as (zone, client):
        zone.answers = {
            "GET volume_snapshots": snapshots({"snapshot_id": "ss-1", "snapshot_name": f"é{LONG}", **fields}),
            "GET volumes": answer({"volumes": [{"volume_id": "vol-a", "volume_name": LONG}], "total_count": 1}),
            "GET job/": answer({"job_id": "j", "info": LONG, "extra": f'"{LONG}"', LONG: 1, "status": LONG}),
        }
        (snapshot,) = (await client.list_snapshots(SnapshotFilter())).items
        (volume,) = (await client.list_volumes(ResourceFilter())).items
        job = await client.get_job("j")
    assert snapshot.snapshot_name == f"é{'n' * 253}…"
    assert snapshot.resource.resource_name == volume.name == f"{'n' * 254}…"
    assert snapshot.tags == (f"{'n' * 254}…", "kept")
    assert len(snapshot.description) == MAX_TEXT_CHARACTERS
    assert job.extra is None
    for item in (snapshot, volume, job):
        assert len(item.model_dump_json()) < 20_000


@pytest.mark.long
async def test_an_item_with_an_endless_id_is_refused() -> None:
    """ids at most 255 characters: an item with a longer id is refused with a clear Unavailable"."""
    parent = {"snapshot_id": "ss-1", "parent_id": LONG}
    disk = {"snapshot_id": "ss-1", "resource": {"resource_id": LONG}}
    async with strange_zone(patience=PATIENT) as (zone, client):
        for row in ({"snapshot_id": LONG}, {"snapshot_id": "x" * 256}, parent, disk):
            zone.answers = {"GET volume_snapshots": snapshots(row)}
            with pytest.raises(Unavailable, match=r"id in the answer has \d+ characters") as refused:
                await client.list_snapshots(SnapshotFilter())
            assert len(str(refused.value)) < 500
        zone.answers = {"GET volume_snapshots": snapshots({"snapshot_id": "x" * 255})}
        assert (await client.list_snapshots(SnapshotFilter())).total_count == 1
        zone.answers = {"GET job/": answer({"job_id": "j", "resource_ids": ["vol-a", LONG]})}
        with pytest.raises(Unavailable, match="resource_ids"):
            await client.get_job("j")
        zone.answers = {"POST volume_snapshots": answer({"job_id": LONG})}
        with pytest.raises(OutcomeUnknown, match="255"):
            await client.create_snapshots(["vol-a"], "nightly")


async def test_an_error_text_of_5_mb_is_cut() -> None:
    """error texts are capped when they are parsed"."""
    async with strange_zone(patience=PATIENT) as (zone, client):
        for told in (error(404, LONG, LONG), answer({"code": "not_found", "message": LONG, "hint": LONG}, 404)):
            zone.answers = {"GET job/": told}
            with pytest.raises(NotFound) as refused:
                await client.get_job("j")
            assert len(str(refused.value)) < 2_000


async def test_a_body_beyond_all_measure_is_refused_while_it_comes_in() -> None:
    """a body larger than a sane maximum is refused while it streams", once: it would be as large again."""
    body = b'{"snapshots": [' + b" " * (MAX_ANSWER_BYTES + 1) + b"]}"
    async with strange_zone(patience=PATIENT) as (zone, client):
        zone.answers = {"GET volume_snapshots": Canned(200, body)}
        with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match=str(MAX_ANSWER_BYTES)):
            await client.list_snapshots(SnapshotFilter())
        assert zone.asked("volume_snapshots") == 1


async def test_what_a_header_says_is_bounded_too() -> None:
    """A number of thousands of digits is none."""
    headers = ("x-snapshot-features: recover", f"x-snapshot-recovery-seconds: {'9' * 5000}")
    async with strange_zone(patience=PATIENT) as (zone, client):
        zone.answers = {"GET volume_snapshots": answer({"snapshots": [], "total_count": 0}, 200, *headers)}
        await client.list_snapshots(SnapshotFilter())
        assert client.recovery_seconds == 7200


def endless(kind: str, key: str) -> dict[str, Callable[[Seen], Canned]]:
    """Each page full of new ones, and always more to come."""
    count = 0

    def page(seen: Seen) -> Canned:
        nonlocal count
        if "volumes=" in seen.target:  # by id there is none
            return answer({kind: [], "total_count": 0})
        rows = [{key: f"x-{count + number}", "name": "n" * 200} for number in range(100)]
        count += 100
        return answer({kind: rows, "total_count": count + 100})

    return {f"GET {'volume_snapshots' if kind == 'snapshots' else kind}": page}


@pytest.mark.long
async def test_lists_that_never_end_are_left() -> None:
    """a list that never ends must end": every reading of pages has a bound, and so has its memory."""
    async with strange_zone(patience=PATIENT) as (zone, client):
        zone.answers = {**endless("snapshots", "snapshot_id"), **endless("volumes", "volume_id")}
        tracemalloc.start()
        with anyio.fail_after(PATIENCE_SECONDS):
            found, _ = await read_list(client.list_snapshots, SnapshotFilter(), 1000)
            assert len(found) == 1000
            with pytest.raises(Unavailable, match=f"more than {MAX_LISTED}"):
                await find_resource(client, "nothing of this name")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(zone.proxy.seen) < 20 + MAX_LISTED // 100
    assert peak < 80 << 20


LEAVES = st.text(max_size=400) | st.integers() | st.none()
OBJECTS = st.dictionaries(st.text(max_size=300), LEAVES, max_size=3)
TEXTS = (
    LEAVES
    | st.lists(LEAVES | OBJECTS, max_size=4)
    | st.dictionaries(st.text(max_size=300), LEAVES | OBJECTS, max_size=3)
)


@given(TEXTS, st.booleans())
def test_the_cheap_look_lets_nothing_through_that_would_be_cut(value: object, is_ascii: bool) -> None:
    """capped when they are parsed": the look at the bytes spares the walk only where the walk would change nothing."""
    if is_within_bounds(json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")):
        assert bounded(value, "Looking") == value


def test_what_is_nested_without_end_is_left_out() -> None:
    value: object = "deep"
    for _ in range(500):
        value = [value]
    assert "deep" not in json.dumps(bounded(value, "Looking"))


@pytest.mark.parametrize("length", [254, 255, 256, 257])
@pytest.mark.parametrize("before", [0, 1, 254, 255, 256, 600])
def test_the_cheap_look_is_exact(length: int, before: int) -> None:
    """255 characters are taken, 256 are not, wherever they stand among others."""
    names = ["n"] * before + ["x" * length] + ["n"] * 300
    assert is_within_bounds(json.dumps(names).encode()) == (length <= 255)


def test_half_a_surrogate_pair_is_replaced() -> None:
    """JSON can spell it, but no encoder accepts it: a plan with it could not be shown, stored or agreed to."""
    body = rb'{"snapshot_name": "disk \ud83d", "tags": ["\uD83D\uDE00"]}'
    assert not is_within_bounds(body)
    assert bounded(json.loads(body), "List") == {"snapshot_name": "disk \ufffd", "tags": ["\U0001f600"]}
