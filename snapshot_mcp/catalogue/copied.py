"""`CatalogueLedger`: what a zone remembers of its copies elsewhere (`contract.parts.Ledger`), in its catalogue.

A row says only what was seen: a piece is recorded before it is stored and again once it was read back, a part once all of its
pieces were, and it counts as copied once a manifest names it.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from snapshot_mcp.catalogue.admission import insert_job
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue, moment, placeholders
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.copied import Copied, CopyStatus
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.parts import CopyState, Piece, SentPart
from snapshot_mcp.contract.states import JobAction

_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"

_MISSING: Final = """SELECT count(*) FROM snapshots s WHERE worth IN ('good', 'fuzzy') AND NOT EXISTS (
    SELECT 1 FROM copied c WHERE c.copy = ? AND c.part_id = s.snapshot_id AND listed_in > 0)"""


def enter_copy(catalogue: Catalogue, copy: str) -> Row:
    """Enqueue a run of a copy, or return one that has not begun yet."""
    with catalogue.transaction():
        waiting = catalogue.rows(
            f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending' AND action = ?", JobAction.COPY
        )
        request = {"copy": copy}
        for job in waiting:
            if f'"{copy}"' in job["request"] and not job["is_cancelled"]:
                return job
        return insert_job(catalogue, JobAction.COPY, request, [], extra={"copy": copy})


def set_names(catalogue: Catalogue, names: Collection[str]) -> None:
    """Record which copies the operator's file has now; the others are remembered and no longer shown."""
    known = {row["copy"]: row["is_set"] for row in catalogue.rows("SELECT copy, is_set FROM copies")}
    if any(is_set != (name in names) for name, is_set in known.items()):
        with catalogue.transaction() as db:
            db.executemany("UPDATE copies SET is_set = ? WHERE copy = ?", [(name in names, name) for name in known])


def has_copies(catalogue: Catalogue) -> bool:
    """Return whether any copy was ever run."""
    return catalogue.row("SELECT 1 FROM copies LIMIT 1") is not None


def copies_of(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> dict[str, tuple[Copied, ...]]:
    """Return of each snapshot which copies of it there are."""
    if not has_copies(catalogue):
        return {}
    found: dict[str, list[Copied]] = {}
    for row in catalogue.rows(
        f"""SELECT copy, part_id, sent_at, until, checked_at, keep_days FROM copied JOIN copies USING (copy)
        WHERE part_id IN ({placeholders(snapshot_ids)}) AND listed_in > 0 ORDER BY copy""",
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
        """SELECT snapshot_id, snapshot_at, (SELECT group_concat(copy, ', ') FROM copied c
            WHERE c.part_id = snapshot_id AND c.listed_in > 0) AS copies
        FROM snapshots WHERE resource_id = ? AND worth = 'good' AND EXISTS (
            SELECT 1 FROM copied c WHERE c.part_id = snapshot_id AND c.listed_in > 0)
        ORDER BY snapshot_at DESC, snapshot_id LIMIT 1""",
        resource_id,
    )


def troubles(catalogue: Catalogue) -> str:
    """Return what is wrong with the copies that the operator's file has, "" for nothing."""
    found = catalogue.rows("SELECT * FROM copies WHERE is_set AND problem != '' ORDER BY copy")
    return " ".join(
        f"Copy {row['copy']} has a problem since {format_time(moment(row['problem_at']))}: {row['problem']}"
        for row in found
    )


def statuses(catalogue: Catalogue) -> tuple[CopyStatus, ...]:
    """Return how each copy stands that the operator's file has."""
    return tuple(_status(catalogue, row) for row in catalogue.rows("SELECT * FROM copies WHERE is_set ORDER BY copy"))


def _status(catalogue: Catalogue, row: Row) -> CopyStatus:
    held = catalogue.row(
        "SELECT count(*) AS number, coalesce(sum(stored_bytes), 0) AS bytes FROM copied WHERE copy = ? AND listed_in > 0",
        row["copy"],
    )
    assert held is not None
    return CopyStatus(
        copy_name=row["copy"],
        place=row["place"],
        writer=row["writer"],
        manifest=row["number"],
        copied_count=held["number"],
        missing_count=catalogue.count(_MISSING, row["copy"]),
        stored_bytes=held["bytes"],
        ran_at=moment(row["ran_at"]),
        problem=row["problem"],
        problem_at=moment(row["problem_at"]),
        checked_at=moment(row["checked_at"]),
        restored_at=moment(row["restored_at"]),
        keep_days=row["keep_days"],
    )


class CatalogueLedger:
    """The ledger over an open catalogue; each method is one transaction."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def state(self, copy: str, place: str) -> CopyState:
        """Return what is known of a copy at this place; a copy that has moved begins anew."""
        row = self._catalogue.row("SELECT * FROM copies WHERE copy = ?", copy)
        return _to_state(row) if row and row["place"] == place else self.start_anew(copy, place)

    def start_anew(self, copy: str, place: str) -> CopyState:
        """Forget what was sent and take a new writer's name."""
        writer = "w-" + "".join(secrets.choice(_ALPHABET) for _ in range(12))
        with self._catalogue.transaction() as db:
            for table in ("copies", "copied", "copied_pieces"):
                db.execute(f"DELETE FROM {table} WHERE copy = ?", (copy,))
            db.execute("INSERT INTO copies (copy, place, writer) VALUES (?, ?, ?)", (copy, place, writer))
        row = self._catalogue.row("SELECT * FROM copies WHERE copy = ?", copy)
        assert row is not None
        return _to_state(row)

    def pieces(self, copy: str, part_id: str) -> dict[int, Piece]:
        """Return the pieces of a part, by number."""
        rows = self._catalogue.rows(
            "SELECT * FROM copied_pieces WHERE copy = ? AND part_id = ? ORDER BY number", copy, part_id
        )
        return {
            row["number"]: Piece(
                row["size"], row["hash"], row["stored_size"], row["stored_hash"], bool(row["is_verified"])
            )
            for row in rows
        }

    def note_piece(self, copy: str, part_id: str, number: int, piece: Piece) -> None:
        """Record a piece: about to be stored, or verified."""
        values = (piece.size, piece.hash, piece.stored_size, piece.stored_hash, int(piece.is_verified))
        with self._catalogue.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO copied_pieces VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (copy, part_id, number, *values)
            )

    def forget_part(self, copy: str, part_id: str, numbers: Collection[int] | None = None) -> None:
        """Record that a part is not whole there, and that these pieces (None: all) are not there."""
        with self._catalogue.transaction() as db:
            db.execute("DELETE FROM copied WHERE copy = ? AND part_id = ?", (copy, part_id))
            if numbers is None:
                db.execute("DELETE FROM copied_pieces WHERE copy = ? AND part_id = ?", (copy, part_id))
                return
            db.executemany(
                "DELETE FROM copied_pieces WHERE copy = ? AND part_id = ? AND number = ?",
                [(copy, part_id, number) for number in numbers],
            )

    def sent(self, copy: str) -> dict[str, SentPart]:
        """Return the parts that are whole there, by id."""
        rows = self._catalogue.rows("SELECT * FROM copied WHERE copy = ?", copy)
        return {row["part_id"]: SentPart(*tuple(row)[1:]) for row in rows}

    def note_sent(self, copy: str, part: SentPart) -> None:
        """Record that a part is whole there."""
        values = (part.size, part.hash, part.stored_bytes, part.index_size, part.index_hash, part.sent_at, part.until)
        with self._catalogue.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO copied VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (copy, part.part_id, *values, part.listed_in),
            )

    def note_until(self, copy: str, untils: Mapping[str, int | None]) -> None:
        """Record until when deleted parts stay there; None for those that were recovered."""
        with self._catalogue.transaction() as db:
            db.executemany(
                "UPDATE copied SET until = ? WHERE copy = ? AND part_id = ?",
                [(until, copy, one) for one, until in untils.items()],
            )

    def intend(self, copy: str, number: int) -> None:
        """Record that a manifest of this number is about to be written."""
        self._set(copy, intended=number)

    def note_listed(self, copy: str, number: int, first: int, content: str, part_ids: Collection[str]) -> None:
        """Record that a manifest of this number was written, and names these parts."""
        with self._catalogue.transaction() as db:
            db.execute(
                "UPDATE copies SET number = ?, first = ?, content = ? WHERE copy = ?", (number, first, content, copy)
            )
            db.executemany(
                "UPDATE copied SET listed_in = ? WHERE copy = ? AND part_id = ? AND listed_in = 0",
                [(number, copy, one) for one in part_ids],
            )

    def note_run(self, copy: str, problem: str, keep_days: int) -> None:
        """Record how a run ended: "" for well."""
        now = self._catalogue.now()
        ended: dict[str, Any] = {"problem": problem, "problem_at": now if problem else None, "keep_days": keep_days}
        self._set(copy, is_set=1, **ended, **({} if problem else {"ran_at": now}))

    def note_checked(self, copy: str, *, is_restored: bool, problem: str) -> None:
        """Record that all that was sent was read back, or restored."""
        now = self._catalogue.now()
        if problem:
            self._set(copy, problem=problem, problem_at=now)
        else:
            self._set(copy, checked_at=now, **({"restored_at": now} if is_restored else {}))

    def _set(self, copy: str, **columns: object) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._catalogue.transaction() as db:
            db.execute(f"UPDATE copies SET {names} WHERE copy = ?", (*columns.values(), copy))


def _to_state(row: Row) -> CopyState:
    return CopyState(row["writer"], row["number"], row["intended"], row["first"], row["content"], row["keep_days"])
