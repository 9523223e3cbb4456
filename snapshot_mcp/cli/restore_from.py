"""`snapshot-mcp restore-from URL`: back from nothing, on a new machine, with the place of a copy and the recovery key.

It lists what is there, makes a new zone of it, or writes one restore point into a new file. It creates and never overwrites.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.cli.out import say, say_json, warn
from snapshot_mcp.cli.recovery_key import add_key, given_key, may_ask
from snapshot_mcp.cli.shell.to_file import created, shown_path
from snapshot_mcp.contract.errors import BadRequest, Damaged, NotFound
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, encodable, format_bytes
from snapshot_mcp.zones.finding import sorted_names

if TYPE_CHECKING:
    from snapshot_mcp.app import LocalZone
    from snapshot_mcp.contract.parts import Part
    from snapshot_mcp.copies.keys import RecoveryKey
    from snapshot_mcp.copies.library import FoundCopy, Library
    from snapshot_mcp.copies.settings import StoreSettings
    from snapshot_mcp.copies.stores import CopyStore
    from snapshot_mcp.settings import Settings

MAX_SHOWN = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("url", metavar="URL", help="a folder, s3://BUCKET/PREFIX, or the name of a copy in config.toml")
    parser.add_argument("snapshot", nargs="?", default="", metavar="SNAPSHOT", help="one restore point, with --to-file")
    parser.add_argument("--to-file", type=Path, metavar="PATH", help="write it into a new file")
    parser.add_argument(
        "--new-zone", default="", metavar="NAME", help="make this zone, which must be empty, of what is there"
    )
    parser.add_argument(
        "--deleted", action="store_true", help="with --new-zone: also what was deleted and is still there"
    )
    parser.add_argument("--endpoint", default="", metavar="URL", help="of an object store that is not Amazon's")
    parser.add_argument("--region", default="", metavar="NAME", help="of the object store")
    add_key(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "An object store's credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        " (AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION). Nothing that exists is overwritten."
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    if bool(args.snapshot) != bool(args.to_file):
        raise BadRequest("SNAPSHOT and --to-file belong together.", hint="Without both it lists what is there.")
    if args.to_file and args.new_zone:
        raise BadRequest("Give --to-file or --new-zone, not both.", hint="A zone holds all, a file one restore point.")
    settings = app.own_settings()
    return anyio.run(_run, settings, args)


async def _run(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp.copies.stores import open_store

    place = _place(settings, args)
    store = open_store(place)
    library, key = await _read(store, args)
    source = CopySource(store, library, key, place.place)
    for text in source.findings():
        warn(f"snapshot-mcp: look at  {clean_text(text, MESSAGE_CHARACTERS)}")
    if args.to_file:
        return await _to_file(settings, source, args)
    if args.new_zone:
        return await _to_zone(settings, source, args)
    _tell(source, as_json=args.json)
    return 0


class CopySource:
    """What a store holds, and how it is fetched."""

    def __init__(self, store: "CopyStore", library: "Library", key: "RecoveryKey | None", place: str) -> None:
        self.store, self.library, self.key, self.place = store, library, key, place
        self.found = library.found()

    def findings(self) -> list[str]:
        """Return what is wrong there."""
        found = [text for shelf in self.library.shelves for text in shelf.findings]
        found += [f"not readable with this key: {text}" for text in self.library.foreign]
        if self.key is None:
            found.append("without the recovery key it is not proven who wrote this copy")
        return found

    def best(self) -> "list[FoundCopy]":
        """Return one copy of each restore point."""
        return [copies[0] for copies in self.found.values()]

    def chain(self, snapshot_id: str) -> "list[Part]":
        """Return a restore point and all that it builds on. Raises NotFound, Damaged."""
        if snapshot_id not in self.found:
            ids = sorted_names(snapshot_id, list(self.found))
            raise NotFound(f"The copy has no restore point {snapshot_id!r}.", hint=f"Near: {', '.join(ids[:5])}.")
        part = self.found[snapshot_id][0].entry.part()
        if missing := [one for one in part.parents if one not in self.found]:
            raise Damaged(f"{snapshot_id} builds on {missing[0]}, which is not there.", hint="Choose another one.")
        return [*(self.found[one][0].entry.part() for one in part.parents), part]

    async def make(self, zone: "LocalZone", parts: "list[Part]", *, is_durable: bool = True) -> Any:
        """Make a zone of these parts, with a bar."""
        from snapshot_mcp.copies.fetch import Fetcher

        total, done = sum(part.size_bytes for part in parts), 0
        with progress_bar("reading") as bar:

            def advance(amount: int) -> None:
                nonlocal done
                done += amount
                bar(done, total)

            fetcher = Fetcher(self.store, self.key, advance, is_durable=is_durable)

            def fetch(part: "Part", path: Path) -> None:
                fetcher.fetch_any(self.found[part.part_id], path)

            return await zone.make_of(self.place, parts, fetch)


def _place(settings: "Settings", args: argparse.Namespace) -> "StoreSettings":
    """Return the store that is meant: a copy of the settings by its name, or a URL with credentials from the environment."""
    from pydantic import ValidationError

    from snapshot_mcp.copies.settings import StoreSettings

    if args.url in settings.copies:
        return settings.copies[args.url]
    to = args.url if "://" in args.url else str(Path(args.url).expanduser().absolute())
    given = {"to": to, "endpoint": args.endpoint or os.environ.get("AWS_ENDPOINT_URL", "")}
    if region := args.region or os.environ.get("AWS_REGION", ""):
        given["region"] = region
    for field in ("access_key_id", "secret_access_key", "session_token"):
        if value := os.environ.get(f"AWS_{field.upper()}", ""):
            given[field] = value
    try:
        return StoreSettings.model_validate(given)
    except ValidationError as error:
        why = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors(include_input=False))
        why = why.replace(
            "access_key_id and secret_access_key, or instance_metadata = true",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
        raise BadRequest(f"{clean_text(args.url)!r} cannot be read from: {why}.") from None


async def _read(store: "CopyStore", args: argparse.Namespace) -> "tuple[Library, RecoveryKey | None]":
    """Read the library with the key that was given, or that is asked for once it is needed."""
    from snapshot_mcp.copies.library import read_library

    key = given_key(args) if args.key_file else None
    try:
        return await anyio.to_thread.run_sync(read_library, store, key), key
    except Damaged as error:
        if key or not may_ask() or "sealed" not in error.message:
            raise
    key = given_key(args)
    return await anyio.to_thread.run_sync(read_library, store, key), key


def _tell(source: CopySource, *, as_json: bool) -> None:
    shelves = source.library.shelves
    if as_json:
        say_json(
            {
                "writers": [
                    {
                        "writer": one.manifest.writer,
                        "zone": clean_text(one.manifest.zone),
                        "host": clean_text(one.manifest.host),
                        "manifest": one.manifest.number,
                        "written_at": _time(one.manifest.written_at),
                    }
                    for one in shelves
                ],
                "restore_points": [_row(one) for one in source.best()],
                "findings": [clean_text(one, MESSAGE_CHARACTERS) for one in source.findings()],
            }
        )
        return
    for one in shelves:
        say(f"{one.title}: {len(one.manifest.entries)} restore points")
    rows = sorted((_row(one) for one in source.best()), key=lambda row: row["taken_at"], reverse=True)
    say(*map(_line, rows[:MAX_SHOWN]))
    if len(rows) > MAX_SHOWN:
        say(f"and {len(rows) - MAX_SHOWN} older ones; --json shows all.")
    say("Next: --new-zone local makes a zone of all; SNAPSHOT --to-file PATH writes one disk.")


def _row(one: "FoundCopy") -> dict[str, Any]:
    entry = one.entry
    return {
        "snapshot_id": entry.part_id,
        "name": clean_text(entry.name),
        "disk_id": entry.resource_id,
        "disk": clean_text(entry.resource_name),
        "taken_at": _time(entry.taken_at),
        "consistency": clean_text(entry.consistency),
        "stored_bytes": entry.stored_bytes,
        "disk_bytes": entry.disk_bytes,
        "builds_on": list(entry.parents),
        "deleted_until": None if entry.until is None else _time(entry.until),
        "writer": one.writer,
    }


def _line(row: dict[str, Any]) -> str:
    gone = f", deleted at home, stays until {row['deleted_until']}" if row["deleted_until"] else ""
    kind = "incremental" if row["builds_on"] else "full"
    return (
        f"  {row['snapshot_id']}  {row['taken_at']}  {row['disk']} ({row['disk_id']}, {format_bytes(row['disk_bytes'])})"
        f"  {kind}, {row['consistency']}  {row['name']}{gone}"
    )


def _time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))


async def _to_zone(settings: "Settings", source: CopySource, args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    parts = [one.entry.part() for one in source.best() if args.deleted or one.entry.until is None]
    async with aclosing(app.open_local_zone(settings, args.new_zone)) as zone:
        made = await source.make(zone, parts)
        report = await zone.check()
    damaged = [f"{one.subject}: {one.text}" for one in report.findings if one.is_damage]
    wrong = [*(f"{one}: {why}" for one, why in made.missing.items()), *damaged]
    disks = made.report.disks
    if args.json:
        say_json(
            {
                "zone": args.new_zone,
                "restored": len(parts) - len(made.missing),
                "missing": made.missing,
                "damaged": damaged,
                "disks": [{"disk_id": one.resource_id, "name": clean_text(one.name)} for one in disks],
            }
        )
        return 1 if wrong or source.library.is_behind else 0
    count = len(parts) - len(made.missing)
    say(f"Zone {args.new_zone} has {count} of {len(parts)} restore points, every byte verified.")
    say(*(f"MISSING  {clean_text(one, MESSAGE_CHARACTERS)}" for one in wrong))
    command = app.command(settings.variables)
    for one in disks:
        was = f" (it was at {clean_text(one.former_path, 200)})" if one.former_path else ""
        say(
            f"{one.resource_id} {clean_text(one.name)} has no file{was}. Next: {command} restore SNAPSHOT --to-file PATH,"
        )
        say(f"  then {command} zone move {one.resource_id} PATH")
    return 1 if wrong or source.library.is_behind else 0


async def _to_file(settings: "Settings", source: CopySource, args: argparse.Namespace) -> int:
    """Fetch the chain into a scratch zone beside the file, and write the file from there; every byte is verified twice."""
    from snapshot_mcp import app

    parts, path = source.chain(args.snapshot), args.to_file.absolute()
    own = [settings.home, *([settings.path] if settings.path else [])]
    with created(path, own) as descriptor, _scratch(path.parent) as folder:
        async with aclosing(app.make_zone_in(folder / "zone")) as zone:
            made = await source.make(zone, parts, is_durable=False)
            if made.missing:
                one, why = next(iter(made.missing.items()))
                raise Damaged(f"{one} cannot be restored: {why}", hint="Choose another restore point.")
            with progress_bar("writing") as advance:
                written = await zone.read_out(args.snapshot, descriptor, advance)
    shown = shown_path(path)
    if args.json:
        say_json(
            {"status": "written", "snapshot_id": args.snapshot, "path": encodable(str(path)), "disk_bytes": written}
        )
    else:
        say(f"{args.snapshot} is written whole to {shown} ({format_bytes(written)}), every byte verified.")
    return 0


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder beside the file: what is fetched needs room there, as long as the command runs."""
    with tempfile.TemporaryDirectory(prefix=".snapshot-mcp-", dir=folder) as name:
        yield Path(name)
