"""What stands in a host's menus: zones, disks, chains and open approvals; and that a decision is heard of, not polled."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import ResourceListChangedNotification, ResourceTemplateReference, ResourceUpdatedNotification

from snapshot_mcp import app
from tests.marks import long, modern_first
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, back_up, data_of
from tests.server.test_consent import two_snapshots
from tests.server.test_resources_and_prompts import read
from tests.strange_zone import error, strange_zone

pytestmark = pytest.mark.anyio


async def titles_of(client: Client) -> dict[str, str]:
    """The title of each listed resource, with its description, by URI."""
    return {str(one.uri): f"{one.title}: {one.description}" for one in (await client.list_resources()).resources}


async def test_zones_disks_chains_and_open_approvals_are_listed_and_read(lab: Lab, mode: str) -> None:
    disk = await lab.add_disk("web\u202e\nFORGED")
    async with lab.connect(mode) as client:
        assert await titles_of(client) == {
            "zone://local": "Zone local: Its disks, and what protects each.",
            f"disk://local/{disk.id}": f"“web\ufffd FORGED”: volume, 2.0 MiB, {disk.id}",
        }
        first, second = await two_snapshots(client, disk.id)
        asked = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))
        assert asked["status"] == "needs_approval"
        listed = await titles_of(client)
        approval = f"approval://{asked['approval_id']}"
        assert list(listed) == [approval, "zone://local", f"disk://local/{disk.id}", f"chain://local/{first}"]
        assert listed[approval].startswith("Approval waiting")
        assert (await read(client, "zone://local"))["resources"] == [await read(client, f"disk://local/{disk.id}")]
        assert (await read(client, f"disk://local/{disk.id}"))["good_count"] == 2
        told = await read(client, approval)
        assert (told["state"], told["principal"]) == ("pending", "local")
        assert f"approve {asked['approval_id']}" in str(told["how_to_approve"])
        for uri in ("approval://ap-none", "zone://none", "disk://local/none"):
            with pytest.raises(MCPError) as caught:
                await client.read_resource(uri)
            assert caught.value.code == -32602, uri
        ids = await client.complete(
            ResourceTemplateReference(uri="approval://{approval_id}"), {"name": "approval_id", "value": ""}
        )
        assert ids.completion.values == [asked["approval_id"]]


async def test_looking_at_the_list_makes_no_file_and_opens_no_page(lab: Lab) -> None:
    async with lab.connect() as client:
        assert list(await titles_of(client)) == ["zone://local"]
    assert not lab.home.exists()


async def test_a_zone_that_cannot_be_reached_is_named_and_takes_nothing_away(make_lab: Callable[..., Lab]) -> None:
    async with strange_zone() as (zone, _):
        zone.answers = {"GET volumes": error(403, "X", "no")}
        config = f"""
            [zones.local]
            provider = "local"
            [zones.far]
            provider = "anchcloud"
            url = "{zone.proxy.url}"
            client_id = "someone"
            client_secret = "something"
            zone = "ac1"
        """
        lab = make_lab()
        assert lab.environ  # makes the file
        (lab.folder / "config.toml").write_text(config)
        disk = await lab.add_disk("web")
        async with lab.connect() as client:
            listed = await titles_of(client)
    assert list(listed) == ["zone://local", f"disk://local/{disk.id}", "zone://far"]
    assert "cannot be read now" in listed["zone://far"]


@modern_first
@pytest.mark.filterwarnings("ignore:resources/:mcp.shared.exceptions.MCPDeprecationWarning")
async def test_who_follows_an_approval_hears_that_it_was_decided(lab: Lab, mode: str) -> None:
    """And repeats its call then, instead of asking again and again."""
    await lab.add_disk("web")
    heard: list[str] = []
    decided = anyio.Event()

    async def note(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            decided.set()

    async with lab.connect(mode, message_handler=note) as client, anyio.create_task_group() as tasks:
        _, second = await two_snapshots(client, "web")
        asked = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))
        uri = f"approval://{asked['approval_id']}"

        async def decide() -> None:
            await app.build_guard(lab.settings).deny(asked["approval_id"])

        with anyio.fail_after(PATIENCE_SECONDS):
            if mode == "legacy":
                await client.session.subscribe_resource(uri)
                tasks.start_soon(decide)
                await decided.wait()
            else:
                async with client.listen(resource_subscriptions=[uri]) as stream:
                    tasks.start_soon(decide)
                    event = await anext(aiter(stream))
                    heard.append(str(event.uri))
        assert set(heard) == {uri}
        assert (await read(client, uri))["state"] == "denied"


@pytest.mark.parametrize("mode", ["legacy", long("auto")])
async def test_a_host_hears_that_the_list_has_changed(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    changes: list[str] = []
    heard = anyio.Event()

    async def note(message: Any) -> None:
        if isinstance(message, ResourceListChangedNotification):
            changes.append(message.method)
            heard.set()

    async with lab.connect(mode, message_handler=note) as client:
        assert client.server_capabilities.resources
        assert client.server_capabilities.resources.list_changed
        with anyio.fail_after(PATIENCE_SECONDS):
            if mode == "legacy":
                await client.call_tool("list_resources", {})
                await client.call_tool("show_chain", {"resource_id": "web"})
                assert not changes
                await back_up(client, "web", "first")
                await heard.wait()
            else:
                async with client.listen(resources_list_changed=True) as stream:
                    await back_up(client, "web", "first")
                    await anext(aiter(stream))
