"""`CatalogueLedger`: what a zone remembers of its copies elsewhere (`contract.parts.Ledger`), in its catalogue.

A row says only what was seen: a piece is recorded before it is stored and again once it was read back, a part once all of its
pieces were, and it counts as copied once a manifest names it.
"""

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from snapshot_mcp.catalogue.admission import insert_job
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue, moment, placeholders
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.copied import Copied, CopyStatus
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.parts import CopyState, Piece, SentPart
from snapshot_mcp.contract.states import JobAction

_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"

_TABLES: Final = ("copies", "copied", "copied_pieces")

_COUNTS: Final = "listed_in > 0 AND copy_id IN (SELECT copy_id FROM copies WHERE is_current AND is_set)"
"""Of rows of `copied`: what a copy has that the operator's file has now."""

_MISSING: Final = """SELECT count(*) FROM snapshots s WHERE worth IN ('good', 'fuzzy') AND NOT EXISTS (
    SELECT 1 FROM copied c WHERE c.copy_id = ? AND c.part_id = s.snapshot_id AND listed_in > 0)"""


def enter_copy(catalogue: Catalogue, copy: str) -> Row:
    """Enqueue a run of a copy, or return one that has not begun yet."""
    with catalogue.transaction():
        waiting = catalogue.rows(
            f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending' AND action = ?", JobAction.COPY
        )
        request = {"copy": copy}
        for job in waiting:
            if json.loads(job["request"])["copy"] == copy and not job["is_cancelled"]:
                return job
        return insert_job(catalogue, JobAction.COPY, request, [], extra={"copy": copy})


def set_names(catalogue: Catalogue, names: Collection[str]) -> None:
    """Record which copies the operator's file has now; the others are remembered and no longer shown."""
    known = {row["copy"]: row["is_set"] for row in catalogue.rows("SELECT copy, is_set FROM copies")}
    if any(is_set != (name in names) for name, is_set in known.items()):
        with catalogue.transaction() as db:
            db.executemany("UPDATE copies SET is_set = ? WHERE copy = ?", [(name in names, name) for name in known])


def forget_copies(catalogue: Catalogue) -> None:
    """Forget all that was sent, in the caller's transaction: the next run of each copy is another writer's."""
    for table in _TABLES:
        catalogue.db.execute(f"DELETE FROM {table}")


def has_copies(catalogue: Catalogue) -> bool:
    """Return whether any copy was ever run."""
    return catalogue.row("SELECT 1 FROM copies LIMIT 1") is not None


def copies_of(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> dict[str, tuple[Copied, ...]]:
    """Return of each snapshot which copies of it there are."""
    if not has_copies(catalogue):
        return {}
    found: dict[str, list[Copied]] = {}
    for row in catalogue.rows(
        f"""SELECT copy, part_id, sent_at, until, checked_at, keep_days FROM copied JOIN copies USING (copy_id)
        WHERE part_id IN ({placeholders(snapshot_ids)}) AND {_COUNTS} ORDER BY copy""",
        *snapshot_ids,
    ):
        verified = max(row["sent_at"], row["checked_at"] or 0)
        one = Copied(
            copy_name=row["copy"], verified_at=moment(verified), until=moment(row["until"]), keep_days=row["keep_days"]
        )
        found.setdefault(row["part_id"], []).append(one)
    return {one: tuple(copies) for one, copies in found.items()}


def newest_copied(catalogue: Catalogue, resource_id: str) -> Row | None:
    """Return the newest good snapshot of a disk that a copy has, None if there is none."""
    if not has_copies(catalogue):
        return None
    return catalogue.row(
        f"""SELECT snapshot_id, snapshot_at, (SELECT group_concat(copy, ', ') FROM copied JOIN copies USING (copy_id)
            WHERE part_id = snapshot_id AND {_COUNTS}) AS copies
        FROM snapshots WHERE resource_id = ? AND worth = 'good' AND EXISTS (
            SELECT 1 FROM copied WHERE part_id = snapshot_id AND {_COUNTS})
        ORDER BY snapshot_at DESC, snapshot_id LIMIT 1""",
        resource_id,
    )


def troubles(catalogue: Catalogue) -> str:
    """Return what is wrong with the copies that the operator's file has, "" for nothing."""
    found = catalogue.rows("SELECT * FROM copies WHERE is_current AND is_set AND problem != '' ORDER BY copy")
    return " ".join(
        f"Copy {row['copy']} has a problem since {format_time(moment(row['problem_at']))}: {row['problem']}"
        for row in found
    )


def statuses(catalogue: Catalogue) -> tuple[CopyStatus, ...]:
    """Return how each copy stands that the operator's file has."""
    found = catalogue.rows("SELECT * FROM copies WHERE is_current AND is_set ORDER BY copy")
    return tuple(_status(catalogue, row) for row in found)


def _status(catalogue: Catalogue, row: Row) -> CopyStatus:
    held = catalogue.row(
        "SELECT count(*) AS number, coalesce(sum(stored_bytes), 0) AS bytes FROM copied WHERE copy_id = ? AND listed_in > 0",
        row["copy_id"],
    )
    former = catalogue.rows(
        "SELECT * FROM copies WHERE copy = ? AND place = ? AND NOT is_current AND number > 0", row["copy"], row["place"]
    )
    assert held is not None
    return CopyStatus(
        copy_name=row["copy"],
        place=row["place"],
        writer=row["writer"],
        manifest=row["number"],
        copied_count=held["number"],
        missing_count=catalogue.count(_MISSING, row["copy_id"]),
        stored_bytes=held["bytes"],
        ran_at=moment(row["ran_at"]),
        problem=row["problem"],
        problem_at=moment(row["problem_at"]),
        checked_at=moment(row["checked_at"]),
        restored_at=moment(row["restored_at"]),
        keep_days=row["keep_days"],
        former=", ".join(f"{one['writer']}{'' if one['key'] else ' (not encrypted)'}" for one in former),
    )


class CatalogueLedger:
    """The ledger over an open catalogue; each method is one transaction."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def find(self, copy: str, place: str, key: str) -> CopyState | None:
        """Return what is known, None for a copy that was never there."""
        row = self._catalogue.row(
            "SELECT * FROM copies WHERE copy = ? AND place = ? AND key = ? ORDER BY is_current DESC, copy_id DESC LIMIT 1",
            copy,
            place,
            key,
        )
        return _to_state(row) if row else None

    def open(self, copy: str, place: str, key: str, keep_days: int) -> CopyState:
        """Return what is known of the copy that this name means from now on; begin one that is not known."""
        known = self.find(copy, place, key)
        with self._catalogue.transaction() as db:
            db.execute("UPDATE copies SET is_current = 0 WHERE copy = ?", (copy,))
            db.execute("DELETE FROM copies WHERE copy = ? AND place = ''", (copy,))
            if known:
                db.execute("UPDATE copies SET is_current = 1, is_set = 1 WHERE copy_id = ?", (known.copy_id,))
            else:
                db.execute(
                    "INSERT INTO copies (copy, place, key, writer, keep_days) VALUES (?, ?, ?, ?, ?)",
                    (copy, place, key, _new_writer(), keep_days),
                )
        found = known or self.find(copy, place, key)
        assert found is not None
        return found

    def start_anew(self, copy_id: int) -> CopyState:
        """Forget what was sent and take a new writer's name."""
        with self._catalogue.transaction() as db:
            for table in ("copied", "copied_pieces"):
                db.execute(f"DELETE FROM {table} WHERE copy_id = ?", (copy_id,))
            db.execute(
                """UPDATE copies SET writer = ?, number = 0, intended = 0, first = 1, content = '', manifest_size = 0,
                manifest_hash = '', checked_at = NULL, restored_at = NULL WHERE copy_id = ?""",
                (_new_writer(), copy_id),
            )
        row = self._catalogue.row("SELECT * FROM copies WHERE copy_id = ?", copy_id)
        assert row is not None
        return _to_state(row)

    def pieces(self, copy_id: int, part_id: str) -> dict[int, Piece]:
        """Return the pieces of a part, by number."""
        rows = self._catalogue.rows(
            "SELECT * FROM copied_pieces WHERE copy_id = ? AND part_id = ? ORDER BY number", copy_id, part_id
        )
        return {
            row["number"]: Piece(
                row["size"], row["hash"], row["stored_size"], row["stored_hash"], bool(row["is_verified"])
            )
            for row in rows
        }

    def note_pieces(self, copy_id: int, part_id: str, pieces: Mapping[int, Piece]) -> None:
        """Record pieces by number: about to be stored, or verified."""
        rows = [
            (copy_id, part_id, at, one.size, one.hash, one.stored_size, one.stored_hash, int(one.is_verified))
            for at, one in pieces.items()
        ]
        with self._catalogue.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO copied_pieces VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def doubt(self, copy_id: int, part_id: str, numbers: Collection[int]) -> None:
        """Record that a part is not whole there, and that these pieces have to be read back before they count again."""
        which = "WHERE copy_id = ? AND part_id = ?"
        with self._catalogue.transaction() as db:
            db.execute(f"UPDATE copied SET is_whole = 0, listed_in = 0 {which}", (copy_id, part_id))
            db.executemany(
                f"UPDATE copied_pieces SET is_verified = 0 {which} AND number = ?",
                [(copy_id, part_id, number) for number in numbers],
            )

    def forget_pieces(self, copy_id: int, part_id: str, numbers: Collection[int]) -> None:
        """Forget pieces that are not there."""
        with self._catalogue.transaction() as db:
            db.executemany(
                "DELETE FROM copied_pieces WHERE copy_id = ? AND part_id = ? AND number = ?",
                [(copy_id, part_id, number) for number in numbers],
            )

    def forget_part(self, copy_id: int, part_id: str) -> None:
        """Forget a part that was removed there."""
        with self._catalogue.transaction() as db:
            for table in ("copied", "copied_pieces"):
                db.execute(f"DELETE FROM {table} WHERE copy_id = ? AND part_id = ?", (copy_id, part_id))

    def sent(self, copy_id: int) -> dict[str, SentPart]:
        """Return the parts that were sent whole, by id."""
        rows = self._catalogue.rows("SELECT * FROM copied WHERE copy_id = ?", copy_id)
        return {row["part_id"]: _to_sent(row) for row in rows}

    def note_sent(self, copy_id: int, *parts: SentPart) -> None:
        """Record parts that are whole there, or what has become known of them."""
        rows = [(copy_id, *(getattr(one, name) for name in SentPart.__dataclass_fields__)) for one in parts]
        marks = ", ".join("?" * (len(SentPart.__dataclass_fields__) + 1))
        with self._catalogue.transaction() as db:
            db.executemany(f"INSERT OR REPLACE INTO copied VALUES ({marks})", rows)

    def intend(self, copy_id: int, number: int) -> None:
        """Record that a manifest of this number is about to be written."""
        self._set(copy_id, intended=number)

    def note_listed(self, state: CopyState, part_ids: Collection[str]) -> None:
        """Record the manifest that was written, and that it names these parts and no others."""
        columns = ("number", "intended", "first", "content", "manifest_size", "manifest_hash")
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._catalogue.transaction() as db:
            values = [getattr(state, name) for name in columns]
            db.execute(f"UPDATE copies SET {names} WHERE copy_id = ?", (*values, state.copy_id))
            db.execute("UPDATE copied SET listed_in = 0 WHERE copy_id = ?", (state.copy_id,))
            db.executemany(
                "UPDATE copied SET listed_in = ? WHERE copy_id = ? AND part_id = ?",
                [(state.number, state.copy_id, one) for one in part_ids],
            )

    def note_run(self, copy_id: int, problem: str, keep_days: int) -> None:
        """Record a run that ended, with what a person should look at, "" for nothing."""
        now = self._catalogue.now()
        self._set(
            copy_id, ran_at=now, problem=problem, problem_at=now if problem else None, keep_days=keep_days, is_set=1
        )

    def note_trouble(self, copy: str, problem: str) -> None:
        """Record of the copy of this name, also of one that never ran, that it could not run."""
        now = self._catalogue.now()
        with self._catalogue.transaction() as db:
            known = db.execute(
                "UPDATE copies SET problem = ?, problem_at = ?, is_set = 1 WHERE copy = ? AND is_current",
                (problem, now, copy),
            )
            if not known.rowcount:
                db.execute(
                    "INSERT INTO copies (copy, place, key, writer, problem, problem_at) VALUES (?, '', '', '', ?, ?)",
                    (copy, problem, now),
                )

    def note_checked(self, copy_id: int, *, is_restored: bool, problem: str) -> None:
        """Record that all that was sent was read back, or restored."""
        now = self._catalogue.now()
        if problem:
            self._set(copy_id, problem=problem, problem_at=now)
        else:
            self._set(copy_id, checked_at=now, **({"restored_at": now} if is_restored else {}))

    def _set(self, copy_id: int, **columns: object) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._catalogue.transaction() as db:
            db.execute(f"UPDATE copies SET {names} WHERE copy_id = ?", (*columns.values(), copy_id))


def _new_writer() -> str:
    return "w-" + "".join(secrets.choice(_ALPHABET) for _ in range(12))


def _to_state(row: Row) -> CopyState:
    return CopyState(**{name: row[name] for name in CopyState.__dataclass_fields__})


def _to_sent(row: Row) -> SentPart:
    fields = {name: row[name] for name in SentPart.__dataclass_fields__}
    return SentPart(**(fields | {"is_whole": bool(row["is_whole"])}))
