"""`back-up`, `snapshots`, `disks`, `chain`, `restore`, `delete`, `recover`, `verify`, `rename`, `tag`, `cancel`.

Each is one tool's call; its arguments and the tool's stand in one function here.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from snapshot_mcp.cli.out import warn
from snapshot_mcp.contract.errors import Forbidden

if TYPE_CHECKING:
    from snapshot_mcp.cli.shell.session import ShellReply
    from snapshot_mcp.settings import Settings

ROWS = 100
"""Rows of a list, if the person does not say how many."""

RECOMMENDED = "--to-volume NAME restores beside the disk: it overwrites nothing and needs no PIN."

STATUSES = (
    "exit status: 0 done or submitted; 1 an error or a no: nothing was started; 2 wrong usage;"
    " 3 the job failed, or its end is unknown"
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool and its arguments. `person`: what needs the operator's PIN, as a command, "" for what does not."""

    tool: str
    arguments: dict[str, Any]
    person: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command = parser.get_default("command")
    parser.epilog = f"{RECOMMENDED} {STATUSES}." if command == "restore" else f"{STATUSES}."
    _ARGUMENTS[command](parser)
    parser.add_argument("--zone", default="", metavar="NAME", help="the zone, if the settings have several")
    parser.add_argument("--json", action="store_true", help="print JSON")
    if command in _WAITING:
        parser.add_argument("--wait", action="store_true", help="wait until the job has ended, with a bar")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    if args.command == "restore":
        _check_restore(args)
        if args.to_file is not None:
            from snapshot_mcp.cli.shell import to_file

            return to_file.run(settings, args)
    act = _ACTS[args.command](args)
    if args.zone:
        act.arguments["zone"] = args.zone
    return _carry_out(settings, act, args)


def _carry_out(settings: "Settings", act: ToolCall, args: argparse.Namespace) -> int:
    from snapshot_mcp.cli.shell.consent import ask_person, kept_terminal, need_person
    from snapshot_mcp.cli.shell.session import open_session, print_reply
    from snapshot_mcp.cli.shell.words import program

    if settings.read_only and args.command not in _READING:
        raise Forbidden(f"This home is read-only: `{args.command}` did nothing.")
    if act.person:
        need_person(settings, act.person, RECOMMENDED if args.command == "restore" else "")
    started = ""

    async def call() -> "ShellReply":
        nonlocal started
        async with open_session(settings, ask_person if act.person else None) as session:
            try:
                waits = getattr(args, "wait", False) and not act.arguments.get("plan_only")
                return await (session.call_and_wait if waits else session.call)(act.tool, act.arguments)
            finally:
                started = session.started

    try:
        with kept_terminal():
            reply = anyio.run(call)
    except KeyboardInterrupt:
        if started:
            shell = program()
            warn(f"Job {started} goes on: `{shell} jobs` shows it, `{shell} cancel {started}` stops it.")
        raise
    return print_reply(reply, as_json=args.json)


def _check_restore(args: argparse.Namespace) -> None:
    """End with wrong usage unless the arguments say where to restore, and what fits there."""
    if args.to_volume is None and args.to_image is None and args.to_file is None and not args.in_place:
        args.parser.error(f"where to? {RECOMMENDED} (or --to-file PATH, --to-image NAME, --in-place)")
    if not args.in_place and (len(args.snapshot) > 1 or args.plan or args.no_safety_snapshot):
        args.parser.error("several snapshots, --plan and --no-safety-snapshot go with --in-place only")


def _back_up(args: argparse.Namespace) -> ToolCall:
    name = args.name or f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return ToolCall("create_snapshots", {"resource_ids": args.disk, "name": name, "full": args.full})


def _snapshots(args: argparse.Namespace) -> ToolCall:
    wanted = {"resource_id": args.disk, "status": args.status, "search": args.search, "tags": args.tag}
    return ToolCall(
        "list_snapshots", _given(wanted) | {"limit": args.limit, "offset": args.offset, "verbose": args.verbose}
    )


def _disks(args: argparse.Namespace) -> ToolCall:
    return ToolCall("list_resources", _given({"kind": args.kind, "search": args.search}) | _page(args))


def _restore(args: argparse.Namespace) -> ToolCall:
    if args.to_volume is not None:
        return ToolCall("export_to_volume", {"snapshot_id": args.snapshot[0], "volume_name": args.to_volume})
    if args.to_image is not None:
        return ToolCall("export_to_image", {"snapshot_id": args.snapshot[0], "image_name": args.to_image})
    asked = {"snapshot_ids": args.snapshot, "safety_snapshot": not args.no_safety_snapshot, "plan_only": args.plan}
    return ToolCall("rollback_to_snapshots", asked, "" if args.plan else "restore --in-place")


def _delete(args: argparse.Namespace) -> ToolCall:
    asked = {"snapshot_id": args.snapshot, "plan_only": args.plan}
    return ToolCall("delete_snapshot", asked, "" if args.plan else "delete")


def _rename(args: argparse.Namespace) -> ToolCall:
    return ToolCall(
        "rename_snapshot", {"snapshot_id": args.snapshot} | _given({"name": args.name, "description": args.description})
    )


def _tag(args: argparse.Namespace) -> ToolCall:
    return ToolCall("rename_snapshot", {"snapshot_id": args.snapshot, "tags": args.tag or [""]})


def _page(args: argparse.Namespace) -> dict[str, Any]:
    return {"limit": args.limit, "offset": args.offset}


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value}


_ACTS: dict[str, Callable[[argparse.Namespace], ToolCall]] = {
    "back-up": _back_up,
    "snapshots": _snapshots,
    "disks": _disks,
    "chain": lambda args: ToolCall("show_chain", {"resource_id": args.disk}),
    "restore": _restore,
    "delete": _delete,
    "recover": lambda args: ToolCall("recover_snapshots", {"snapshot_ids": args.snapshot}),
    "verify": lambda args: ToolCall("verify_snapshots", {"snapshot_ids": args.snapshot}),
    "rename": _rename,
    "tag": _tag,
    "cancel": lambda args: ToolCall("cancel_job", {"job_id": args.job}),
}

_WAITING = {"back-up", "restore", "delete", "recover", "verify"}
"""Commands that start a job."""

_READING = {"snapshots", "disks", "chain"}
"""Commands that a read-only home has."""


def _add_back_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", nargs="+", metavar="DISK", help="ids or exact names; several at one point in time")
    parser.add_argument("--name", default="", help="the restore point's name (default: the time now, in UTC)")
    parser.add_argument("--full", action="store_true", help="full even if an incremental is possible")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--search", default="", metavar="WORD", help="part of an id or name")
    parser.add_argument("--limit", type=int, default=ROWS, metavar="N", help=f"rows (1 to 100, default {ROWS})")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="rows to skip")


def _add_snapshots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", nargs="?", default="", metavar="DISK", help="only of this disk: its id or exact name")
    status = "pending, available, suspended, deleted or ceased; may be repeated (default: all but the last two)"
    parser.add_argument("--status", action="append", metavar="STATUS", help=status)
    parser.add_argument("--tag", action="append", metavar="TAG", help="only with this tag; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="with description, tags, disk and chain sizes")
    _add_list(parser)


def _add_disks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=("volume", "instance", "image"), default="", help="only this kind")
    _add_list(parser)


def _add_restore(parser: argparse.ArgumentParser) -> None:
    several = "the restore point's id; with --in-place several, one for each disk"
    parser.add_argument("snapshot", nargs="+", metavar="SNAPSHOT", help=several)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--to-volume", metavar="NAME", help="recommended: a new volume beside the disk")
    where.add_argument("--to-image", metavar="NAME", help="an image of a machine's restore point")
    where.add_argument("--to-file", type=Path, metavar="PATH", help="a new raw file; never over one that is there")
    where.add_argument("--in-place", action="store_true", help="over the disk's present content; wants the PIN")
    parser.add_argument(
        "--no-safety-snapshot", action="store_true", help="--in-place without saving the present content"
    )
    parser.add_argument("--plan", action="store_true", help="--in-place: only show what it would do")


def _add_delete(parser: argparse.ArgumentParser) -> None:
    _add_snapshot(parser)
    parser.add_argument("--plan", action="store_true", help="only show what it would take")


def _add_snapshot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="the restore point's id")


def _add_several(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", nargs="+", metavar="SNAPSHOT", help="the restore points' ids")


def _add_rename(parser: argparse.ArgumentParser) -> None:
    _add_snapshot(parser)
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="its new name")
    parser.add_argument("--description", default="", help='its new description; " " removes it')


def _add_tag(parser: argparse.ArgumentParser) -> None:
    _add_snapshot(parser)
    parser.add_argument("tag", nargs="*", metavar="TAG", help="all its tags from now on; none removes them")


def _add_disk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", metavar="DISK", help="its id or exact name")


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="as `jobs` shows it")


_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "back-up": _add_back_up,
    "snapshots": _add_snapshots,
    "disks": _add_disks,
    "chain": _add_disk,
    "restore": _add_restore,
    "delete": _add_delete,
    "recover": _add_several,
    "verify": _add_several,
    "rename": _add_rename,
    "tag": _add_tag,
    "cancel": _add_job,
}
