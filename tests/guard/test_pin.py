"""The PIN: attempts are counted across doors, processes and restarts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.errors import PinLocked, WrongPin
from snapshot_mcp.guard.consent.pin import CUT_OFF_SECONDS, FREE_ATTEMPTS, LOCKED_SECONDS, Pin
from snapshot_mcp.guard.consent.register import Register
from tests.guard.test_states import HandClock

PIN = "483920"


def another_process(home: Path, clock: HandClock) -> Pin:
    database = Database(home)
    return Pin(Register(database, Audit(database), clock))


def test_five_wrong_ones_lock_it_for_every_door_and_process(tmp_path: Path) -> None:
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    for attempt in range(FREE_ATTEMPTS):
        with pytest.raises(WrongPin):
            another_process(tmp_path, clock).check(f"00000{attempt}", door="page" if attempt % 2 else "terminal")
    with pytest.raises(PinLocked):
        another_process(tmp_path, clock).check(PIN, door="terminal")
    clock.wall += 10 * LOCKED_SECONDS
    with pytest.raises(PinLocked):
        another_process(tmp_path, clock).check(PIN, door="page")
    clock.uptime += LOCKED_SECONDS
    with pytest.raises(WrongPin):
        another_process(tmp_path, clock).check("000000", door="page")
    with pytest.raises(PinLocked):
        another_process(tmp_path, clock).check(PIN, door="page")
    clock.uptime += LOCKED_SECONDS
    another_process(tmp_path, clock).check(PIN, door="page")
    for _ in range(FREE_ATTEMPTS - 1):
        with pytest.raises(WrongPin):
            another_process(tmp_path, clock).check("000000", door="page")
    another_process(tmp_path, clock).check(PIN, door="page")


@pytest.mark.long
def test_parallel_guesses_get_no_more_attempts(tmp_path: Path) -> None:
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")

    def guess(number: int) -> str:
        try:
            another_process(tmp_path, clock).check(f"{number:06}", door="page")
        except PinLocked:
            return "locked"
        except WrongPin:
            return "wrong"
        return "right"

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(guess, range(24)))
    assert outcomes.count("wrong") == FREE_ATTEMPTS
    assert outcomes.count("locked") == 24 - FREE_ATTEMPTS


def events(home: Path) -> list[tuple[str, int | None]]:
    return [(one["event"], one.get("in_a_row")) for one in Audit(Database(home)).records()]


def test_the_right_one_is_recorded_as_right_and_a_wrong_one_as_wrong(tmp_path: Path) -> None:
    """“The right PIN must not be recorded as a wrong one”: the record had it as “1 wrong in a row”."""
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    another_process(tmp_path, clock).check(PIN, door="terminal")
    with pytest.raises(WrongPin, match="it is locked: 4"):
        another_process(tmp_path, clock).check("000000", door="page")
    another_process(tmp_path, clock).check(PIN, door="page")
    assert events(tmp_path) == [("PIN set", None), ("PIN right", None), ("PIN wrong", 1), ("PIN right", None)]


def test_an_attempt_whose_process_was_killed_counts_as_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who kills the process after it has looked wins no attempt, and the record says so."""
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")

    def killed(pin: str, salt: bytes) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("snapshot_mcp.guard.consent.pin._hash", killed)
        for _ in range(FREE_ATTEMPTS):
            with pytest.raises(KeyboardInterrupt):
                another_process(tmp_path, clock).check("000000", door="terminal")
    with pytest.raises(PinLocked):
        another_process(tmp_path, clock).check(PIN, door="terminal")
    clock.uptime += CUT_OFF_SECONDS
    clock.wall += CUT_OFF_SECONDS
    with pytest.raises(PinLocked):
        another_process(tmp_path, clock).check(PIN, door="terminal")
    assert ("PIN attempt cut off", FREE_ATTEMPTS) in events(tmp_path)
    clock.uptime += LOCKED_SECONDS
    another_process(tmp_path, clock).check(PIN, door="terminal")


@pytest.mark.long
def test_only_who_knows_it_can_change_it(tmp_path: Path) -> None:
    pin = another_process(tmp_path, HandClock())
    pin.set(PIN, None, by="operator")
    for old in (None, "", "000000"):
        with pytest.raises(WrongPin):
            pin.set("new-secret", old, by="operator")
    pin.set("new-secret", PIN, by="operator")
    pin.check("new-secret", door="terminal")
    with pytest.raises(WrongPin):
        pin.check(PIN, door="terminal")


@pytest.mark.parametrize("weak", ["", "12345", "111111", "121212", " 483920", "483920\n", "x" * 200])
def test_a_weak_one_is_refused(tmp_path: Path, weak: str) -> None:
    pin = another_process(tmp_path, HandClock())
    with pytest.raises(BadRequest):
        pin.set(weak, None, by="operator")
    assert not pin.is_set()


def test_it_is_kept_as_a_hash_and_in_no_record(tmp_path: Path) -> None:
    pin = another_process(tmp_path, HandClock())
    pin.set(PIN, None, by="operator")
    with pytest.raises(WrongPin):
        pin.check("guess-77", door="terminal")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert PIN.encode() not in content
        assert b"guess-77" not in content
