"""A provider that answers strangely: nothing is called done that is not, nothing passed on that was not asked for."""

import base64
from dataclasses import replace

import anyio
import pytest
from pydantic import SecretStr

from snapshot_mcp.contract.errors import (
    Forbidden,
    NotFound,
    OutcomeUnknown,
    QuotaExceeded,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import (
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotResource,
    SnapshotUpdate,
    Volume,
)
from snapshot_mcp.contract.states import SnapshotType
from snapshot_mcp.guard.plan.gather import gather_deletion_facts
from snapshot_mcp.providers.anchcloud.filters import FilterIgnored, resources_page, snapshots_page
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.zones import Zones
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import HASTY, KEY_PAIR, client_of
from tests.strange_zone import TOKEN, answer, error, page, snapshots, strange_zone

pytestmark = pytest.mark.anyio

SECRET = KEY_PAIR.client_secret.get_secret_value()
BRIEF = replace(HASTY, lookup_seconds=0.05, read_tries=1)


def row(snapshot_id: str, disk: str = "vol-a", root_id: str = "", **fields: object) -> dict[str, object]:
    return {
        "snapshot_id": snapshot_id,
        "snapshot_type": 0 if root_id else "IS_FULL",
        "status": "available",
        "root_id": root_id or snapshot_id,
        "parent_id": root_id or "self",
        "resource": {"resource_id": disk, "resource_name": disk, "resource_type": "volume"},
        **fields,
    }


TWO_DISKS = (row("ss-a1"), row("ss-a2", root_id="ss-a1"), row("ss-b1", "vol-b"), row("ss-b2", "vol-b", "ss-b1"))


@pytest.mark.parametrize("secret", [SECRET, 'a5/+slash\\quote"ü€'])
async def test_what_a_zone_repeats_of_our_secrets_is_hidden(secret: str) -> None:
    """Secrets are in no log line, error or repr, whichever answer repeats them, and however it is escaped."""
    pair = base64.b64encode(f"{KEY_PAIR.client_id}:{secret}".encode()).decode()  # as good as the secret
    options = {"client_secret": SecretStr(secret), "patience": BRIEF}
    told: list[str] = []

    async def fail(client: AnchCloudZone) -> None:
        for call in (
            client.list_snapshots(SnapshotFilter()),
            client.create_snapshots(["vol-a"], "nightly"),
            client.update_snapshot("ss-1", SnapshotUpdate(snapshot_name="x")),
            client.get_job("j"),
        ):
            with pytest.raises(ZoneError) as caught:
                await call
            told.append(f"{caught.value} {caught.value!r} {vars(caught.value)}")

    async with strange_zone(**options) as (zone, client):
        for text in (secret, pair, TOKEN):
            for nonsense in (page(200, text), page(502, text), error(400, "x", text), error(401, "x", text)):
                zone.answers = dict.fromkeys(("POST volume_snapshots", "PUT volume_snapshots/", "GET job/"), nonsense)
                zone.answers["GET volume_snapshots"] = snapshots(total_count=text)
                await fail(client)
                zone.answers |= dict.fromkeys(("POST token", "GET volume_snapshots"), nonsense)
                await fail(client)
                if text != TOKEN:  # which a client that never got one cannot know
                    stranger = client_of(zone.proxy.url, **options)
                    await fail(stranger)
                    await stranger.aclose()
    everything = "\n".join(told)
    assert everything.count("•••") > 50
    for hidden in (secret, pair, TOKEN):
        assert hidden not in everything


async def test_a_pause_that_a_zone_asks_for_is_kept_by_every_call() -> None:
    """`Retry-After` honoured: who asks on in the meantime is throttled for longer. Changes have a limit of their own."""
    async with strange_zone() as (zone, client):
        for throttled in (error(429, "Throttled", "slow", "Retry-After: 300"), page(503, "busy", "Retry-After: 300")):
            zone.answers = {"GET volume_snapshots": throttled, "POST volume_snapshots": answer({"job_id": "j"})}
            with pytest.raises((TooManyRequests, Unavailable), match="300 s"):
                await client.list_snapshots(SnapshotFilter())
            asked = len(zone.proxy.seen)
            for _ in range(20):
                with pytest.raises(TooManyRequests, match="rate-limited by"):
                    await client.get_job("j")
            with pytest.raises(TooManyRequests, match="not carried out"):
                await client.create_snapshots(["vol-a"], "nightly")
            assert len(zone.proxy.seen) == asked
            client._session._limited_until.clear()  # as if it were over
            zone.answers = {"POST volume_snapshots": throttled}
            with pytest.raises((TooManyRequests, OutcomeUnknown)):
                await client.create_snapshots(["vol-a"], "nightly")
            assert (await client.list_snapshots(SnapshotFilter())).items == ()
            client._session._limited_until.clear()


async def test_a_short_pause_is_waited_for() -> None:
    """A read has time: it is tried again after the pause, of an outage too."""
    for status in (429, 503):
        async with strange_zone() as (zone, client):
            left = [error(status, "x", "busy", "Retry-After: 0")] * 2
            zone.answers = {"GET volume_snapshots": lambda seen, left=left: left.pop() if left else snapshots()}
            with anyio.fail_after(PATIENCE_SECONDS):
                assert (await client.list_snapshots(SnapshotFilter())).items == ()


@pytest.mark.parametrize("life", [1, 0, -1, None, "", "60", 59.5, "soon", 10**400, [1]])
async def test_a_token_is_used_whatever_is_said_of_its_life(life: object) -> None:
    """RFC 6749: `expires_in` may be left out. What makes no sense of it must not keep a good token from being used."""
    async with strange_zone() as (zone, client):
        zone.answers = {"POST token": answer({"access_token": TOKEN, "token_type": "bearer", "expires_in": life})}
        for _ in range(2):
            assert (await client.list_snapshots(SnapshotFilter())).items == ()
        assert zone.asked("/token") == 1


async def test_a_zone_without_a_list_of_jobs_can_be_worked_with() -> None:
    """A provider may lack it: changes are made, jobs are followed one by one, and the list itself is unsupported, not empty."""
    states = {"a": "working", "b": "working"}
    for nothing in (page(404, "nginx"), error(404, "NotFound", "no such path"), error(405, "x", "y")):
        async with strange_zone() as (zone, client):
            zone.answers = {
                "GET unfinished_jobs": nothing,
                "GET job/": lambda seen: answer({"job_id": seen.target[-1], "status": states[seen.target[-1]]}),
                "POST volume_snapshots": answer({"job_id": "a", "status": "pending"}),
            }
            states.update(a="working", b="working")
            with pytest.raises(Unsupported, match="does not list its jobs"):
                await client.list_unfinished_jobs()
            assert (await client.create_snapshots(["vol-a"], "nightly")).job_id == "a"

            async def end(jobs: object) -> None:
                states.update(a="successful", b="failed")

            with anyio.fail_after(PATIENCE_SECONDS):
                async with Zones({"remote": lambda client=client: client}) as zones:
                    jobs = await zones.get().watcher.wait(["a", "b"], 8, end)
            assert [job.status for job in jobs] == ["successful", "failed"]


async def test_a_key_that_may_not_list_jobs_may_follow_its_own() -> None:
    """Permissions are the provider's: what one call is refused, another may do."""
    async with strange_zone() as (zone, client):
        zone.answers = {
            "GET unfinished_jobs": error(403, "PermissionDenied", "not yours"),
            "GET job/": lambda seen: answer({"job_id": seen.target[-1], "status": "successful"}),
        }
        with anyio.fail_after(PATIENCE_SECONDS):
            async with Zones({"remote": lambda: client}) as zones:
                jobs = await zones.get().watcher.wait(["a", "b"], 8)
        assert all(job.is_successful for job in jobs)
        zone.answers["GET job/"] = error(403, "PermissionDenied", "not yours either")
        with anyio.fail_after(PATIENCE_SECONDS):
            async with Zones({"remote": lambda: client}) as zones:
                with pytest.raises(Forbidden, match="not permitted"):
                    await zones.get().watcher.wait(["a", "b"], 8)


async def test_another_job_than_the_one_asked_for_is_not_taken_for_it() -> None:
    """Nothing is called done that is not."""
    async with strange_zone() as (zone, client):
        zone.answers = {"GET job/": answer({"job_id": "other", "status": "successful"})}
        with pytest.raises(Unavailable, match="other"):
            await client.get_job("mine")


async def test_a_redirected_change_may_have_been_carried_out() -> None:
    """A 303 is what follows on a POST that was carried out; only what was not sent is told as not sent."""
    async with strange_zone(patience=BRIEF) as (zone, client):
        for status in (301, 302, 303, 307, 308):
            zone.answers = {"POST volume_snapshots": page(status, "", "Location: /v2/zone/ac1/job/j")}
            with pytest.raises(OutcomeUnknown, match=f"redirects are not followed \\({status}\\)"):
                await client.create_snapshots(["vol-a"], "nightly")
        zone.answers = {"POST volume_snapshots": page(404, "nginx")}
        with pytest.raises(Unavailable, match="not from the API") as refused:
            await client.create_snapshots(["vol-a"], "nightly")
        assert "Nothing was sent" not in str(refused.value)


async def test_text_that_no_wire_carries_is_a_bad_request_or_finds_nothing() -> None:
    """Half a surrogate pair has no UTF-8: an error of the tree, not of the codec."""
    async with strange_zone() as (_, client):
        assert (await client.list_snapshots(SnapshotFilter(search_word="\ud800", tags=("\ud800",)))).items == ()
        for call in (
            client.get_job("\ud800"),
            client.delete_snapshot("\ud800"),
            client.create_snapshots(["\ud800"], "\ud800"),
        ):
            with pytest.raises(ZoneError):
                await call


async def test_other_disks_do_not_count_where_a_zone_ignores_filters() -> None:
    """The guard's last good copy: another disk's restore points are none of this one's."""
    async with strange_zone() as (zone, client):
        zone.answers = {"GET volume_snapshots": snapshots(*TWO_DISKS)}
        facts = await gather_deletion_facts(client, "remote", "ss-a1")
        assert {one.snapshot_id for one in facts.restore_points} == {"ss-a1", "ss-a2"}
        zone.answers = {"GET volume_snapshots": snapshots(*TWO_DISKS, total_count=400)}
        with pytest.raises(Unavailable, match="ignores the filter"):
            await gather_deletion_facts(client, "remote", "ss-a1")
        zone.answers["POST volume_snapshots"] = answer({"job_id": "j"})
        assert (await client.create_snapshots(["vol-a"], "nightly")).job_id == "j", "backing up needs no list"


async def test_a_list_that_never_ends_is_given_up() -> None:
    """A page that brings nothing new will not be followed by one that does."""
    async with strange_zone() as (zone, client):
        zone.answers = {"GET volume_snapshots": snapshots(row("ss-a1"), total_count=10**15)}
        with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match="kept changing"):
            await gather_deletion_facts(client, "remote", "ss-a1")
        assert len(zone.proxy.seen) < 20


ROWS = [Snapshot.model_validate({**one, "tags": ["gold"] if one["root_id"] == "ss-b1" else []}) for one in TWO_DISKS]
FILTERS = [
    ({"snapshots": ("ss-a2", "ss-b1")}, ["ss-a2", "ss-b1"]),
    ({"resource_id": "vol-b"}, ["ss-b1", "ss-b2"]),
    ({"root_id": "ss-a1"}, ["ss-a1", "ss-a2"]),
    ({"snapshot_type": SnapshotType.FULL}, ["ss-a1", "ss-b1"]),
    ({"status": ("deleted",)}, []),
    ({"status": ("AVAILABLE",)}, ["ss-a1", "ss-a2", "ss-b1", "ss-b2"]),
    ({"resource_id": "vol-a", "search_word": "A2"}, ["ss-a2"]),
    ({"snapshots": ("ss-a1", "ss-b1"), "tags": ("silver", "gold")}, ["ss-b1"]),
    ({"resource_id": "vol-a", "offset": 1, "limit": 1}, ["ss-a2"]),
    ({"offset": 1, "limit": 2}, ["ss-a2", "ss-b1"]),
]


@pytest.mark.parametrize(("query", "expected"), FILTERS)
def test_a_whole_list_is_filtered_here(query: dict[str, object], expected: list[str]) -> None:
    found = snapshots_page(SnapshotFilter.model_validate(query), ROWS, len(ROWS), "Listing")
    assert [one.snapshot_id for one in found.items] == expected


def test_a_page_that_keeps_the_filter_is_passed_on_as_it_came() -> None:
    """What a zone leaves out of its rows is not held against it, and its own count stands."""
    bare = [Snapshot(snapshot_id="ss-1"), Snapshot(snapshot_id="ss-2", root_id="ss-1")]
    query = SnapshotFilter(resource_id="vol-a", root_id="ss-1", snapshot_type=SnapshotType.FULL, offset=20)
    found = snapshots_page(query, bare, 22, "Listing")
    assert (list(found.items), found.total_count) == (bare, 22)
    counted_by_page = snapshots_page(query, bare, 2, "Listing")
    assert list(counted_by_page.items) == bare, "what is there is not hidden because the count makes no sense"
    volumes = [Volume(volume_id=f"vol-{number}", volume_name="x", status="in-use") for number in range(3)]
    query_of = ResourceFilter(search_word="y", limit=2)
    assert [one.id for one in resources_page(query_of, volumes, 30, "Listing").items] == ["vol-0", "vol-1"]
    assert resources_page(ResourceFilter(ids=("vol-2",)), volumes, 3, "Listing").items == (volumes[2],)


def test_of_a_part_of_a_list_and_of_unnamed_disks_nothing_can_be_said() -> None:
    with pytest.raises(FilterIgnored, match="ss-b1"):
        snapshots_page(SnapshotFilter(resource_id="vol-a"), ROWS, 5, "Listing")
    unnamed = [Snapshot(snapshot_id="ss-1", resource=SnapshotResource()), *ROWS]
    with pytest.raises(FilterIgnored, match="ss-1"):
        snapshots_page(SnapshotFilter(resource_id="vol-a"), unnamed, len(unnamed), "Listing")


async def test_errors_of_providers_with_numbers_or_words_find_their_place() -> None:
    """permission, absence, throttling and outage told apart": by the word that a code or a message begins with."""
    for told, kind in (
        (error(403, "QuotaExceeded", "x"), QuotaExceeded),
        (error(403, "InvalidToken", "x"), Forbidden),
        (error(200, 1400, "PermissionDenied, access denied"), Forbidden),
        (error(200, 2100, "ResourceNotFound, ss-1"), NotFound),
        (error(400, "1300", "the token of the thing, was odd"), ZoneError),
        (error(401, 1200, "x"), Unauthorized),
    ):
        async with strange_zone() as (zone, client):
            zone.answers = {"GET volume_snapshots": told}
            with pytest.raises(kind) as caught:
                await client.list_snapshots(SnapshotFilter())
            assert not (kind is ZoneError and isinstance(caught.value, Unauthorized))
