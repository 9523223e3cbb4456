"""A provider's own words, rows that cannot be read, and whatever else may come back: an error in words, or the right data."""

import copy
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    InternalError,
    NotFound,
    Unavailable,
    UnknownZone,
    ZoneError,
)
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.zones.finding import read_whole
from tests.faulty_proxy import Canned
from tests.rest_face import HASTY
from tests.strange_zone import TOKEN, StrangeZone, answer, error, page, snapshots, strange_zone

pytestmark = pytest.mark.anyio

ROW = {"snapshot_id": "ss-1", "snapshot_name": "monday", "status": "available", "resource": {"resource_id": "vol-1"}}
QUICK = replace(HASTY, total_seconds=0.3, read_tries=2)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"ret_code": 1400, "message": "PermissionDenied, the key may not list"}, Forbidden, "the key may not list"),
        ({"ret_code": 2100, "message": "ResourceNotFound, resource [ss-9] not found"}, NotFound, "ss-9"),
        ({"ret_code": "5000", "message": "the volume is \x1b[31mon fire"}, InternalError, "on fire"),
        ({"ret_code": -1, "message": "InvalidParameter: limit"}, BadRequest, "limit"),
        ({"ret_code": 1300}, InternalError, "1300"),
        ({"ret_code": 1100, "message": {"a": 1}}, InternalError, "1100|'a'"),
    ],
)
async def test_an_error_with_status_200_is_said_in_the_providers_words(
    body: dict[str, Any], kind: type[ZoneError], words: str
) -> None:
    """ "A provider's own words are dropped where it reports errors as status 200 with `ret_code` and `message`"."""
    async with strange_zone(patience=QUICK) as (strange, zone):
        strange.answers = {"GET volume_snapshots": answer(body), "POST volume_snapshots": answer(body)}
        with pytest.raises(kind, match=words) as read:
            await zone.list_snapshots(SnapshotFilter())
        assert "\x1b" not in str(read.value)
        with pytest.raises(kind, match=words):
            await zone.create_snapshots(["vol-1"], "name")


async def test_a_ret_code_of_zero_is_no_error() -> None:
    async with strange_zone() as (strange, zone):
        strange.answers = {"GET volume_snapshots": answer({"ret_code": 0, "snapshots": [ROW], "total_count": 1})}
        assert (await zone.list_snapshots(SnapshotFilter())).items[0].snapshot_id == "ss-1"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br, gzip"])
async def test_a_lying_content_encoding_is_called_one(encoding: str) -> None:
    """It was "cannot be reached", which sends a person to the network."""
    async with strange_zone(patience=QUICK) as (strange, zone):
        strange.answers = {"GET volume_snapshots": answer({"snapshots": []}, 200, f"Content-Encoding: {encoding}")}
        with pytest.raises(Unavailable, match=r"Content-Encoding|not complete JSON") as raised:
            await zone.list_snapshots(SnapshotFilter())
        assert "cannot be reached" not in str(raised.value)
        assert strange.asked("volume_snapshots") == 1 or encoding == "br, gzip"


@pytest.mark.parametrize(
    "reply",
    [error(404, "zone_not_found", "no zone pek9"), page(404, "Not Found"), error(404, 1410, "ZoneNotFound, pek9")],
)
async def test_a_wrong_zone_id_names_the_zone_the_setting_and_the_next_step(reply: Canned) -> None:
    async with strange_zone(patience=QUICK) as (strange, zone):
        strange.answers = {"GET volume_snapshots": reply}
        with pytest.raises((UnknownZone, Unavailable)) as raised:
            await zone.list_snapshots(SnapshotFilter())
        assert f"zone = '{zone.location.rpartition('/')[2]}'" in str(raised.value)
        assert "in the settings" in str(raised.value)


@pytest.mark.parametrize("name", [5, 1.5, True, None, [], {"a": 1}, "\ud83d", "x" * 100_000])
async def test_an_unreadable_name_takes_no_list_away(name: Any) -> None:
    rows = [ROW, ROW | {"snapshot_id": "ss-2", "snapshot_name": name, "description": name}]
    async with strange_zone() as (strange, zone):
        strange.answers = {"GET volume_snapshots": snapshots(*rows)}
        found = await zone.list_snapshots(SnapshotFilter())
    assert [one.snapshot_id for one in found.items] == ["ss-1", "ss-2"]
    assert found.unread == ()


async def test_a_row_that_cannot_be_read_is_said_and_no_plan_is_made_without_it() -> None:
    """A list shows the others; what must be whole, as a plan must, is an error."""
    rows = [ROW, ROW | {"snapshot_id": 7}, ROW | {"snapshot_id": "ss-3", "create_time": "yesterday"}]
    async with strange_zone(patience=QUICK) as (strange, zone):
        strange.answers = {"GET volume_snapshots": snapshots(*rows)}
        found = await zone.list_snapshots(SnapshotFilter())
        assert [one.snapshot_id for one in found.items] == ["ss-1"]
        assert len(found.unread) == 2
        with pytest.raises(Unavailable, match="does not match the contract"):
            await read_whole(zone.list_snapshots, SnapshotFilter())


def odd_body(chance: random.Random, value: Any) -> bytes:
    """An answer that was right once."""
    value = copy.deepcopy(value)
    odd = [
        None,
        5,
        -1,
        1.5,
        True,
        "",
        "x",
        [],
        {},
        [[]],
        "\ud83d",
        10**400,
        float("nan"),
        "9" * 500,
        "\x00\x1b[0m",
        TOKEN,
    ]
    for _ in range(chance.randrange(4)):
        at = value
        while isinstance(at, dict | list) and at and chance.random() < 0.7:
            key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or chance.random() < 0.4:
                at[key] = chance.choice(odd)
                break
            at = at[key]
    body = bytearray(json.dumps(chance.choice([value, value, value, [value], chance.choice(odd)])).encode())
    for _ in range(chance.choice([0, 0, 0, 1, 2])):
        if body:
            body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body[: chance.choice([None, None, None, None, 10, len(body) // 2])])


def odd_answer(chance: random.Random, value: Any) -> Canned:
    status = chance.choice(
        [200] * 8 + [201, 202, 204, 301, 302, 400, 401, 403, 404, 407, 409, 410, 418, 429, 500, 502, 503, 599]
    )
    body = odd_body(chance, value)
    headers = ["Content-Type: " + chance.choice(["application/json", "text/html", "text/event-stream", "x/y"])]
    if chance.random() < 0.1:
        headers.append("Content-Encoding: " + chance.choice(["gzip", "deflate", "identity", "nonsense"]))
        body = chance.choice([body, gzip.compress(body)])
    if chance.random() < 0.1:
        headers.append("Retry-After: " + chance.choice(["0", "-1", "nan", "inf", "Thu, 01 Jan 1970 00:00:00 GMT", "x"]))
    if chance.random() < 0.1:
        headers.append(f"Location: http://127.0.0.1:9/?token={TOKEN}")
    return Canned(status, body, tuple(headers))


JOB = {"job_id": "job-1", "job_action": "CreateSnapshots", "status": "successful", "resource_ids": ["ss-1"]}
CALLS: list[tuple[str, Any, Callable[[AnchCloudZone], Any]]] = [
    (
        "GET volume_snapshots",
        {"snapshots": [ROW] * 2, "total_count": 2},
        lambda zone: zone.list_snapshots(SnapshotFilter()),
    ),
    (
        "GET volumes",
        {"volumes": [{"volume_id": "vol-1"}], "total_count": 1},
        lambda zone: zone.list_volumes(ResourceFilter()),
    ),
    ("GET unfinished_jobs", [JOB], lambda zone: zone.list_unfinished_jobs()),
    ("GET job-1", JOB, lambda zone: zone.get_job("job-1")),
    ("POST volume_snapshots", JOB, lambda zone: zone.create_snapshots(["vol-1"], "n")),
    (
        "POST token",
        {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 60},
        lambda zone: zone.get_job("job-1"),
    ),
]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
async def test_two_thousand_odd_answers_are_errors_in_words_or_data(
    caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """250 a seed: nothing but errors of the contract, and no token in any text or log."""
    chance = random.Random(seed)
    hurried = replace(HASTY, total_seconds=0.05, read_tries=1, lookup_seconds=0.05)
    for _ in range(250):
        name, value, call = chance.choice(CALLS)
        async with strange_zone(patience=hurried) as (strange, zone):
            await tried(strange, zone, name, odd_answer(chance, value), call)
    assert TOKEN not in caplog.text


async def tried(
    strange: StrangeZone, zone: AnchCloudZone, name: str, reply: Canned, call: Callable[[AnchCloudZone], Any]
) -> None:
    strange.answers = {name: reply}
    try:
        await call(zone)
    except ZoneError as error:
        text, message = f"{error} {error!r}", error.message
    else:
        return
    assert TOKEN not in text, reply
    assert message.strip(), reply
    assert text.isprintable(), reply
    assert len(text) < 3000, reply
