"""The PIN: attempts are counted across processes and restarts, in terminals and at each link (GUARD.md, "PIN")."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.errors import PinLocked, WrongPin
from snapshot_mcp.guard.consent.pin import CUT_OFF_SECONDS, FREE_ATTEMPTS, LOCKED_SECONDS, MAX_PAUSE_SECONDS, Pin
from snapshot_mcp.guard.consent.register import Register
from tests.guard.test_states import HandClock
from tests.marks import long

PIN = "483920"


def another_process(home: Path, clock: HandClock) -> Pin:
    database = Database(home)
    return Pin(Register(database, Audit(database), clock))


def is_wrong(home: Path, clock: HandClock, link: str = "", pin: str = "000000") -> bool:
    """Whether an attempt was let in and was wrong; False if none may begin."""
    try:
        another_process(home, clock).check(pin, door="page" if link else "terminal", link=link)
    except WrongPin:
        return True
    except PinLocked:
        return False
    raise AssertionError("right")


def enter(home: Path, clock: HandClock, link: str = "") -> None:
    another_process(home, clock).check(PIN, door="page" if link else "terminal", link=link)


@pytest.mark.parametrize("link", [long(""), "ap-1"])
def test_five_wrong_ones_lock_their_place_in_every_process(tmp_path: Path, link: str) -> None:
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    assert [is_wrong(tmp_path, clock, link) for _ in range(FREE_ATTEMPTS + 1)] == [True] * FREE_ATTEMPTS + [False]
    with pytest.raises(PinLocked):
        enter(tmp_path, clock, link)
    clock.wall += 10 * LOCKED_SECONDS
    with pytest.raises(PinLocked):
        enter(tmp_path, clock, link)
    clock.uptime += LOCKED_SECONDS
    assert is_wrong(tmp_path, clock, link)
    with pytest.raises(PinLocked):
        enter(tmp_path, clock, link)
    clock.uptime += LOCKED_SECONDS
    enter(tmp_path, clock, link)
    for _ in range(FREE_ATTEMPTS - 1):
        assert is_wrong(tmp_path, clock, link)
    enter(tmp_path, clock, link)


def test_neither_terminals_nor_links_lock_each_other(tmp_path: Path) -> None:
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    for link in ("ap-1", ""):
        while is_wrong(tmp_path, clock, link):
            pass
        if link:
            assert not another_process(tmp_path, clock).is_locked()
            enter(tmp_path, clock)
    assert another_process(tmp_path, clock).is_locked()
    clock.uptime += 1
    enter(tmp_path, clock, "ap-2")
    with pytest.raises(PinLocked):
        enter(tmp_path, clock, "ap-1")


@pytest.mark.long
def test_new_links_win_nobody_more_than_a_guess_in_five_minutes(tmp_path: Path) -> None:
    """Who can ask for approvals can have as many links as there are things to delete."""
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    let_in = 0
    for second in range(0, 2 * 3600, 50):
        clock.uptime += 50
        let_in += is_wrong(tmp_path, clock, f"ap-{second}")
    assert let_in <= 15 + 2 * 3600 / MAX_PAUSE_SECONDS
    with pytest.raises(PinLocked, match="pause between attempts"):
        enter(tmp_path, clock, "ap-owner")
    enter(tmp_path, clock)
    clock.uptime += MAX_PAUSE_SECONDS
    enter(tmp_path, clock, "ap-owner")
    assert is_wrong(tmp_path, clock, "ap-after"), "a right one ends the pauses"
    assert is_wrong(tmp_path, clock, "ap-later")


@pytest.mark.parametrize("link", ["", "ap-1", "ap-{}"])
@pytest.mark.long
def test_parallel_guesses_get_no_more_attempts(tmp_path: Path, link: str) -> None:
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda number: is_wrong(tmp_path, clock, link.format(number)), range(24)))
    assert outcomes.count(True) == FREE_ATTEMPTS


def events(home: Path) -> list[tuple[str, int | None]]:
    return [(one["event"], one.get("in_a_row")) for one in Audit(Database(home)).records()]


def test_the_right_one_is_recorded_as_right_and_a_wrong_one_as_wrong(tmp_path: Path) -> None:
    """“The right PIN must not be recorded as a wrong one”: the record had it as “1 wrong in a row”."""
    clock = HandClock()
    another_process(tmp_path, clock).set(PIN, None, by="operator")
    another_process(tmp_path, clock).check(PIN, door="terminal")
    with pytest.raises(WrongPin, match="this link is locked: 4"):
        another_process(tmp_path, clock).check("000000", door="page", link="ap-1")
    enter(tmp_path, clock, "ap-1")
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


@pytest.mark.parametrize("phrase", ["ab", "x" * 61, "  a  "])
def test_a_phrase_of_no_use_is_refused_before_anything_is_changed(tmp_path: Path, phrase: str) -> None:
    pin = another_process(tmp_path, HandClock())
    with pytest.raises(BadRequest):
        pin.set(PIN, None, by="operator", phrase=phrase)
    assert not pin.is_set()


def test_a_phrase_stays_until_it_is_changed_and_is_in_no_record(tmp_path: Path) -> None:
    pin = another_process(tmp_path, HandClock())
    pin.set(PIN, None, by="operator", phrase=" blue\n bicycle ")
    pin.set("new-secret", PIN, by="operator")
    assert pin.phrase() == "blue bicycle"
    assert "bicycle" not in str(list(Audit(Database(tmp_path)).records()))
    pin.set("new-secret", "new-secret", by="operator", phrase="")
    assert pin.phrase() == ""


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
