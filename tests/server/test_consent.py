"""The guarded tools through a real client, in both eras: who is asked, and what each answer leads to."""

import fcntl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.session import ClientSession
from mcp.types import ElicitResult

from snapshot_mcp import app
from snapshot_mcp.guard import Client as GuardClient
from snapshot_mcp.guard import Guard, GuardedOutcome, Policy
from snapshot_mcp.server import elicitation
from snapshot_mcp.server.build import build_server
from tests.marks import long
from tests.server.lab import Lab, back_up, content, data_of, text_of

Answerer = Callable[[Any, Any], Awaitable[ElicitResult]]


class Person:
    """Answers the questions of a host: each reply is a word, `NAME` for the name asked for, or a dialog's end."""

    def __init__(self, *replies: str | ElicitResult) -> None:
        self.replies = list(replies)
        self.questions: list[str] = []

    async def __call__(self, context: Any, params: Any) -> ElicitResult:
        self.questions.append(params.message)
        assert list(params.requested_schema["properties"]) == ["answer"]
        field = params.requested_schema["properties"]["answer"]
        assert "default" not in field
        assert field.get("enum", ["keep"])[0] == "keep", "a list is shown with its first choice chosen"
        reply = self.replies.pop(0)
        return reply if isinstance(reply, ElicitResult) else ElicitResult(action="accept", content={"answer": reply})


async def two_snapshots(client: Client, disk: str) -> tuple[str, str]:
    return await back_up(client, disk, "one"), await back_up(client, disk, "two")


async def total(client: Client) -> int:
    return int(data_of(await client.call_tool("list_snapshots", {}))["total_count"])


@pytest.mark.anyio
async def test_an_accepted_deletion_is_a_job(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    person = Person("delete")
    async with lab.connect(mode, elicitation_callback=person) as client:
        _, second = await two_snapshots(client, "web")
        result = await client.call_tool("delete_snapshot", {"snapshot_id": second})
        assert data_of(result)["status"] == "started"
        assert data_of(result)["plan"]
        assert "submitted" in text_of(result)
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [data_of(result)["job_id"]]}))
        assert waited["outcome"] == "successful"
        assert await total(client) == 1
        gone = data_of(await client.call_tool("show_chain", {"resource_id": "web"}))["gone_count"]
        assert gone == 1
    assert len(person.questions) == 1
    assert second in person.questions[0] or "two" in person.questions[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reply",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"answer": "maybe"}),
        long(ElicitResult(action="accept", content={})),
        long(ElicitResult(action="accept", content={"confirm": True})),
        ElicitResult(action="accept"),
    ],
    ids=["decline", "cancel", "garbage", "empty", "another field", "nothing"],
)
async def test_what_is_no_answer_does_nothing_and_leaves_an_approval(lab: Lab, mode: str, reply: ElicitResult) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=Person(reply)) as client:
        _, second = await two_snapshots(client, "web")
        result = await client.call_tool("delete_snapshot", {"snapshot_id": second})
        assert data_of(result)["status"] == "needs_approval"
        assert data_of(result)["approval_id"] in text_of(result)
        assert data_of(result)["approval_expires_at"].endswith("Z")
        assert await total(client) == 2


@pytest.mark.anyio
async def test_a_persons_keep_is_final(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    person = Person("keep")
    async with lab.connect(mode, elicitation_callback=person) as client:
        _, second = await two_snapshots(client, "web")
        for _ in range(2):
            result = await client.call_tool("delete_snapshot", {"snapshot_id": second})
            assert data_of(result)["status"] == "declined"
            assert "approval_id" not in data_of(result)
        assert await total(client) == 2
    assert len(person.questions) == 1


@pytest.mark.anyio
async def test_without_elicitation_a_person_approves_outside_and_it_goes_through_once(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode) as client:
        _, second = await two_snapshots(client, "web")
        arguments = {"snapshot_id": second}
        first = data_of(await client.call_tool("delete_snapshot", arguments))
        again = data_of(await client.call_tool("delete_snapshot", arguments))
        assert first["status"] == again["status"] == "needs_approval"
        assert first["approval_id"] == again["approval_id"]
        assert await total(client) == 2
        await app.build_guard(lab.settings).approve(first["approval_id"], None)
        started = data_of(await client.call_tool("delete_snapshot", arguments))
        assert started["status"] == "started"
        repeated = await client.call_tool("delete_snapshot", arguments)
        assert repeated.is_error or data_of(repeated)["status"] != "started"
        await client.call_tool("wait_for_job", {"job_ids": [started["job_id"]]})
        assert await total(client) == 1


@pytest.mark.anyio
async def test_a_host_with_url_elicitation_only_is_not_asked_by_form(
    lab: Lab, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes 3.2: bare `{}` means form, `url` alone does not."""
    build = ClientSession._build_capabilities

    def url_only(self: ClientSession, *arguments: Any, **options: Any) -> Any:
        capabilities = build(self, *arguments, **options)
        assert capabilities.elicitation is not None
        capabilities.elicitation.form = None
        return capabilities

    monkeypatch.setattr(ClientSession, "_build_capabilities", url_only)
    await lab.add_disk("web")
    person = Person()
    async with lab.connect(mode, elicitation_callback=person) as client:
        _, second = await two_snapshots(client, "web")
        assert data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))["status"] == "needs_approval"
    assert person.questions == []


@pytest.mark.anyio
async def test_a_person_who_does_not_answer_in_time_is_nobodys_no(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes 3.3: an older host gives the call up after a minute, so the server must be back before."""
    monkeypatch.setattr(elicitation, "ASK_SECONDS", 0.1)
    await lab.add_disk("web")

    async def never(context: Any, params: Any) -> ElicitResult:
        await anyio.sleep_forever()
        raise AssertionError

    async with lab.connect("legacy", elicitation_callback=never) as client:
        _, second = await two_snapshots(client, "web")
        result = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))
        assert result["status"] == "needs_approval"
        assert await total(client) == 2


@pytest.mark.anyio
async def test_the_last_good_copy_takes_the_disks_name(lab: Lab, mode: str) -> None:
    """The name is typed where the plan takes the last good copy (GUARD.md, "Consent")."""
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=Person("delete", "web")) as client:
        only = await back_up(client, "web", "one")
        wrong = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": only}))
        assert wrong["status"] == "needs_approval"
        await app.build_guard(lab.settings).deny(wrong["approval_id"])
        assert await total(client) == 1
    async with lab.connect(mode, elicitation_callback=Person("web")) as client:
        await back_up(client, "web", "two")
        result = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": only}))
        assert result["status"] in {"started", "declined"}


@pytest.mark.anyio
async def test_a_roll_back_brings_the_disk_back_and_keeps_a_way_back(lab: Lab, mode: str) -> None:
    disk = await lab.add_disk("web")
    assert disk.path
    before = content(disk.path)
    person = Person("roll back", "roll back")

    async with lab.connect(mode, elicitation_callback=person) as client:
        snapshot_id = await back_up(client, "web", "good")
        changed = b"x" * len(before)
        with open(disk.path, "r+b") as file:  # noqa: PTH123
            file.write(changed)
        result = data_of(await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]}))
        assert result["status"] == "started"
        await client.call_tool("wait_for_job", {"job_ids": [result["job_id"]]})
        assert content(disk.path) == before
        (safety,) = result["safety_snapshot_ids"]
        back = data_of(await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [safety]}))
        await client.call_tool("wait_for_job", {"job_ids": [back["job_id"]]})
        assert content(disk.path) == changed
    assert len(person.questions) == 2


@pytest.mark.anyio
async def test_more_to_lose_between_question_and_answer_is_never_covered(lab: Lab, mode: str) -> None:
    """The zone changed for the worse: no action without a new question."""
    await lab.add_disk("web")
    asked: list[str] = []

    async def build_on_it_then_agree(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        if len(asked) == 1:
            async with lab.connect() as other:
                await back_up(other, "web", "three")
            return ElicitResult(action="accept", content={"answer": "delete"})
        return ElicitResult(action="accept", content={"answer": "keep"})

    async with lab.connect(mode, elicitation_callback=build_on_it_then_agree) as client:
        _, second = await two_snapshots(client, "web")
        result = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))
        assert result["status"] == ("declined" if mode == "auto" else "plan_changed")
        assert await total(client) == 3
    assert len(asked) == (2 if mode == "auto" else 1)


@pytest.mark.anyio
async def test_an_answer_that_nobody_asked_for_answers_nothing(lab: Lab) -> None:
    """Notes 3.1: a client that sends responses unasked is ignored and asked anyway."""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=Person()) as client:
        _, second = await two_snapshots(client, "web")
        result = await client.session.call_tool(
            "delete_snapshot",
            {"snapshot_id": second},
            allow_input_required=True,
            input_responses={"consent": ElicitResult(action="accept", content={"answer": "delete"})},
        )
        assert result.result_type == "input_required"
        assert await total(client) == 2


@pytest.mark.anyio
async def test_an_answer_replayed_destroys_nothing_twice(lab: Lab) -> None:
    """Notes 3.1: request state is not single-use; the plan must be."""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=Person()) as client:
        _, second = await two_snapshots(client, "web")
        arguments = {"snapshot_id": second}
        asked: Any = await client.session.call_tool("delete_snapshot", arguments, allow_input_required=True)
        yes = {"consent": ElicitResult(action="accept", content={"answer": "delete"})}
        statuses = []
        for _ in range(2):
            result: Any = await client.session.call_tool(
                "delete_snapshot",
                arguments,
                allow_input_required=True,
                input_responses=yes,
                request_state=asked.request_state,
            )
            if result.result_type == "input_required":
                statuses.append("asked")
            else:
                statuses.append("error" if result.is_error else result.structured_content["status"])
    assert statuses[0] == "started"
    assert statuses[1] != "started"


@pytest.mark.anyio
async def test_a_disk_in_use_is_refused_before_anybody_is_asked(lab: Lab, mode: str) -> None:
    """A guarded tool answers one model with a `status`; what cannot be done now is refused before a person is asked."""
    disk = await lab.add_disk("web")
    person = Person("roll back")
    async with lab.connect(mode, elicitation_callback=person) as client:
        first, _ = await two_snapshots(client, "web")
        with Path(disk.path or "").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            result = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [first]})
        assert result.is_error
        assert result.structured_content is None
        assert (result.meta or {})["code"] == "resource_busy"
        assert "is in use" in text_of(result)
        assert (person.questions, await total(client)) == ([], 2)
        again = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [first]})
        assert data_of(again)["status"] == "started"


@pytest.mark.anyio
async def test_nobody_is_asked_to_roll_back_to_what_is_damaged(lab: Lab, mode: str) -> None:
    """A restore point is as good as all that it builds on."""
    await lab.add_disk("web")
    person = Person()
    async with lab.connect(mode, elicitation_callback=person) as client:
        full, child = await two_snapshots(client, "web")
        path = lab.home / "zones" / "local" / "snapshots" / f"{full}.snap"
        path.write_bytes(path.read_bytes()[:-40])
        export = await client.call_tool("export_to_volume", {"snapshot_id": full, "volume_name": "copy"})
        await client.call_tool("wait_for_job", {"job_ids": [data_of(export)["job_id"]]})
        for snapshot_id, expected in (
            (full, f"“{full}” is known"),
            (child, f"“{child}” builds on “{full}”, which is known"),
        ):
            result = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]})
            assert result.is_error
            assert f"{expected} to be damaged" in text_of(result)
        assert person.questions == []


@pytest.mark.anyio
async def test_an_answer_after_eleven_minutes_still_counts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question is open for a quarter of an hour, also where it is put in rounds: people get up for a coffee."""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=Person()) as client:
        _, second = await two_snapshots(client, "web")
        arguments = {"snapshot_id": second}
        asked: Any = await client.session.call_tool("delete_snapshot", arguments, allow_input_required=True)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 11 * 60)
        result: Any = await client.session.call_tool(
            "delete_snapshot",
            arguments,
            allow_input_required=True,
            input_responses={"consent": ElicitResult(action="accept", content={"answer": "delete"})},
            request_state=asked.request_state,
        )
        assert result.structured_content["status"] == "started"


@pytest.mark.anyio
async def test_what_was_deleted_is_recovered(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=Person("delete")) as client:
        _, second = await two_snapshots(client, "web")
        deleted = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second}))
        await client.call_tool("wait_for_job", {"job_ids": [deleted["job_id"]]})
        gone = data_of(await client.call_tool("list_snapshots", {"status": ["deleted"]}))
        assert [row["snapshot_id"] for row in gone["snapshots"]] == [second]
        back = await client.call_tool("recover_snapshots", {"snapshot_ids": [second]})
        assert "submitted" in text_of(back)
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [data_of(back)["job_id"]]}))
        assert waited["outcome"] == "successful"
        assert await total(client) == 2


@pytest.mark.anyio
async def test_a_name_that_protects_cannot_be_taken_away(lab: Lab) -> None:
    """A protected name is no protection if a rename removes it."""
    lab.folder.joinpath("config.toml").write_text('[guard.protect]\nnames = ["gold-*"]\n')
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=Person("delete")) as client:
        snapshot_id = await back_up(client, "web", "gold-1")
        await back_up(client, "web", "two")
        renamed = await client.call_tool("rename_snapshot", {"snapshot_id": snapshot_id, "name": "tin"})
        assert renamed.is_error
        refused = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id}))
        assert refused["status"] == "refused"


class OpensAPage(Guard):
    """A guard that only sends the person to a page, and says what became of that."""

    async def delete_snapshot(self, zone: Any, snapshot_id: str, client: GuardClient) -> GuardedOutcome:
        assert client.can_open_url
        assert client.principal == "local"
        assert client.name
        assert client.version is not None
        answer = await client.open_url("ap-1", "Look at the plan.", "http://127.0.0.1:1/ap-1")
        return GuardedOutcome("needs_approval", answer.outcome)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("action", "expected"), [("accept", "accepted"), ("decline", "declined"), ("cancel", "cancelled")]
)
async def test_a_person_can_be_sent_to_a_page(lab: Lab, mode: str, action: Any, expected: str) -> None:
    async def open_page(context: Any, params: Any) -> ElicitResult:
        assert params.mode == "url"
        assert params.url == "http://127.0.0.1:1/ap-1"
        return ElicitResult(action=action)

    server = build_server(app.build_zones(lab.settings), lambda: OpensAPage(lab.home, Policy()))
    async with Client(server, mode=mode, elicitation_callback=open_page) as client:
        result = await client.call_tool("delete_snapshot", {"snapshot_id": "ss-1"})
    assert text_of(result).splitlines()[0] == f"Status: needs_approval. {expected}"


@pytest.mark.anyio
async def test_the_second_call_after_keep_says_when_that_was_said(lab: Lab, mode: str) -> None:
    """It must not read as if the person had just been asked, and it says when they can be asked again."""
    await lab.add_disk("web")
    person = Person("keep")
    async with lab.connect(mode, elicitation_callback=person) as client:
        _, second = await two_snapshots(client, "web")
        first, again = [await client.call_tool("delete_snapshot", {"snapshot_id": second}) for _ in range(2)]
    assert len(person.questions) == 1
    assert data_of(first)["declined_at"] == data_of(again)["declined_at"]
    for result in (first, again):
        told = data_of(result)
        assert told["status"] == "declined"
        assert told["declined_at"] < told["ask_again_at"]
        assert all(told[name] in text_of(result) for name in ("declined_at", "ask_again_at"))
        assert "just now" in text_of(result)
