"""`snapshot-mcp copy`: the copies that survive the machine (`[copies.NAME]` in config.toml): run, list, check, and their key."""

import argparse
import getpass
import os
import sys
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.cli.out import ask, is_answer, say, say_json
from snapshot_mcp.cli.person import NO_TERMINAL_HINT, need_terminal, user_name
from snapshot_mcp.cli.recovery_key import add_key, given_key
from snapshot_mcp.contract.errors import BadRequest, NotFound, ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, encodable, format_bytes
from snapshot_mcp.ground.mounts import drive_of
from snapshot_mcp.zones.finding import sorted_names

if TYPE_CHECKING:
    from snapshot_mcp.app import LocalZone
    from snapshot_mcp.contract.copied import CopyStatus
    from snapshot_mcp.contract.models import Job
    from snapshot_mcp.copies.settings import CopySettings
    from snapshot_mcp.settings import Settings

JOB_FAILED = 3
"""Exit status of a run that was started and failed."""

HOW = 'The operator writes [copies.NAME] with `to` into config.toml: README, "A copy that survives the machine".'
TYPED = 6
"""Last characters of the recovery key that are typed again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    run_it = acts.add_parser("run", help="bring copies up to date; backups do it by themselves")
    run_it.add_argument("name", nargs="?", default="", metavar="COPY", help="only this one")
    run_it.add_argument("--no-wait", action="store_true", help="start it and return")
    listed = acts.add_parser("list", help="how each copy stands")
    check = acts.add_parser("check", help="read back all that was sent")
    check.add_argument("name", nargs="?", default="", metavar="COPY", help="only this one")
    check.add_argument("--restore", action="store_true", help="prove with the recovery key that it restores")
    add_key(check)
    key = acts.add_parser("key", help="make the recovery key, once")
    key.add_argument("--out", type=Path, metavar="FILE", help="write it into a new file instead of showing it")
    for one in (run_it, listed, check):
        one.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    match args.act:
        case "run":
            return anyio.run(_run, settings, args)
        case "list":
            return anyio.run(_list, settings, args)
        case "check":
            return anyio.run(_check, settings, args)
        case _:
            return _make_key(settings, args)


def _chosen(settings: "Settings", name: str) -> "list[tuple[str, str, CopySettings]]":
    """Return zone, name and settings of the copies that are meant. Raises NotFound."""
    from snapshot_mcp import app

    if name and name not in settings.copies:
        names = ", ".join(sorted_names(name, list(settings.copies)))
        raise NotFound(f"There is no copy {name!r}.", hint=f"Copies: {names}." if names else HOW)
    if not settings.copies:
        raise NotFound("No copy is set up.", hint=HOW)
    return [
        (zone, copy, one)
        for zone in app.local_zones(settings)
        for copy, one in settings.copies_of(zone).items()
        if not name or copy == name
    ]


async def _run(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    ended: list[dict[str, Any]] = []
    for zone_name, copy, _ in _chosen(settings, args.name):
        async with aclosing(app.open_local_zone(settings, zone_name)) as zone:
            job = await zone.start_copy(copy)
            if not args.no_wait:
                job = await _follow(zone, job)
        ended.append({"copy": copy, "zone": zone_name, "job_id": job.job_id, "status": str(job.status)} | _told(job))
    if args.json:
        say_json(ended)
    else:
        for one in ended:
            say(*_in_words(one))
    return JOB_FAILED if any(one["status"] == "failed" for one in ended) else 0


async def _follow(zone: "LocalZone", job: "Job") -> "Job":
    with progress_bar("copying") as advance:
        while not job.is_finished:
            await anyio.sleep(0.1)
            job = await zone.get_job(job.job_id)
            if job.progress:
                advance(job.progress.done, job.progress.total)
    return job


def _told(job: "Job") -> dict[str, Any]:
    details = {name: job.details[name] for name in ("sent", "sent_bytes", "removed", "findings") if name in job.details}
    return details | ({"error": job.reason} if job.reason else {})


def _in_words(one: dict[str, Any]) -> Iterable[str]:
    head = f"Copy {one['copy']} of zone {one['zone']}"
    if one["status"] == "failed":
        yield f"{head} failed: {clean_text(one.get('error', ''), MESSAGE_CHARACTERS)}"
    elif one["status"] != "successful":
        yield f"{head} has started: job {one['job_id']}."
    else:
        sent, removed = one.get("sent", []), one.get("removed", [])
        new = f"{_count(sent)} sent ({format_bytes(one.get('sent_bytes', 0))})" if sent else "nothing new"
        yield f"{head} is up to date: {new}." + (
            f" {_count(removed)} removed, whose days were over." if removed else ""
        )
    yield from (f"  look at  {clean_text(text, MESSAGE_CHARACTERS)}" for text in one.get("findings", []))


def _count(ids: list[str]) -> str:
    return "1 restore point" if len(ids) == 1 else f"{len(ids)} restore points"


async def _list(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    rows: list[dict[str, Any]] = []
    for zone_name, copy, one in _chosen(settings, ""):
        async with aclosing(app.open_local_zone(settings, zone_name)) as zone:
            known = {status.copy_name: status for status in await zone.list_copies()}
            own = zone.folder
        is_near = not one.is_s3 and await anyio.to_thread.run_sync(_on_one_drive, own, one.folder)
        rows.append(
            {"copy": copy, "zone": zone_name, "to": one.to, "encrypted": one.is_sealed, "same_drive": is_near}
            | _status(known.get(copy))
        )
    if args.json:
        say_json(rows)
        return 0
    for row in rows:
        say(f"{row['copy']}  zone {row['zone']} to {row['to']}{', encrypted' if row['encrypted'] else ''}")
        say(f"  {_standing(row)}")
        if row.get("former"):
            say(f"  look at  also there, of former keys or settings, and not tended: {clean_text(row['former'], 200)}")
        if row["same_drive"]:
            say("  look at  it lies on one drive with the zone, and dies with it")
        if row.get("problem"):
            say(f"  look at  {clean_text(row['problem'], MESSAGE_CHARACTERS)} ({row['problem_at']})")
    return 1 if any(row.get("problem") or "copied" not in row for row in rows) else 0


def _on_one_drive(zone: Path, copy: Path) -> bool:
    """Return whether a copy lies on the drive of the zone's own files; False if that cannot be told."""
    try:
        return drive_of(copy) == drive_of(zone)
    except OSError:
        return False


def _status(status: "CopyStatus | None") -> dict[str, Any]:
    return {} if status is None else status.to_wire() | {"copied": status.copied_count, "missing": status.missing_count}


def _standing(row: dict[str, Any]) -> str:
    if "copied" not in row:
        return "it has not run yet: `snapshot-mcp copy run`"
    held = f"{row['copied']} restore points, {format_bytes(row['stored_bytes'])}"
    lacks = f", {row['missing']} not copied yet" if row["missing"] else ""
    checked = f"holds what was sent as of {row['checked_at']}" if row["checked_at"] else "never checked"
    restored = f", restores as of {row['restored_at']}" if row["restored_at"] else ""
    return f"{held}{lacks}; last run {row['ran_at'] or 'never'}; {checked}{restored}"


async def _check(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp.cli.copy_check import check_one

    key = given_key(args) if args.restore or args.key_file else None
    results = []
    for zone_name, copy, one in _chosen(settings, args.name):
        try:
            results.append(await check_one(settings, zone_name, copy, one, key))
        except ZoneError as error:
            results.append({"copy": copy, "zone": zone_name, "findings": [str(error)]})
    if args.json:
        say_json(results)
    else:
        for found in results:
            say(*_checked_in_words(found))
    return 1 if any(found["findings"] for found in results) else 0


def _checked_in_words(found: dict[str, Any]) -> Iterable[str]:
    head = f"Copy {found['copy']} of zone {found['zone']}"
    if not found["findings"]:
        what = "restores" if found["restored"] else "holds what was sent"
        more = "" if found["restored"] else " (that it restores, `--restore` proves with the recovery key)"
        yield f"{head} {what}: {found['parts']} restore points, {format_bytes(found['bytes'])} read back{more}."
    else:
        yield f"{head} is NOT as it was sent; the next run sends again what is missing there and whole here:"
        yield from (f"  {clean_text(text, MESSAGE_CHARACTERS)}" for text in found["findings"])


def _make_key(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.copies.keys import keep_keys, keys_exist, make_keys, read_keys

    guard = app.build_guard(settings, has_page=False)
    if anyio.run(guard.has_pin):
        need_terminal("copy key")
        pin = getpass.getpass("PIN: ")
        anyio.run(guard.prove_person, pin, {"operation": "copy key", "principal": user_name()})
    if read_keys(settings.home) is not None:
        raise keys_exist(settings.home)
    recovery, machine = make_keys()
    if args.out:
        _write_new(args.out, recovery.text)
        say(
            f"The recovery key is in {clean_text(encodable(str(args.out)))}. Take it off this machine: it is not kept here."
        )
    else:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise BadRequest(
                "`copy key` shows a secret once, and needs a terminal.", hint=f"{NO_TERMINAL_HINT} Or --out FILE."
            )
        say(
            "This is the recovery key. It is shown once and kept nowhere; without it an encrypted copy dies with this machine.",
            "",
            recovery.text,
            "",
            "Keep it where this machine's end does not reach: a password manager, a sheet of paper.",
        )
        if not is_answer(ask(f"Type its last {TYPED} characters:").upper(), recovery.text[-TYPED:]):
            say("That is not it: no key was kept, and nothing has changed. Run the command again.")
            return 1
    keep_keys(settings.home, machine)
    say("This machine can now seal and sign copies, and cannot open them.")
    return 0


def _write_new(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(
            f"No file can be created at {str(path)!r}: {error.strerror}.", hint="Give a new path."
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
