"""Faults on the way: reads come through, changes are never repeated blindly and always told truthfully."""

from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest

from snapshot_mcp.contract.errors import (
    NotFound,
    NotUsable,
    OutcomeUnknown,
    ResourceBusy,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    ZoneError,
)
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.states import JobAction
from tests.anchcloud.conftest import Wire
from tests.disks import get, ids
from tests.faulty_proxy import IS_DELIVERED, Canned, Decision, Fault, Seen
from tests.marks import few
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import HASTY, client_of
from tests.strange_zone import answer, strange_zone

pytestmark = pytest.mark.anyio

LOSING = [fault for fault in Fault if fault not in {Fault.NONE, Fault.SLOW, Fault.THROTTLED, Fault.EXPIRED}]


def once(fault: Decision, when: Callable[[Seen], bool]) -> Callable[[Seen], Decision]:
    """The fault at the first request that fits."""
    left = [fault]
    return lambda seen: left.pop() if left and when(seen) else Fault.NONE


def is_list(seen: Seen) -> bool:
    return seen.method == "GET" and "/volume_snapshots" in seen.target


@pytest.mark.parametrize("fault", few([fault for fault in Fault if fault != Fault.NONE], 6))
async def test_reads_come_through(fault: Fault, wire: Wire) -> None:
    """retries with bounded tries and time for reads only"."""
    snapshot = await wire.back_up()
    wire.proxy.decide = once(fault, is_list)
    assert snapshot in await ids(wire.client, resource_id=wire.volume)


async def test_reads_give_up_in_bounded_time(wire: Wire) -> None:
    """bounded tries and time"."""
    wire.proxy.decide = lambda seen: Fault.NONE if seen.is_token else Fault.GATEWAY_BEFORE
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match="502"):
        await wire.client.list_snapshots(SnapshotFilter())
    assert len([seen for seen, _ in wire.proxy.seen if is_list(seen)]) == HASTY.read_tries


@pytest.mark.parametrize("fault", few(LOSING, 5))
async def test_lost_create_is_looked_up_and_never_repeated(fault: Fault, wire: Wire) -> None:
    """Found → its Job; not found → unknown, with what to look at."""
    await wire.back_up("before")
    wire.proxy.decide, wire.proxy.late_seconds = once(fault, lambda seen: seen.is_change), 3
    if IS_DELIVERED[fault] and fault != Fault.LATE:
        job = await wire.patient.create_snapshots([wire.volume], "wanted")
        assert job.action == JobAction.CREATE
        job = await wire.done(job)
        assert {(await get(wire.local, one)).snapshot_name for one in job.resource_ids} == {"wanted"}
    else:
        with pytest.raises(OutcomeUnknown, match="wanted") as unknown:
            await wire.client.create_snapshots([wire.volume], "wanted")
        assert wire.volume in str(unknown.value)
    assert len(wire.proxy.changes()) == 1
    page = await wire.local.list_snapshots(SnapshotFilter(resource_id=wire.volume, search_word="wanted"))
    assert page.total_count == int(IS_DELIVERED[fault] and fault != Fault.LATE)


@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.RESET_AFTER])
async def test_lost_delete_is_looked_up(fault: Fault, wire: Wire) -> None:
    """Its job, or its effect, is the proof."""
    root, leaf = await wire.back_up("root"), await wire.back_up("leaf")
    wire.proxy.decide = once(fault, lambda seen: seen.is_change)
    if IS_DELIVERED[fault]:
        await wire.done(await wire.patient.delete_snapshot(leaf))
        assert await ids(wire.local, resource_id=wire.volume) == {root}
    else:
        with pytest.raises(OutcomeUnknown, match=leaf):
            await wire.client.delete_snapshot(leaf)
        assert await ids(wire.local, resource_id=wire.volume) == {root, leaf}
    assert len(wire.proxy.changes()) == 1


async def test_lost_roll_back_recovery_export_and_rename_are_looked_up(wire: Wire) -> None:
    """Every change has its proof."""
    first, second = await wire.back_up("first"), await wire.back_up("second")
    changes = lambda seen: seen.is_change  # noqa: E731
    wire.proxy.decide = once(Fault.RESET_AFTER, changes)
    await wire.done(await wire.patient.apply_snapshots([first]))
    assert (await get(wire.local, first)).is_head == 1

    wire.proxy.decide = once(Fault.RESET_AFTER, changes)
    job = await wire.done(await wire.patient.create_volume(first, "a copy of it"))
    assert (await wire.local.list_volumes(ResourceFilter(ids=job.resource_ids))).items[0].name == "a copy of it"

    await wire.done(await wire.client.delete_snapshot(second))
    wire.proxy.decide = once(Fault.RESET_AFTER, changes)
    await wire.done(await wire.patient.recover_snapshots([second]))
    assert second in await ids(wire.local, resource_id=wire.volume)

    wire.proxy.decide = once(Fault.RESET_AFTER, changes)
    await wire.client.update_snapshot(second, SnapshotUpdate(snapshot_name="renamed", tags=("a",)))
    wire.proxy.decide = once(Fault.RESET_BEFORE, changes)
    with pytest.raises(OutcomeUnknown, match=second):
        await wire.client.update_snapshot(second, SnapshotUpdate(snapshot_name="renamed again"))
    assert (await get(wire.local, second)).snapshot_name == "renamed"


async def test_a_page_of_a_proxy_is_no_proof_of_a_rename(wire: Wire) -> None:
    """A 200 with HTML says nothing of the change: it is looked up."""
    snapshot = await wire.back_up("old")
    page = Canned(200, b"<html>Please log in</html>", ("Content-Type: text/html",))
    wire.proxy.decide = once(page, lambda seen: seen.is_change)
    with pytest.raises(OutcomeUnknown, match="web page"):
        await wire.client.update_snapshot(snapshot, SnapshotUpdate(snapshot_name="new"))


async def test_a_finished_job_that_was_lost_can_still_be_asked_for(wire: Wire) -> None:
    """The job is out of sight, what it did is not: `get_job` of the found one works with this client."""
    wire.proxy.decide = once(Fault.RESET_AFTER, lambda seen: seen.is_change)
    job = await wire.client.create_snapshots([wire.volume], "quick")
    assert await wire.client.get_job(job.job_id)
    with pytest.raises(NotFound):
        await client_of(wire.proxy.url).get_job("found-4711")


async def test_what_was_there_before_is_not_taken_for_the_lost_one(wire: Wire) -> None:
    """Same name, same resource, made earlier: no proof."""
    await wire.back_up("twin")
    wire.proxy.decide = once(Fault.RESET_BEFORE, lambda seen: seen.is_change)
    with pytest.raises(OutcomeUnknown):
        await wire.client.create_snapshots([wire.volume], "twin")


async def test_two_lost_creates_do_not_claim_one_snapshot(wire: Wire) -> None:
    """One of two equal calls arrived: one is told of it, the other is not."""
    arrivals = iter([Fault.RESET_AFTER, Fault.RESET_BEFORE])
    wire.proxy.decide = lambda seen: next(arrivals) if seen.is_change else Fault.NONE
    outcomes: list[str] = []

    async def create() -> None:
        try:
            outcomes.append((await wire.client.create_snapshots([wire.volume], "twin")).job_id)
        except OutcomeUnknown:
            outcomes.append("unknown")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        tasks.start_soon(create)
    assert sorted(outcome == "unknown" for outcome in outcomes) == [False, True]


async def test_refused_connection_means_that_nothing_was_sent(wire: Wire) -> None:
    """connection refused before sending": not carried out, and it says so."""
    client = client_of("http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="not carried out") as refused:
        await client.create_snapshots([wire.volume], "x")
    assert "127.0.0.1:9" in str(refused.value)
    await client.aclose()


async def test_outage_before_a_change_sends_nothing(wire: Wire) -> None:
    """Who cannot look cannot leap."""
    wire.proxy.decide = lambda seen: Fault.NONE if seen.is_token else Fault.RESET_BEFORE
    with pytest.raises(Unavailable, match="not carried out"):
        await wire.client.create_snapshots([wire.volume], "x")
    assert wire.proxy.changes() == []


async def test_refusals_are_told_as_they_are_and_not_repeated(wire: Wire) -> None:
    """Permission, absence, throttling, busy: told apart."""
    for body, status, error in (
        (b'{"code": "resource_busy", "message": "job j-1", "job_id": "j-1"}', 409, ResourceBusy),
        (b'{"code": "too_many_requests", "message": "slow"}', 429, TooManyRequests),
        (b'{"code": "not_found", "message": "vol-x"}', 200, NotFound),
    ):
        wire.proxy.seen.clear()
        wire.proxy.decide = once(Canned(status, body), lambda seen: seen.is_change)
        with pytest.raises(error):
            await wire.client.create_snapshots([wire.volume], "x")
        assert len(wire.proxy.changes()) == 1


async def test_token_that_expires_on_the_way_is_renewed_once(wire: Wire) -> None:
    """A 401 means: fetch a new token, once"; a 401 proves that a change was not started."""
    await wire.client.list_snapshots(SnapshotFilter())
    wire.proxy.decide = once(Fault.EXPIRED, lambda seen: seen.is_change)
    await wire.done(await wire.client.create_snapshots([wire.volume], "after renewal"))
    assert len(wire.proxy.changes()) == 2
    assert len([seen for seen, _ in wire.proxy.seen if seen.is_token]) == 2
    wire.proxy.decide = lambda seen: Fault.EXPIRED if is_list(seen) else Fault.NONE
    with pytest.raises(Unauthorized):
        await wire.client.list_snapshots(SnapshotFilter())


async def test_many_waiting_calls_fetch_one_token(wire: Wire) -> None:
    """one refresh for many waiting calls"."""
    wire.proxy.decide = lambda seen: Fault.SLOW if seen.is_token else Fault.NONE
    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(wire.patient.list_snapshots, SnapshotFilter())
    assert len([seen for seen, _ in wire.proxy.seen if seen.is_token]) == 1


async def test_retry_after_is_honoured(wire: Wire) -> None:
    """429: the zone's wish counts; a wish beyond our time is told, not waited for."""
    busy = Canned(429, b"{}", ("Retry-After: 3600",))
    wire.proxy.decide = lambda seen: busy if is_list(seen) else Fault.NONE
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(TooManyRequests) as refusal:
        await wire.client.list_snapshots(SnapshotFilter())
    assert refusal.value.retry_after_seconds == 3600
    assert len([seen for seen, _ in wire.proxy.seen if is_list(seen)]) == 1


async def test_wrong_key_pair_is_unauthorized(wire: Wire) -> None:
    """Credentials that are not accepted are no outage, and are not tried again and again."""
    client = client_of(wire.proxy.url, client_id="nobody")
    with pytest.raises(Unauthorized, match="key pair"):
        await client.list_snapshots(SnapshotFilter())
    assert len(wire.proxy.seen) == 1
    await client.aclose()


async def test_every_failure_is_an_error_of_the_tree(wire: Wire) -> None:
    """each a clear error of our tree": nonsense of every kind, for a read, a change and a job."""
    nonsense = [
        Canned(200, b"<html><body>Please log in</body></html>", ("Content-Type: text/html",)),
        Canned(200, b'{"snapshots": [', ()),
        Canned(200),
        Canned(200, b"null"),
        Canned(200, b"[" * 100_000),
        Canned(200, b'{"snapshots": [{"snapshot_id": 5}], "total_count": 1, "job_id": 7}'),
        Canned(200, b'{"snapshots": {}, "total_count": "many", "job_id": null}'),
        Canned(200, b'{"snapshots": [], "total_count": "' + b"9" * 5000 + b'", "job_id": 7}'),
        Canned(200, b'{"code": 1400, "message": "PermissionDenied, access not allowed"}'),
        Canned(204),
        Canned(301, b"", ("Location: http://127.0.0.1:1/",)),
        Canned(403, b"<h1>Blocked</h1>"),
        Canned(404, b"<h1>Not Found</h1>"),
        Canned(418, b"teapot"),
        Canned(500, b"\xff\xfe"),
        Canned(503, b'{"code": "ServiceUnavailable", "message": "x"}'),
    ]
    client = client_of(wire.proxy.url, patience=replace(HASTY, lookup_seconds=0.05))
    for told in nonsense:
        wire.proxy.decide = lambda seen, told=told: Fault.NONE if seen.is_token else told
        with pytest.raises(ZoneError) as read:
            await client.list_snapshots(SnapshotFilter())
        assert not isinstance(read.value, NotFound), told
        wire.proxy.decide = lambda seen, told=told: told if seen.is_change else Fault.NONE
        with pytest.raises(ZoneError) as change:
            await client.create_volume("ss-aaaaaaaa", "copy")
        assert str(change.value)
    await client.aclose()


@pytest.mark.parametrize(("status", "code"), [("successful", ""), ("failed", "storage_full")])
async def test_a_cancelled_job_that_has_ended_otherwise_was_not_cancelled(status: str, code: str) -> None:
    """The answer of the cancellation itself says how the job ended."""
    job = {"job_id": "job-1", "job_action": "CreateSnapshots", "status": "working"}
    ended = job | {"status": status} | ({"error": {"code": code, "message": "3 of 4"}} if code else {})
    async with strange_zone() as (strange, zone):
        strange.answers = {
            "GET job-1": answer(job, 200, "x-snapshot-features: cancel"),
            "DELETE job-1": answer(ended, 200, "x-snapshot-features: cancel"),
        }
        with pytest.raises(NotUsable, match="has ended"):
            await zone.cancel_job("job-1")
