"""SQLite files: private, durable, migrated once whoever comes first, never by an older program."""

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_mcp.ground.sqlite import NewerFormat, execute_script, open_migrated, transaction, version_of

SCRIPT = """
CREATE TABLE notes (text TEXT);  -- a comment; with a semicolon
CREATE TABLE counted (number INTEGER);
INSERT INTO counted VALUES (0);
CREATE TRIGGER count_them AFTER INSERT ON notes BEGIN
    UPDATE counted SET number = number + 1;
    UPDATE counted SET number = number + 0;
END;
INSERT INTO notes VALUES ('one; two')
"""


def first(connection: sqlite3.Connection) -> None:
    execute_script(connection, SCRIPT)


def second(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO notes VALUES ('second')")


def broken(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO notes VALUES ('half')")
    raise ZeroDivisionError


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY rowid")]


def test_a_file_is_made_private_durable_and_migrated_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with closing(open_migrated(path, [first], busy_seconds=5)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("SELECT number FROM counted").fetchone()["number"] == 1
        assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o600}
    with closing(open_migrated(path, [first, second], busy_seconds=5)) as connection:
        assert version_of(connection) == 2
    assert notes(path) == ["one; two", "second"]


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with pytest.raises(ZeroDivisionError):
        open_migrated(path, [first, broken], busy_seconds=5)
    assert notes(path) == ["one; two"]
    with closing(open_migrated(path, [first, second], busy_seconds=5)) as connection:
        assert version_of(connection) == 2


def test_a_newer_file_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    open_migrated(path, [first, second], busy_seconds=5).close()
    with pytest.raises(NewerFormat) as caught:
        open_migrated(path, [first], busy_seconds=5)
    assert caught.value.version == 2
    assert notes(path) == ["one; two", "second"]


def test_a_transaction_is_whole_or_had_never_been(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with closing(open_migrated(path, [first], busy_seconds=5)) as connection:
        with pytest.raises(ZeroDivisionError), transaction(connection):
            broken(connection)
        with transaction(connection):
            second(connection)
    assert notes(path) == ["one; two", "second"]


MANY = """
import sys
from pathlib import Path
from snapshot_mcp.ground.sqlite import open_migrated
from tests.ground.test_sqlite import first, second
sys.stdin.read()
open_migrated(Path(sys.argv[1]), [first, second], busy_seconds=60).close()
"""


@pytest.mark.long
def test_processes_and_threads_that_come_first_together_migrate_once(tmp_path: Path) -> None:
    """Switching to WAL does not wait its turn as transactions do, and a closed file drops a process's locks on it."""
    path = tmp_path / "file.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MANY, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) for _ in range(4)]
    connections: list[sqlite3.Connection] = []

    def come() -> None:
        connections.append(open_migrated(path, [first, second], busy_seconds=60))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len(connections) == 8
    for connection in connections:
        connection.close()
    assert notes(path) == ["one; two", "second"]
