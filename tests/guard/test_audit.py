"""The audit finds what was changed, removed, reordered or cut off, and says where (GUARD.md, "Records")."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_mcp.ground.clock import SystemClock
from snapshot_mcp.guard import State
from snapshot_mcp.guard.consent.approval import Call, moment_to_text
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.audit import Audit, Verdict
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.errors import GuardBroken
from snapshot_mcp.guard.consent.pin import Pin
from snapshot_mcp.guard.consent.register import Register
from snapshot_mcp.guard.consent.seals import KEY_BYTES, Seals
from tests.guard.test_plan import CHAIN, deletion

PLAN = deletion(CHAIN, 2)


def call(number: int) -> Call:
    return Call("delete", (("snapshot_id", f"ss-{number}"),), "local", "/zone", "local", "a host 1")


def approvals(home: Path) -> Approvals:
    database = Database(home)
    return Approvals(Register(database, Audit(database), SystemClock()))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with ten records."""
    home = tmp_path_factory.mktemp("audit") / "home"
    store = approvals(home)
    for number in range(5):
        store.look(call(number), PLAN)
        store.open(call(number), PLAN)
    return home


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "home"))


def tamper(home: Path, *statements: str) -> None:
    """Change the file as somebody who knows SQLite."""
    with closing(sqlite3.connect(home / "guard.sqlite", isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER audit_is_not_changed")
        connection.execute("DROP TRIGGER audit_is_not_removed")
        for statement in statements:
            connection.execute(statement)


def test_an_untouched_record_verifies(home: Path) -> None:
    verdict = Audit(Database(home)).verify()
    assert (verdict.records, verdict.problem, verdict.note) == (10, "", "")


SWAP = (
    "UPDATE audit SET sequence = 99 WHERE sequence = 3",
    "UPDATE audit SET sequence = 3 WHERE sequence = 4",
    "UPDATE audit SET sequence = 4 WHERE sequence = 99",
)


@pytest.mark.parametrize(
    ("statements", "sequence", "problem"),
    [
        (("UPDATE audit SET record = replace(record, 'ss-1', 'ss-7') WHERE sequence = 4",), 4, "changed"),
        (("UPDATE audit SET mac = (SELECT mac FROM audit WHERE sequence = 2) WHERE sequence = 4",), 4, "changed"),
        (("DELETE FROM audit WHERE sequence = 4",), 4, "missing"),
        (("DELETE FROM audit WHERE sequence = 4", "UPDATE audit SET sequence = sequence - 1 WHERE sequence > 4"), 4, "changed"),
        (("DELETE FROM audit WHERE sequence = 1",), 1, "missing"),
        (SWAP, 3, "moved"),
        (("DELETE FROM audit WHERE sequence > 8",), 9, "9 to 10 were cut off"),
        (("DELETE FROM audit WHERE sequence = 10",), 10, "cut off"),
        (("DELETE FROM audit",), 1, "1 to 10 were cut off"),
        (("INSERT INTO audit SELECT 11, record, mac FROM audit WHERE sequence = 10",), 11, "inserted"),
    ],
    ids=["changed", "mac copied", "removed", "removed and renumbered", "first removed", "swapped", "tail cut", "last cut",
         "all gone", "replayed"],
)  # fmt: skip
def test_tampering_is_found_and_placed(home: Path, statements: tuple[str, ...], sequence: int, problem: str) -> None:
    tamper(home, *statements)
    verdict = Audit(Database(home)).verify()
    assert verdict.sequence == sequence
    assert problem in verdict.problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda home: (home / "audit.head").unlink(), "head record (audit.head) is missing"),
        (lambda home: (home / "audit.head").write_text("{}"), "cannot be read"),
        (lambda home: (home / "audit.key").unlink(), "key (audit.key) is missing"),
        (lambda home: (home / "audit.key").write_bytes(bytes(32)), "record 1 was changed"),
        (lambda home: (home / "guard.sqlite").unlink(), "1 to 10 were cut off"),
    ],
    ids=["head gone", "head empty", "key gone", "key replaced", "database gone"],
)
def test_missing_or_replaced_files_are_found(home: Path, change: Callable[[Path], object], problem: str) -> None:
    change(home)
    assert problem in Audit(Database(home)).verify().problem


def test_a_head_that_was_set_back_with_the_records_shows_by_its_seal(home: Path) -> None:
    head = json.loads((home / "audit.head").read_text())
    with closing(sqlite3.connect(home / "guard.sqlite")) as connection:
        mac = connection.execute("SELECT mac FROM audit WHERE sequence = 8").fetchone()[0]
    tamper(home, "DELETE FROM audit WHERE sequence > 8")
    (home / "audit.head").write_text(json.dumps(head | {"sequence": 8, "mac": mac}))
    assert "head record (audit.head) was changed" in Audit(Database(home)).verify().problem


def go_on(home: Path) -> None:
    """What happens after the copies are taken: plans alone, which no approval's row names, then an approval."""
    store = approvals(home)
    store.look(call(30), PLAN)
    store.look(call(31), PLAN)


def test_an_older_head_with_the_tail_cut_to_match_shows(home: Path) -> None:
    """“With an older `audit.head` restored and the tail cut it verifies”."""
    older = (home / "audit.head").read_bytes()
    go_on(home)
    tamper(home, "DELETE FROM audit WHERE sequence > 10")
    (home / "audit.head").write_bytes(older)
    verdict = Audit(Database(home)).verify()
    assert (verdict.sequence, "11 to 12 were cut off" in verdict.problem) == (11, True)
    go_on(home)
    assert Audit(Database(home)).verify().problem, "going on does not heal it"


def test_an_older_database_with_its_head_shows(home: Path, tmp_path: Path) -> None:
    """A backup of the records that was brought back without the key, whatever it hides."""
    shutil.copytree(home, tmp_path / "backup")
    go_on(home)
    for path in home.glob("guard.sqlite*"):
        path.unlink()
    for name in ("guard.sqlite", "audit.head"):
        shutil.copy(tmp_path / "backup" / name, home / name)
    assert "11 to 12 were cut off" in Audit(Database(home)).verify().problem


def test_a_cut_shows_in_the_approvals_where_head_and_mark_are_older_too(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "backup")
    approvals(home).open(call(30), PLAN)
    tamper(home, "DELETE FROM audit WHERE sequence > 10")
    for name in ("audit.head", "audit.key"):
        shutil.copy(tmp_path / "backup" / name, home / name)
    assert "is pending, and the last record about it says nothing" in Audit(Database(home)).verify().problem


def test_an_approval_that_was_changed_beside_the_record_shows(home: Path) -> None:
    with closing(sqlite3.connect(home / "guard.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE approvals SET state = 'granted', door = 'page' WHERE call LIKE '%ss-3%'")
    verdict = Audit(Database(home)).verify()
    assert (verdict.sequence, "is granted, and the last record about it says pending" in verdict.problem) == (8, True)


def test_a_key_without_records_says_that_they_were_removed(home: Path) -> None:
    """“with database and head gone and the key left it says that all 0 records are whole”."""
    for path in (*home.glob("guard.sqlite*"), home / "audit.head"):
        path.unlink()
    removed = "the key (audit.key) exists but there are no records: they were removed"
    assert Audit(Database(home)).verify().problem == removed
    go_on(home)
    assert "cut off" in Audit(Database(home)).verify().problem, "beginning anew does not heal it"


def test_a_key_that_an_earlier_version_wrote_gets_its_mark_with_the_next_record(home: Path) -> None:
    key = (home / "audit.key").read_bytes()[:KEY_BYTES]
    (home / "audit.key").write_bytes(key)
    assert Audit(Database(home)).verify().problem == ""
    go_on(home)
    mark = json.loads((home / "audit.key").read_bytes()[KEY_BYTES:])
    assert (mark["sequence"], Audit(Database(home)).verify()) == (12, Verdict(12))


def test_a_home_of_the_version_before_is_brought_forward(home: Path) -> None:
    """What it holds is kept, and it verifies as before; a PIN that was locked still is."""
    pin = Pin(approvals(home)._register)
    pin.set("483920", None, by="operator")
    with closing(sqlite3.connect(home / "guard.sqlite", isolation_level=None)) as connection:
        connection.execute("ALTER TABLE approvals DROP COLUMN job_end")
        connection.execute("DROP TABLE pin_attempts")
        connection.execute("DROP TABLE renames")
        connection.execute("DROP TABLE pin_places")
        connection.execute("DROP TABLE page")
        connection.execute("ALTER TABLE pin DROP COLUMN phrase")
        connection.execute("ALTER TABLE pin ADD COLUMN failures INTEGER NOT NULL DEFAULT 5")
        moment = moment_to_text(SystemClock().read())
        connection.execute(f"ALTER TABLE pin ADD COLUMN last_failure TEXT NOT NULL DEFAULT '{moment}'")
        connection.execute("PRAGMA user_version = 1")
    (home / "audit.key").write_bytes((home / "audit.key").read_bytes()[:KEY_BYTES])
    assert [(one.state, one.job_end) for one in approvals(home).list_all()] == [(State.PENDING, None)] * 5
    assert pin.is_locked()
    go_on(home)
    assert Audit(Database(home)).verify() == Verdict(13)


def test_a_first_record_that_was_never_committed_is_no_removal(tmp_path: Path) -> None:
    database = Database(tmp_path / "home")
    audit = Audit(database)

    def record_and_be_cut_off() -> None:
        with database.transaction() as connection:
            audit.append(connection, SystemClock().read(), "plan")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_and_be_cut_off()
    assert Audit(database).verify() == Verdict(0)
    (tmp_path / "home" / "audit.head").unlink()
    assert Audit(database).verify() == Verdict(0)


@pytest.mark.parametrize("cut", ["DELETE FROM audit WHERE sequence > 8", "DELETE FROM audit"])
def test_going_on_after_a_cut_does_not_heal_it(home: Path, cut: str) -> None:
    tamper(home, cut)
    store = approvals(home)
    for number in range(20, 32):
        store.open(call(number), PLAN)
    assert Audit(Database(home)).verify().problem


def test_going_on_without_the_head_does_not_make_a_new_one(home: Path) -> None:
    """Else who cuts the tail and removes the head only has to wait for the next record."""
    tamper(home, "DELETE FROM audit WHERE sequence > 8")
    (home / "audit.head").unlink()
    approvals(home).open(call(20), PLAN)
    assert "head record (audit.head) is missing" in Audit(Database(home)).verify().problem


def test_a_writer_killed_after_its_very_first_record_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(audit: Audit) -> None:
        raise KeyboardInterrupt

    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        patch.setattr(Audit, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            approvals(home).look(call(1), PLAN)
    verdict = Audit(Database(home)).verify()
    assert (verdict.records, verdict.problem) == (1, "")
    approvals(home).look(call(2), PLAN)
    assert Audit(Database(home)).verify().note == ""


def test_records_written_while_it_is_verified_are_no_tampering(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers go on while a person verifies."""
    real, left = Seals.key, [call(20), call(21)]

    def key(seals: Seals) -> bytes:
        late = left[:]
        left.clear()
        for one in late:
            approvals(home).open(one, PLAN)
        return real(seals)

    monkeypatch.setattr(Seals, "key", key)
    verdict = Audit(Database(home)).verify()
    assert (verdict.records, verdict.problem) == (10, "")
    assert left == []


def test_a_database_that_was_removed_and_begun_anew_shows(home: Path) -> None:
    (home / "guard.sqlite").unlink()
    approvals(home).open(call(9), PLAN)
    assert "2 to 10 were cut off" in Audit(Database(home)).verify().problem


def test_the_file_itself_refuses_changes(home: Path) -> None:
    with closing(sqlite3.connect(home / "guard.sqlite")) as connection:
        for statement in ("UPDATE audit SET record = ''", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_without_its_key_nothing_more_is_recorded_and_so_nothing_is_done(home: Path) -> None:
    (home / "audit.key").unlink()
    with pytest.raises(GuardBroken):
        approvals(home).open(call(9), PLAN)
    assert len(approvals(home).list_all()) == 5


def test_records_beyond_the_head_of_a_killed_writer_are_whole(home: Path) -> None:
    before = (home / "audit.head").read_bytes()
    approvals(home).open(call(9), PLAN)
    (home / "audit.head").write_bytes(before)
    verdict = Audit(Database(home)).verify()
    assert (verdict.problem, verdict.note) == ("", "1 newer than the head: a process was stopped before it sealed them")


WRITER = """
import sys
from pathlib import Path
from tests.guard.test_audit import PLAN, approvals, call
store = approvals(Path(sys.argv[1]))
for number in range(10):
    store.open(call(int(sys.argv[2]) * 100 + number), PLAN)
"""


@pytest.mark.long
def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    """They also create the file at the same time."""
    home = tmp_path / "home"
    command = [sys.executable, "-c", WRITER, str(home)]
    writers = [
        subprocess.Popen([*command, str(number)], cwd=Path(__file__).parent.parent.parent) for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    verdict = Audit(Database(home)).verify()
    assert (verdict.records, verdict.problem) == (40, "")
    assert len([one for one in approvals(home).list_all() if one.state is State.PENDING]) == 40


@pytest.mark.long
def test_the_commands_read_well_and_fail_on_tampering(home: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    environment |= {"SNAPSHOT_MCP_HOME": str(home), "COLUMNS": "80"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snapshot_mcp", "audit", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    shown = run()
    assert shown.returncode == 0
    assert "delete ss-4 in local" in shown.stdout
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    records = [json.loads(line) for line in run("--json").stdout.splitlines()]
    assert len(records) == 10
    days = sorted({record["at"][:10] for record in records})
    assert [line.split()[0] for line in lines if line.strip().endswith("UTC")] == days, (
        "each day once, above its records"
    )
    assert run("verify").stdout == "All 10 records are complete and in order.\n"
    tamper(home, "DELETE FROM audit WHERE sequence = 10")
    broken = run("verify")
    assert (broken.returncode, "cut off" in broken.stderr) == (1, True)
