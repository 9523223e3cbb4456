"""The server on its standard streams: every line is answered, and nothing that was received stays without an answer."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from snapshot_mcp.server.stdio import MAX_LINE_BYTES
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, data_of
from tests.server.test_leaving import CAPABILITIES, MODERN, WHO, Host, prepare, stopped_worker, submit
from tests.server.test_processes import SERVE, http_server

pytestmark = pytest.mark.anyio

PREFIX = "io.modelcontextprotocol"
META = {f"{PREFIX}/protocolVersion": MODERN, f"{PREFIX}/clientInfo": WHO, f"{PREFIX}/clientCapabilities": CAPABILITIES}


def call(number: Any, tool: str, **arguments: Any) -> bytes:
    params = {"name": tool, "arguments": arguments, "_meta": META}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


def piped(lab: Lab, *lines: bytes) -> tuple[list[dict[str, Any]], str]:
    """What a server answers to lines after which stdin is closed at once, and what it says on stderr."""
    done = subprocess.run(
        SERVE,
        input=b"\n".join(lines),
        env={**os.environ, **lab.environ},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


async def test_what_came_before_the_end_of_stdin_is_carried_out_and_answered(lab: Lab) -> None:
    """ "The host closes stdin right after a request": `cat requests | snapshot-mcp`."""
    for n in range(1, 4):
        await lab.add_disk(f"disk-{n}")
    lines = [call(n, "create_snapshots", resource_ids=[f"disk-{n}"], name="x", wait_seconds=50) for n in range(1, 4)]
    answers, said = piped(lab, *lines, call("last", "list_jobs"))
    assert sorted(map(str, (one["id"] for one in answers))) == ["1", "2", "3", "last"]
    made = [one["result"]["structuredContent"]["snapshot_ids"] for one in answers if one["id"] != "last"]
    async with lab.connect() as client:
        listed = data_of(await client.call_tool("list_snapshots", {}))["snapshots"]
    assert {one["snapshot_id"] for one in listed} == {one for ids in made for one in ids}
    assert said == ""


@pytest.mark.long
async def test_a_hundred_calls_before_the_end_of_stdin_are_all_answered(lab: Lab) -> None:
    """All were cut off together, five seconds after the end."""
    for n in range(3):
        await lab.add_disk(f"disk-{n}")
    lines = [call(n, "list_resources") for n in range(200)]
    made = [call(f"c{n}", "create_snapshots", resource_ids=[f"disk-{n}"], name="x") for n in range(3)]
    answers, _ = piped(lab, *lines, *made)
    assert len(answers) == 203
    assert all("result" in one for one in answers), [one for one in answers if "error" in one][:3]


@pytest.mark.long
def test_a_message_that_is_too_long_is_answered_with_its_id_wherever_that_stands(lab: Lab) -> None:
    """ "300,000 ids": the call was never answered, because the answer named nobody."""
    ids = [f"ss-{at:012}" for at in range(300_000)]
    before = call(1, "list_snapshots", snapshot_ids=ids)
    given = json.loads(before)
    after = json.dumps({key: given[key] for key in ("method", "params", "jsonrpc")} | {"id": "last"}).encode()
    nowhere = json.dumps({"jsonrpc": "2.0", "method": "x", "params": {"of": "x" * len(before)}}).encode()
    answers, said = piped(lab, before, after, nowhere, call(2, "list_snapshots"))
    assert [(one["id"], one["error"]["code"]) for one in answers[:-1]] == [
        (1, -32600),
        ("last", -32600),
        (None, -32600),
    ]
    assert all("longer than 4 MiB" in one["error"]["message"] for one in answers[:-1])
    assert answers[-1]["id"] == 2
    assert said == ""


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_waits_and_questions_end_when_stdin_does(lab: Lab, mode: str) -> None:
    """A wait answers what is so; nobody can answer the question any more, so the approval waits outside."""
    snapshot_id = await prepare(lab)
    with stopped_worker(lab):
        job_id = await submit(lab)
        host = Host(lab, mode)
        host.open()
        host.call("wait_for_job", job_ids=[job_id], timeout_seconds=50)
        host.call("delete_snapshot", snapshot_id=snapshot_id)
        host.write.close()
        told = [json.loads(line) for line in host.read.read().splitlines()]
        answers = {one["id"]: one["result"] for one in told if "result" in one}
        assert host.end() == (0, "")
    waited, deleted = answers[2], answers[3]
    assert waited["structuredContent"]["outcome"] == "still_running"
    if mode == "legacy":
        assert deleted["structuredContent"]["status"] == "needs_approval"


ODD_LINES: list[tuple[bytes, int, Any]] = [
    (b"nonsense", -32700, None),
    (b'{"jsonrpc":"2.0","id":7,"method":"tools/ca', -32700, None),
    (b'\xff\xfe{"jsonrpc"', -32700, None),
    (b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"\xff"}}', -32700, 7),
    (b'{"jsonrpc":"2.0","id":"x","method":"ping","params":{"a":"\\ud83d"}}', -32700, "x"),
    (b'{"jsonrpc":"2.0","id":"x","method":"ping","params":{"\\udc00":1}}', -32700, "x"),
    (b'[{"jsonrpc":"2.0","id":7,"method":"ping"}]', -32600, 7),
    (b"[]", -32600, None),
    (b"5", -32600, None),
    (b'{"id":7,"method":"ping"}', -32600, 7),
    (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', -32600, 7),
    (b'{"jsonrpc":"2.0","id":7,"method":5}', -32600, 7),
    (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}', -32600, 7),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
    (b'{"jsonrpc":"2.0","id":7,"method":"tools/list"}', -32600, 7),
    (b'{"jsonrpc":"2.0","id":7,"method":"no/such"}', -32601, 7),
    (b"[" * 100_000, -32700, None),
    (b'"' + b"x" * (MAX_LINE_BYTES + 1) + b'"', -32600, None),
]


def test_every_odd_line_is_answered_with_the_id_where_there_is_one(lab: Lab) -> None:
    """ "An unreadable line, a BOM before the first, a batch: silence"; and the calls around them are answered too."""
    ping = b'\xef\xbb\xbf{"jsonrpc":"2.0","id":"first","method":"ping"}'
    answers, said = piped(lab, ping, *(line for line, _, _ in ODD_LINES), ping[3:].replace(b"first", b"last"))
    results = [one["id"] for one in answers if "result" in one]
    errors = [(one["error"]["code"], one["id"]) for one in answers if "error" in one]
    assert sorted(results) == ["first", "last"]
    assert sorted(map(str, errors)) == sorted(str((code, number)) for _, code, number in ODD_LINES)
    assert all(one["error"]["message"] for one in answers if "error" in one)
    assert said == ""


HALF, YES = '{"action": "accept", "content": {"answer": "\\ud83d"}}', '{"action": "yes"}'
OTHERS = (
    '{"action": "accept"}',
    '{"action": "accept", "content": {"answer": ["web"]}}',
    '{"content": {"answer": "web"}}',
    '"web"',
)


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("legacy", HALF),
        long("auto", YES),
        long("legacy", YES),
        long("auto", HALF),
        *(long(mode, one) for mode in ("auto", "legacy") for one in OTHERS),
    ],
)
async def test_an_answer_that_is_none_leads_to_the_second_door(lab: Lab, mode: str, answer: str) -> None:
    """Half an emoji in an answer let the call hang; `yes` as an action was an internal error."""
    snapshot_id = await prepare(lab)
    host = Host(lab, mode)
    host.open()
    host.call("delete_snapshot", snapshot_id=snapshot_id)
    asked = json.loads(host.read.readline())
    if mode == "legacy":
        host.write.write(f'{{"jsonrpc": "2.0", "id": {asked["id"]}, "result": {answer}}}\n'.encode())
        host.write.flush()
    else:
        more = {"requestState": asked["result"]["requestState"], "inputResponses": {"consent": "ANSWER"}}
        line = json.dumps({"id": 9, "params": {"name": "delete_snapshot", "arguments": {"snapshot_id": snapshot_id}}})
        message = json.loads(line) | {"jsonrpc": "2.0", "method": "tools/call"}
        message["params"] |= more | {"_meta": META}
        host.write.write(json.dumps(message).replace('"ANSWER"', answer).encode() + b"\n")
        host.write.flush()
    told = json.loads(host.read.readline())
    while "id" not in told:  # that the list of resources has changed
        told = json.loads(host.read.readline())
    host.leave("input")
    assert host.end() == (0, "")
    if "error" in told:
        assert (told["id"], told["error"]["code"]) == (9, -32700)
        return
    status = told["result"].get("structuredContent", {}).get("status")
    assert status == "needs_approval" or told["result"].get("resultType") == "input_required"
    async with lab.connect() as client:
        assert data_of(await client.call_tool("list_snapshots", {}))["total_count"] == 1


@pytest.mark.parametrize("state", [long("idle"), "busy", long("http")])
async def test_one_interrupt_ends_a_server_quietly(lab: Lab, state: str) -> None:
    """ "Ctrl-C: an idle server survives two; a busy one ends with a traceback"."""
    await prepare(lab)
    if state == "http":
        with http_server(lab) as (_, process):
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.read() == ""
            assert process.wait(PATIENCE_SECONDS) == 130
        return
    with stopped_worker(lab):
        job_id = await submit(lab)
        host = Host(lab, "auto")
        host.open()
        if state == "busy":
            host.call("wait_for_job", job_ids=[job_id], timeout_seconds=50)
            host.read.readline()
        host.process.send_signal(signal.SIGINT)
        assert host.end() == (130, "")
        host.leave("input")


@pytest.mark.parametrize(
    ("redirection", "status", "lines"), [(">/dev/full", 1, 1), long("2>&-", 0, 0), long("</dev/null", 0, 0)]
)
def test_closed_and_full_streams_are_one_line_at_most(lab: Lab, redirection: str, status: int, lines: int) -> None:
    command = f"{sys.executable} -m snapshot_mcp serve {redirection}"
    done = subprocess.run(
        ["sh", "-c", command],
        input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
        env={**os.environ, **lab.environ},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (status, lines), done.stderr
    assert b"Traceback" not in done.stderr


def test_a_file_is_read_and_written(lab: Lab, tmp_path: Path) -> None:
    """`snapshot-mcp <requests >answers`: files are always ready, which an event loop cannot watch."""
    (tmp_path / "requests").write_bytes(call(1, "list_snapshots") + b"\n" + call(2, "list_jobs"))
    with (tmp_path / "requests").open("rb") as source, (tmp_path / "answers").open("wb") as sink:
        subprocess.run(
            SERVE,
            stdin=source,
            stdout=sink,
            env={**os.environ, **lab.environ},
            timeout=PATIENCE_SECONDS,
            check=True,
        )
    assert len((tmp_path / "answers").read_bytes().splitlines()) == 2


@pytest.mark.long
async def test_a_host_that_does_not_read_holds_up_nobody(lab: Lab) -> None:
    """Its own answers wait, the server stays alive and takes them up again."""
    await prepare(lab)
    host = Host(lab, "auto")
    host.open()
    for _ in range(300):
        host.call("list_resources")
    sleep(0.5)
    assert host.process.poll() is None
    numbers = [json.loads(host.read.readline())["id"] for _ in range(300)]
    assert sorted(numbers) == list(range(2, 302))
    host.leave("input")
    assert host.end() == (0, "")


def odd_line(chance: random.Random) -> bytes:
    """A line that was a request once."""
    request = json.loads(call(chance.choice([1, "a", 0, -5]), chance.choice(["list_snapshots", "list_jobs", "nobody"])))
    values = [None, True, 1.5, [], {}, "\ud83d", "", "x" * 300, 10**400, float("nan"), {"_meta": 5}, [1, [2]]]
    for _ in range(chance.randrange(4)):
        at = chance.choice([request, request.get("params"), request])
        if isinstance(at, dict):
            key = chance.choice([*at, "id", "extra", "\udc00"])
            if chance.random() < 0.3:
                at.pop(key, None)
            else:
                at[key] = copy.deepcopy(chance.choice(values))
    line = bytearray(json.dumps(chance.choice([request, request, [request], request.get("params")])).encode())
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        if line:
            line[chance.randrange(len(line))] = chance.randrange(256)
    return bytes(line).replace(b"\n", b" ").replace(b"\r", b" ")


def expects_answer(line: bytes) -> bool:
    """Whether JSON-RPC wants one: all but blank lines, notifications and answers to what was never asked."""
    if not line.strip():
        return False
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return True
    if not isinstance(data, dict) or data.get("jsonrpc") != "2.0":
        return True
    if "\\ud83d" in line.decode(errors="replace") or "\\udc00" in line.decode(errors="replace"):
        return True
    is_method = isinstance(data.get("method"), str)
    is_fine = isinstance(data.get("params"), dict | None)
    if is_method and is_fine and "id" not in data:
        return False
    return is_method or not {"result", "error"} & data.keys()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_twenty_thousand_odd_lines_are_each_answered(lab: Lab, seed: int) -> None:
    """Two thousand a seed: each is answered or is a notification, the server lives to the last, and there is no traceback."""
    chance = random.Random(seed)
    lines = [odd_line(chance) for _ in range(2000)]
    last = b'{"jsonrpc":"2.0","id":"the last","method":"ping"}'
    answers, said = piped(lab, last.replace(b"last", b"first"), *lines, last)
    assert {"the first", "the last"} <= {one["id"] for one in answers if "result" in one}
    assert "Traceback" not in said
    expected = sum(map(expects_answer, lines)) + 2
    assert len([one for one in answers if "method" not in one]) == expected
