"""The catalogue's tables and their numbered migrations.

Frequent queries over a million snapshots use an index or `snapshot_counts` and never scan the table (CATALOGUE.md,
"Transactions"); `listing` has the queries.
"""

import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.ground.sqlite import Migration, NewerFormat, execute_script, migrate, open_migrated, version_of


def _create_tables(db: sqlite3.Connection) -> None:
    script = """
        CREATE TABLE resources (
            resource_id   TEXT PRIMARY KEY,
            resource_type TEXT NOT NULL,
            name          TEXT NOT NULL,
            description   TEXT NOT NULL DEFAULT '',
            path          TEXT NOT NULL,
            created_at    INTEGER NOT NULL,
            status_at     INTEGER NOT NULL,
            removed_at    INTEGER,
            head_id       TEXT,
            applying_id   TEXT,              -- a roll-back to this snapshot has begun to write and is not over
            problem       TEXT NOT NULL DEFAULT ''
        );
        CREATE INDEX resources_by_time ON resources (resource_type, created_at, resource_id);

        CREATE TABLE snapshots (
            snapshot_id   TEXT PRIMARY KEY,
            name          TEXT NOT NULL,
            description   TEXT NOT NULL DEFAULT '',
            tags          TEXT NOT NULL DEFAULT '[]',
            resource_id   TEXT NOT NULL REFERENCES resources,
            is_full       INTEGER NOT NULL,
            status        TEXT NOT NULL,
            transition    TEXT NOT NULL,
            created_at    INTEGER NOT NULL,
            status_at     INTEGER NOT NULL,
            snapshot_at   INTEGER NOT NULL,
            is_taken      INTEGER NOT NULL DEFAULT 0,
            root_id       TEXT NOT NULL,
            parent_id     TEXT,
            depth         INTEGER NOT NULL,
            size_bytes    INTEGER NOT NULL DEFAULT 0,
            virtual_bytes INTEGER NOT NULL DEFAULT 0,
            consistency   TEXT NOT NULL DEFAULT '',
            is_damaged    INTEGER NOT NULL DEFAULT 0,
            deletion_id   TEXT
        );
        CREATE INDEX snapshots_by_time ON snapshots (snapshot_at DESC, snapshot_id);
        CREATE INDEX snapshots_by_resource ON snapshots (resource_id, snapshot_at DESC, snapshot_id);
        CREATE INDEX snapshots_by_root ON snapshots (root_id, snapshot_at DESC, snapshot_id);
        CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
        CREATE INDEX snapshots_by_deletion ON snapshots (deletion_id) WHERE deletion_id IS NOT NULL;

        CREATE TABLE deletions (
            deletion_id   TEXT PRIMARY KEY,  -- the job's id
            resource_id   TEXT NOT NULL,
            deleted_at    INTEGER NOT NULL,
            purge_at      INTEGER NOT NULL,
            head_before   TEXT,
            state         TEXT NOT NULL      -- deleted, then recovered; or purged, then freed (its files too)
        );
        CREATE INDEX deletions_by_time ON deletions (state, purge_at);

        CREATE TABLE images (
            image_id      TEXT PRIMARY KEY,
            name          TEXT NOT NULL,
            path          TEXT NOT NULL,
            snapshot_id   TEXT NOT NULL,
            created_at    INTEGER NOT NULL
        );

        CREATE TABLE jobs (
            job_id        TEXT PRIMARY KEY,
            action        TEXT NOT NULL,
            status        TEXT NOT NULL,
            request       TEXT NOT NULL,     -- JSON: what the worker needs to carry it out
            resource_ids  TEXT NOT NULL,     -- JSON list
            created_at    INTEGER NOT NULL,
            begun_at      INTEGER,
            finished_at   INTEGER,
            error_code    TEXT NOT NULL DEFAULT '',
            info          TEXT NOT NULL DEFAULT '',
            extra         TEXT NOT NULL DEFAULT '{}',
            progress      TEXT NOT NULL DEFAULT '',
            run_count     INTEGER NOT NULL DEFAULT 0,
            change        INTEGER NOT NULL   -- grows with every change of any job: what a watcher has seen
        );
        CREATE INDEX jobs_by_change ON jobs (change);
        CREATE INDEX jobs_unfinished ON jobs (created_at) WHERE status IN ('pending', 'working');

        CREATE TABLE claims (                -- what an unfinished job holds; gone with it
            job_id        TEXT NOT NULL REFERENCES jobs,
            kind          TEXT NOT NULL,     -- 'resource': changed by the job alone; 'snapshot': read, shared
            id            TEXT NOT NULL
        );
        CREATE INDEX claims_by_id ON claims (id);
        CREATE INDEX claims_by_job ON claims (job_id);
        """
    execute_script(db, script)


def _count_snapshots(db: sqlite3.Connection) -> None:
    """Add counts and indexes, so that a page and its total cost the same for any number of snapshots."""
    script = """
        CREATE TABLE snapshot_counts (       -- kept by the triggers below
            resource_id   TEXT NOT NULL,     -- '' counts those of all
            status        TEXT NOT NULL,
            is_full       INTEGER NOT NULL,
            number        INTEGER NOT NULL,
            PRIMARY KEY (resource_id, status, is_full)
        ) WITHOUT ROWID;
        INSERT INTO snapshot_counts
            SELECT resource_id, status, is_full, count(*) FROM snapshots GROUP BY resource_id, status, is_full;
        INSERT INTO snapshot_counts
            SELECT '', status, is_full, sum(number) FROM snapshot_counts GROUP BY status, is_full;

        DROP INDEX snapshots_by_time;
        DROP INDEX snapshots_by_resource;
        CREATE INDEX snapshots_by_status ON snapshots (status, is_full, snapshot_at DESC, snapshot_id, name);
        CREATE INDEX snapshots_of_resource ON snapshots (resource_id, status, is_full, snapshot_at DESC, snapshot_id);
        CREATE INDEX snapshots_tagged ON snapshots (status, is_full, snapshot_at DESC, snapshot_id, tags) WHERE tags != '[]';
        """
    execute_script(db, script)
    came, went = _COUNT.format(row="new", step=1), _COUNT.format(row="old", step=-1)
    db.execute(f"CREATE TRIGGER snapshot_came AFTER INSERT ON snapshots BEGIN {came} END")
    db.execute(f"CREATE TRIGGER snapshot_went AFTER DELETE ON snapshots BEGIN {went} END")
    db.execute(
        "CREATE TRIGGER snapshot_changed AFTER UPDATE OF resource_id, status, is_full ON snapshots"
        f" BEGIN {went} {came} END"
    )


_COUNT: Final = """
    INSERT INTO snapshot_counts VALUES
        ({row}.resource_id, {row}.status, {row}.is_full, {step}), ('', {row}.status, {row}.is_full, {step})
    ON CONFLICT DO UPDATE SET number = number + excluded.number;
"""


def _time_deletions(db: sqlite3.Connection) -> None:
    """Record a deletion's uptime as well, so that a clock that jumps ahead ends no grace period."""
    db.execute("ALTER TABLE deletions ADD COLUMN boot TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE deletions ADD COLUMN uptime REAL NOT NULL DEFAULT 0")


def _bind_destruction(db: sqlite3.Connection) -> None:
    """Record when a job must start, whether it was cancelled or has had an effect, and which file a roll-back writes."""
    for column in (
        "jobs ADD COLUMN begin_boot TEXT NOT NULL DEFAULT ''",  # the boot that `begin_until` counts in
        "jobs ADD COLUMN begin_until REAL NOT NULL DEFAULT 0",  # seconds of uptime; 0: may start at any time
        "jobs ADD COLUMN is_cancelled INTEGER NOT NULL DEFAULT 0",
        "jobs ADD COLUMN has_effect INTEGER NOT NULL DEFAULT 0",  # a disk is being overwritten: too late to cancel
        "resources ADD COLUMN applying_identity TEXT NOT NULL DEFAULT ''",  # the file that is half overwritten
        "resources ADD COLUMN applying_safety_id TEXT",  # the snapshot of what is overwritten
        "resources ADD COLUMN is_stopped INTEGER NOT NULL DEFAULT 0",  # the roll-back waits for a person
    ):
        db.execute(f"ALTER TABLE {column}")
    # Jobs of an earlier version: neither the file that they write to nor the time of their approval is known.
    left = "status IN ('pending', 'working') AND action IN ('ApplySnapshots', 'DeleteSnapshots')"
    db.execute(f"UPDATE jobs SET begin_boot = 'an earlier version', begin_until = -1 WHERE {left}")
    db.execute(
        """UPDATE jobs SET has_effect = 1 WHERE status = 'working' AND action = 'ApplySnapshots' AND job_id IN (
        SELECT job_id FROM claims JOIN resources ON resource_id = id WHERE kind = 'resource' AND applying_id IS NOT NULL)"""
    )


def _keep_each_half(db: sqlite3.Connection) -> None:
    """Record every half overwritten file of a disk, since each may be moved back to the disk's path."""
    # JSON: [applying_id, applying_identity, applying_safety_id, problem] of each except the one written to last
    db.execute("ALTER TABLE resources ADD COLUMN other_halves TEXT NOT NULL DEFAULT '[]'")


def _count_worth(db: sqlite3.Connection) -> None:
    """Keep what protects each disk: the worth of its snapshots, counted; and when each was last read back."""
    for column in (
        "is_affected INTEGER NOT NULL DEFAULT 0",  # it, or one that it builds on, is damaged
        "verified_at INTEGER",
        f"worth TEXT GENERATED ALWAYS AS ({_WORTH}) VIRTUAL",
    ):
        db.execute(f"ALTER TABLE snapshots ADD COLUMN {column}")
    script = """
        WITH RECURSIVE below (id) AS (
            SELECT snapshot_id FROM snapshots WHERE is_damaged
            UNION SELECT s.snapshot_id FROM snapshots s JOIN below ON s.parent_id = below.id
        )
        UPDATE snapshots SET is_affected = 1 WHERE snapshot_id IN (SELECT id FROM below);

        CREATE TABLE snapshot_worth (        -- kept by the triggers below
            resource_id   TEXT NOT NULL,
            worth         TEXT NOT NULL,
            number        INTEGER NOT NULL,
            stored_bytes  INTEGER NOT NULL,
            PRIMARY KEY (resource_id, worth)
        ) WITHOUT ROWID;
        INSERT INTO snapshot_worth
            SELECT resource_id, worth, count(*), sum(size_bytes) FROM snapshots GROUP BY resource_id, worth;
        CREATE INDEX snapshots_by_worth ON snapshots (resource_id, worth, snapshot_at DESC, snapshot_id);
        -- the +, or every statement with `status = ?` would be prepared anew for each value
        CREATE INDEX snapshots_deleted ON snapshots (status_at DESC, snapshot_id) WHERE +status = 'deleted';
        CREATE INDEX jobs_by_end ON jobs (finished_at DESC, change DESC) WHERE finished_at IS NOT NULL;
        """
    execute_script(db, script)
    came, went = _SUM.format(row="new", sign="+"), _SUM.format(row="old", sign="-")
    db.execute(f"CREATE TRIGGER worth_came AFTER INSERT ON snapshots BEGIN {came} END")
    db.execute(f"CREATE TRIGGER worth_went AFTER DELETE ON snapshots BEGIN {went} END")
    columns = "resource_id, status, transition, consistency, is_affected, size_bytes"
    db.execute(f"CREATE TRIGGER worth_changed AFTER UPDATE OF {columns} ON snapshots BEGIN {went} {came} END")


_WORTH: Final = """CASE WHEN status = 'suspended' THEN 'suspended' WHEN status != 'available' OR transition != '' THEN ''
    WHEN is_affected THEN 'damaged' WHEN consistency LIKE 'fuzzy%' THEN 'fuzzy' ELSE 'good' END"""
"""What a snapshot is worth as a restore point; `contract.tree` says the same of a list."""

_SUM: Final = """
    INSERT INTO snapshot_worth VALUES ({row}.resource_id, {row}.worth, {sign}1, {sign}{row}.size_bytes)
    ON CONFLICT DO UPDATE SET number = number + excluded.number, stored_bytes = stored_bytes + excluded.stored_bytes;
"""


def _record_exports(db: sqlite3.Connection) -> None:
    """Record which file an export made, since only such a file may be deleted, and what a volume was made from."""
    for column in (
        "resources ADD COLUMN made_identity TEXT NOT NULL DEFAULT ''",  # '': not made by an export of this zone
        "resources ADD COLUMN made_from TEXT NOT NULL DEFAULT ''",
        "resources ADD COLUMN made_mtime_ns INTEGER NOT NULL DEFAULT 0",  # of the file; a later one: it was written to
        "images ADD COLUMN made_identity TEXT NOT NULL DEFAULT ''",
        "images ADD COLUMN made_mtime_ns INTEGER NOT NULL DEFAULT 0",
    ):
        db.execute(f"ALTER TABLE {column}")


def _time_snapshots(db: sqlite3.Connection) -> None:
    """Record when a snapshot was asked for by uptime as well: the wall clock may be corrected a moment later."""
    for column in ("boot TEXT NOT NULL DEFAULT ''", "uptime REAL NOT NULL DEFAULT 0"):
        db.execute(f"ALTER TABLE snapshots ADD COLUMN {column}")


def _place_zone(db: sqlite3.Connection) -> None:
    """Record where the zone lies, so that it notices that it was moved or copied."""
    db.execute("CREATE TABLE place (path TEXT NOT NULL)")


def _remember_paths(db: sqlite3.Connection) -> None:
    """Record where a disk was that has no path since its zone was rebuilt; it is shown and never opened."""
    db.execute("ALTER TABLE resources ADD COLUMN former_path TEXT NOT NULL DEFAULT ''")


def _lay_out_disks(db: sqlite3.Connection) -> None:
    """Record what a person registered a disk as, in the store's own words; "" is what every disk was before."""
    db.execute("ALTER TABLE resources ADD COLUMN layout TEXT NOT NULL DEFAULT ''")


def _remember_copies(db: sqlite3.Connection) -> None:
    """Record what each copy elsewhere holds (`copied`)."""
    script = """
        CREATE TABLE copies (
            copy_id       INTEGER PRIMARY KEY,
            copy          TEXT NOT NULL,     -- its name in the operator's file
            place         TEXT NOT NULL,
            key           TEXT NOT NULL,     -- whom it is sealed for, '' for nobody
            writer        TEXT NOT NULL,     -- this zone's name there
            number        INTEGER NOT NULL DEFAULT 0,  -- of its last manifest
            intended      INTEGER NOT NULL DEFAULT 0,  -- of the manifest that was to be written last
            first         INTEGER NOT NULL DEFAULT 1,  -- of the oldest manifest that is kept
            content       TEXT NOT NULL DEFAULT '',    -- hash of what the last manifest says
            manifest_size INTEGER NOT NULL DEFAULT 0,
            manifest_hash TEXT NOT NULL DEFAULT '',
            keep_days     INTEGER NOT NULL DEFAULT 0,
            is_current    INTEGER NOT NULL DEFAULT 1,  -- what the name means now; others are at former places
            is_set        INTEGER NOT NULL DEFAULT 1,  -- the operator's file has the name
            ran_at        INTEGER,           -- the last run that ended
            problem       TEXT NOT NULL DEFAULT '',
            problem_at    INTEGER,
            checked_at    INTEGER,           -- all that was sent was read back
            restored_at   INTEGER            -- and restored, with the recovery key
        );
        CREATE TABLE copied (                -- what was sent whole
            copy_id       INTEGER NOT NULL,
            part_id       TEXT NOT NULL,
            size          INTEGER NOT NULL,
            hash          TEXT NOT NULL,
            stored_bytes  INTEGER NOT NULL,
            index_size    INTEGER NOT NULL,
            index_hash    TEXT NOT NULL,
            sent_at       INTEGER NOT NULL,
            about         TEXT NOT NULL,     -- its entry in a manifest, JSON
            deleted_at    INTEGER,           -- its deletion was agreed to and recorded
            until         INTEGER,           -- the end of its days there
            is_whole      INTEGER NOT NULL,
            listed_in     INTEGER NOT NULL,
            PRIMARY KEY (copy_id, part_id)
        ) WITHOUT ROWID;
        CREATE INDEX copied_parts ON copied (part_id);
        CREATE TABLE copied_pieces (
            copy_id       INTEGER NOT NULL,
            part_id       TEXT NOT NULL,
            number        INTEGER NOT NULL,
            size          INTEGER NOT NULL,
            hash          TEXT NOT NULL,
            stored_size   INTEGER NOT NULL,
            stored_hash   TEXT NOT NULL,
            is_verified   INTEGER NOT NULL,
            PRIMARY KEY (copy_id, part_id, number)
        ) WITHOUT ROWID;
        """
    execute_script(db, script)


MIGRATIONS: tuple[Migration, ...] = (
    _create_tables,
    _count_snapshots,
    _time_deletions,
    _bind_destruction,
    _keep_each_half,
    _count_worth,
    _record_exports,
    _time_snapshots,
    _place_zone,
    _remember_paths,
    _lay_out_disks,
    _remember_copies,
)
"""Numbered from 1; `user_version` is the number of the last one applied. Never edit a released one."""


BUSY_SECONDS: Final = 30.0
"""How long a writer waits for another; transactions here take milliseconds."""


def is_newer(db: sqlite3.Connection) -> bool:
    """Return whether a newer program has migrated the catalogue, possibly while it is open here."""
    return version_of(db) > len(MIGRATIONS)


def open_catalogue(path: Path) -> sqlite3.Connection:
    """Open the file, creating and migrating it as needed. Raises Unsupported if a newer program wrote it.

    A path need not be text: bytes that are not are read as `os.fsdecode` does, and written by `path_bytes`.
    """
    try:
        db = open_migrated(path, MIGRATIONS, busy_seconds=BUSY_SECONDS)
    except NewerFormat as error:
        raise Unsupported(
            f"The zone's catalogue was written by a newer version of snapshot-mcp (format {error.version}).",
            hint="Update this installation. Nothing was changed.",
        ) from None
    _prepare(db)
    return db


def open_in_memory(version: int | None = None) -> sqlite3.Connection:
    """Return an empty catalogue in memory, as of a number of migrations, of all by default."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    migrate(db, MIGRATIONS[:version])
    _prepare(db)
    return db


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Apply the migrations that a catalogue in memory lacks."""
    migrate(db, MIGRATIONS)


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA foreign_keys = ON")
    db.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
