"""Subscriptions in both eras: a resource's listeners hear that it has changed (ARCHITECTURE.md, "The MCP face")."""

from typing import Any

import anyio
import pytest
from mcp import types

from tests.patience import PATIENCE_SECONDS
from tests.server.lab import MIB, Lab, back_up, data_of


@pytest.mark.anyio
async def test_a_modern_listener_hears_of_a_job_and_of_a_chain(lab: Lab) -> None:
    await lab.add_disk("web", 32 * MIB)
    async with lab.connect("auto") as client:
        first = await back_up(client, "web", "one")
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "two"}))
        job, chain = f"job://local/{made['job_id']}", f"chain://local/{first}"
        with anyio.fail_after(PATIENCE_SECONDS):
            async with client.listen(resource_subscriptions=[job, chain]) as stream:
                third = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "two"}))
                assert third["status"] == "exists"
                heard: set[str] = set()
                await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]})
                fourth = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "four"}))
                while heard != {job, chain}:
                    event: Any = await anext(stream)
                    heard.add(event.uri)
                await client.call_tool("wait_for_job", {"job_ids": [fourth["job_id"]]})


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:resources/:mcp.shared.exceptions.MCPDeprecationWarning")
async def test_an_older_subscriber_hears_until_it_unsubscribes(lab: Lab) -> None:
    await lab.add_disk("web")
    heard: list[str] = []
    has_heard = anyio.Event()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            has_heard.set()

    async with lab.connect("legacy", message_handler=on_message) as client:
        assert client.server_capabilities is not None
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe
        first = await back_up(client, "web", "one")
        uri = f"snapshot://local/{first}"
        await client.session.subscribe_resource(uri)
        await client.session.subscribe_resource(uri)
        await client.session.subscribe_resource("other://thing")
        await back_up(client, "web", "two")
        with anyio.fail_after(PATIENCE_SECONDS):
            await has_heard.wait()
        assert set(heard) == {uri}
        await client.session.unsubscribe_resource(uri)
        count = len(heard)
        await back_up(client, "web", "three")
        assert len(heard) == count
        await client.session.subscribe_resource(uri)
        has_heard = anyio.Event()
        await client.call_tool("rename_snapshot", {"snapshot_id": first, "name": "first"})
        with anyio.fail_after(PATIENCE_SECONDS):
            await has_heard.wait()
        assert set(heard[count:]) == {uri}  # the end of “three” may be told once more: the stream repeats what was read


@pytest.mark.anyio
async def test_a_modern_listener_hears_of_a_new_name(lab: Lab) -> None:
    """A rename has no job whose end would tell."""
    await lab.add_disk("web")
    async with lab.connect("auto") as client:
        first = await back_up(client, "web", "one")
        wanted = {f"snapshot://local/{first}", f"chain://local/{first}"}
        with anyio.fail_after(PATIENCE_SECONDS):
            async with client.listen(resource_subscriptions=[*wanted, "job://local/none"]) as stream:
                await client.call_tool("rename_snapshot", {"snapshot_id": first, "name": "first"})
                heard: set[str] = set()
                while heard != wanted:
                    event: Any = await anext(stream)
                    heard.add(event.uri)
