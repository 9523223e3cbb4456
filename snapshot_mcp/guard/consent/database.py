"""HOME/guard.sqlite: what people decided, shared by all processes of a home (GUARD.md, "Records").

Each transaction has its own connection, is IMMEDIATE and is synced to disk before anybody is answered. Blocking; call it in a
worker thread.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from snapshot_mcp.ground import reserve, sqlite
from snapshot_mcp.ground.files import make_private_folder
from snapshot_mcp.ground.permissions import obstacle_of, reason_of
from snapshot_mcp.guard.consent.errors import GuardBroken

BUSY_SECONDS = 15.0
"""How long to wait for the lock; transactions take milliseconds, so a longer wait means that something is broken."""


_TABLES = """
CREATE TABLE approvals (
    id TEXT PRIMARY KEY,
    call_key TEXT NOT NULL,
    state TEXT NOT NULL,
    door TEXT NOT NULL DEFAULT '',
    decided_by TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    call TEXT NOT NULL,
    plan TEXT NOT NULL,
    opened TEXT NOT NULL,
    decided TEXT NOT NULL DEFAULT '',
    ended TEXT NOT NULL DEFAULT '',
    safety TEXT NOT NULL DEFAULT '{}',
    job_id TEXT NOT NULL DEFAULT ''
);

CREATE UNIQUE INDEX one_open_approval_a_call ON approvals (call_key) WHERE state IN ('pending', 'granted');

CREATE INDEX approvals_by_call ON approvals (call_key);

CREATE INDEX approvals_by_state ON approvals (state);

CREATE TABLE questions (
    call_key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    nonce TEXT NOT NULL,
    plan TEXT NOT NULL,
    asked TEXT NOT NULL
);

CREATE TABLE targets (
    target TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    held_by TEXT NOT NULL DEFAULT '',
    held_at TEXT NOT NULL DEFAULT ''
);

CREATE TABLE pin (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    salt BLOB NOT NULL,
    hash BLOB NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    last_failure TEXT NOT NULL DEFAULT ''
);

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    record TEXT NOT NULL,
    mac TEXT NOT NULL
);

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""


_ENDS = """
ALTER TABLE approvals ADD COLUMN job_end TEXT NOT NULL DEFAULT '';

CREATE TABLE pin_attempts (
    id TEXT PRIMARY KEY,
    door TEXT NOT NULL,
    begun TEXT NOT NULL
);

CREATE TABLE renames (
    act TEXT PRIMARY KEY,
    location TEXT NOT NULL,
    snapshot_id TEXT NOT NULL,
    old_name TEXT NOT NULL,
    new_name TEXT NOT NULL,
    at TEXT NOT NULL
)
"""

_PAGE = """
CREATE TABLE pins (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    salt BLOB NOT NULL,
    hash BLOB NOT NULL,
    phrase TEXT NOT NULL DEFAULT ''
);

CREATE TABLE pin_places (
    place TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    last_failure TEXT NOT NULL
);

INSERT INTO pins (only, salt, hash) SELECT only, salt, hash FROM pin;

INSERT INTO pin_places SELECT 'terminal', failures, last_failure FROM pin WHERE failures > 0;

DROP TABLE pin;

ALTER TABLE pins RENAME TO pin;

ALTER TABLE pin_attempts ADD COLUMN link TEXT NOT NULL DEFAULT '';

CREATE TABLE page (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    port INTEGER NOT NULL,
    secret BLOB NOT NULL,
    left_port INTEGER NOT NULL
);
"""

MIGRATIONS: tuple[sqlite.Migration, ...] = tuple(
    partial(sqlite.execute_script, script=one) for one in (_TABLES, _ENDS, _PAGE)
)
"""Each migrates the file from the version of its index (`PRAGMA user_version`) to the next, in its own transaction."""


class Database:
    """The database file, which is opened by the first transaction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "guard.sqlite"

    @property
    def exists(self) -> bool:
        """Whether the file has been created."""
        return self.path.exists()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as the only writer of all processes; roll back if it raises. Raises: GuardBroken."""
        try:
            reserve.relieve(self.folder)
            with closing(self._connect()) as connection, sqlite.transaction(connection):
                yield connection
        except (sqlite3.Error, OSError) as error:
            obstacle = obstacle_of(error, self.path)
            step = obstacle.hint if obstacle else "Check the folder's permissions and the free space on its disk."
            raise GuardBroken(
                f"The guard's records in {str(self.path)!r} cannot be used: {reason_of(error, self.path)}.",
                hint=f"Nothing is destroyed without them. {step}",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file that is in its place now: the home may have been removed, replaced or restored meanwhile."""
        make_private_folder(self.folder)
        connection = sqlite.open_migrated(self.path, MIGRATIONS, busy_seconds=BUSY_SECONDS)
        reserve.make(self.folder)
        return connection
