"""The texts of what the reading tools list: headings, a line each, sizes for people and ages beside times."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from snapshot_mcp.contract.models import Page, Snapshot, format_time
from snapshot_mcp.contract.text import (
    CLOCK_SKEW_SECONDS,
    MESSAGE_CHARACTERS,
    age_in_words,
    clean_text,
    consistency_in_words,
    format_bytes,
    quoted,
)
from snapshot_mcp.server.rows import ResourceRow, SnapshotRow


def heading(noun: str, page: Page[Any], offset: int, zone: str, applied: str) -> str:
    """Return the first line: how many there are, what was applied, where, and which of them are shown."""
    verb = f" match{'es' if page.total_count == 1 else ''} {applied}" if applied else ""
    head = f"{count_of(page.total_count, noun)}{verb} in zone {zone}"
    if page.items and (offset or len(page.items) < page.total_count):
        return f"{head}; {offset + 1} to {offset + len(page.items)}:"
    return f"{head}{':' if page.items else '.'}"


def filter_in_words(**given: Any) -> str:
    """Return the filters that were applied, "" for none."""
    applied = {name: value for name, value in given.items() if value and value != "any"}
    texts = {name: ", ".join(value) if isinstance(value, list) else value for name, value in applied.items()}
    return " and ".join(f"{name} {quoted(text)}" for name, text in texts.items())


def bare_hint(rows: list[ResourceRow]) -> str:
    """Return which disks have no good restore point, and what to do about it."""
    bare = [f"{row.resource_id} {quoted(row.name)}" for row in rows if row.good_count == 0]
    if not bare:
        return ""
    more = f" and {len(bare) - 10} more" if len(bare) > 10 else ""
    return f"Without a good restore point: {', '.join(bare[:10])}{more}. create_snapshots backs them up."


def ahead_in_words(moments: Iterable[tuple[str, datetime | None]]) -> str:
    """Return a warning that names the restore points, by id and time, whose time lies ahead; "" if there are none."""
    limit = datetime.now(UTC) + timedelta(seconds=CLOCK_SKEW_SECONDS)
    ids = [clean_text(one) for one, moment in moments if moment and moment > limit]
    if not ids:
        return ""
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return (
        f"A clock is or was wrong: the time of {', '.join(ids[:5])}{more} lies ahead, so they are listed as the newest."
    )


def unread_in_words(page: Page[Any]) -> str:
    """Return how many rows of a page could not be read, and the first reason; "" for none."""
    if not page.unread:
        return ""
    return (
        f"{count_of(len(page.unread), 'row')} of the zone's answer could not be read: {clean_text(page.unread[0], 300)}"
    )


def _with_age(one: Snapshot, now: datetime) -> str:
    """Return when it was taken, or when it was deleted and until when it can be recovered, with ages."""
    moment = one.snapshot_time or one.create_time
    taken = f"{format_time(moment)} ({age_in_words(moment, now)})" if moment else "not taken yet"
    if one.deleted_at is None:
        return taken
    is_kept = one.recoverable_until is not None and one.recoverable_until > now
    until = f", recover_snapshots until {format_time(one.recoverable_until)}" if is_kept else ""
    return f"{taken}  deleted {format_time(one.deleted_at)} ({age_in_words(one.deleted_at, now)}){until}"


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


@lru_cache(maxsize=4096)
def shown(one: Snapshot, verbose: bool, minute: int) -> tuple[SnapshotRow, str]:
    """Return a snapshot's row and line as of a minute; cached, because lists show the same ones again and again."""
    row = SnapshotRow.of(one, verbose=verbose)
    marks = f"{' head' if row.is_head else ''}{' DAMAGED' if row.is_damaged else ''}"
    builds = f"  on {row.parent_id} in chain {row.root_id}" if row.parent_id else ""
    verified = f"  verified {row.verified_at}" if row.verified_at else ""
    verified += f"  copied: {row.copied}" if row.copied else ""
    taken = _with_age(one, datetime.fromtimestamp(minute * 60, UTC))
    line = (
        f"{row.snapshot_id}  {row.type}  {row.status}{marks}  {taken}"
        f"  {format_bytes(row.stored_bytes)}  {quoted(row.name)} of {quoted(row.resource_name)} ({row.resource_id}){builds}"
        f"{f'  {row.consistency}' if row.consistency else ''}{verified}{_details(row)}"
    )
    return row, line


def _details(row: SnapshotRow) -> str:
    """Return what `verbose` adds to a line."""
    parts = [
        f"disk {format_bytes(row.disk_bytes)}" if row.disk_bytes is not None else "",
        f"{row.chain_count} in its chain" if row.chain_count else "",
        f"tags {', '.join(map(quoted, row.tags))}" if row.tags else "",
        f"description {quoted(row.description, MESSAGE_CHARACTERS)}" if row.description else "",
    ]
    return "".join(f"  {one}" for one in parts if one)


def resource_line(row: ResourceRow, now: datetime) -> str:
    """Return a disk, machine or image as a line of text, with what protects it."""
    attached = f"  on {row.attached_to}" if row.attached_to else ""
    held = f"  IN USE: {row.held_by}" if row.held_by else ""
    problem = f"  PROBLEM: {row.problem}" if row.problem else ""
    running = f"  RUNNING: {', '.join(row.running)}" if row.running else ""
    size = " ".join(filter(None, [format_bytes(row.disk_bytes), row.format]))
    what = f"{row.resource_id}  {row.kind}  {row.status}  {size}  {quoted(row.name)}"
    place = f"  {row.path}" if row.path else ""
    return f"{what}{attached}{place}{_protection_in_words(row, now)}{running}{held}{problem}"


def _protection_in_words(row: ResourceRow, now: datetime) -> str:
    if row.good_count is None or row.stored_bytes is None:
        return ""
    parts = [f"{row.good_count} good"]
    parts += [f"{row.damaged_count} DAMAGED"] if row.damaged_count else []
    parts += [f"{row.fuzzy_count} fuzzy"] if row.fuzzy_count else []
    counts = f"{', '.join(parts)}, {format_bytes(row.stored_bytes)} stored"
    if not row.newest_good_id:
        return f"  NOT COVERED: {counts}"
    taken = datetime.fromisoformat(row.newest_good_time) if row.newest_good_time else None
    age = f" of {row.newest_good_time} ({age_in_words(taken, now)})" if taken else ""
    verified = f"verified {row.verified_at}" if row.verified_at else "never verified"
    copied = f"; copied {row.copied}" if row.copied else ""
    consistency = f", {consistency_in_words(row.consistency)}" if row.consistency else ""
    return f"  newest good {row.newest_good_id}{age}{consistency}, {verified}; {counts}{copied}"
