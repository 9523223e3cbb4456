"""SQLite files: private, WAL, `synchronous=FULL`, with numbered migrations.

`PRAGMA user_version` is the number of migrations applied. Any number of processes and threads may open a file, even while it
is being created. Blocking.
"""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from snapshot_mcp.ground.files import create_private

Migration = Callable[[sqlite3.Connection], None]

RETRY_SECONDS = 0.02
"""Pause between attempts to switch to WAL, for which SQLite does not wait by itself."""

_creating = threading.Lock()
"""Held while a file is created: closing it would drop the locks that another thread's connection has on it."""


class NewerFormat(sqlite3.DatabaseError):
    """The file has more migrations than this version of the program knows; it was not changed."""

    def __init__(self, version: int) -> None:
        super().__init__("it was written by a newer version of snapshot-mcp")
        self.version = version


def connect(path: Path, *, busy_seconds: float) -> sqlite3.Connection:
    """Open an existing file with durable commits. The connection is for one thread at a time."""
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def open_migrated(path: Path, migrations: Sequence[Migration], *, busy_seconds: float) -> sqlite3.Connection:
    """Open the file; create and migrate it if necessary. Raises NewerFormat, sqlite3.Error, OSError."""
    with _creating:
        create_private(path)
    deadline = time.monotonic() + busy_seconds
    while True:
        connection = connect(path, busy_seconds=busy_seconds)
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection, migrations)
        except BaseException as error:
            connection.close()
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return connection


def copy_to(path: Path, copy: Path) -> None:
    """Write a consistent copy of a database, which stays as it is with all that lies beside it. Raises sqlite3.Error, OSError.

    SQLite itself would make its log and its shared memory anew, and at the end put the log of a killed process into the file.
    """
    log, shared = (path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm"))
    if log.exists() and not shared.exists():
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        shutil.copyfile(path, copy)
        return
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"  # nobody has it open
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Apply the missing migrations, each in its own transaction. Raises NewerFormat."""
    while (version := version_of(connection)) < len(migrations):
        with transaction(connection):
            if version_of(connection) == version:  # else another process has applied it
                migrations[version](connection)
                connection.execute(f"PRAGMA user_version = {version + 1}")
    if version > len(migrations):
        raise NewerFormat(version)


def version_of(connection: sqlite3.Connection) -> int:
    """Return the number of migrations applied to the file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run the block in a write transaction: committed at the end, rolled back on an exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
            connection.execute("ROLLBACK")
        raise


def execute_script(connection: sqlite3.Connection, script: str) -> None:
    """Execute the statements of a script in the current transaction, which `executescript` would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    if statement.strip():
        connection.execute(statement)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname in {"SQLITE_BUSY", "SQLITE_LOCKED"}
