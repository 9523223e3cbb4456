"""`snapshot-mcp zone …`: the embedded zone, for the person whose disks it holds."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli import zone_keys, zone_purge, zone_serve
from snapshot_mcp.cli.person import user_name
from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Instance, ResourceFilter, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import clean_text, format_bytes
from snapshot_mcp.zones.finding import read_whole

SECTOR_BYTES = 512
"""A machine sees whole sectors of a disk."""

if TYPE_CHECKING:
    from snapshot_mcp.app import LocalZone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="zone_command", metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="register a raw disk image as a volume, or as an instance")
    add.add_argument("path", type=Path, metavar="PATH", help="the image; it stays where it is")
    add.add_argument("--name", default="", help="what people call it (default: the file's name)")
    add.add_argument("--instance", action="store_true", help="it is an instance's disk: its snapshots export to images")
    remove = commands.add_parser("remove", help="forget a disk; its file and its snapshots stay")
    remove.add_argument("resource_id", metavar="ID")
    commands.add_parser("list", help="the registered disks, who uses them, and what is wrong with them")
    commands.add_parser("check", help="read back and verify every byte of every snapshot")
    commands.add_parser("purge", help="free the space of deleted snapshots now; they can no longer be recovered")
    cancel = commands.add_parser("cancel", help="end a job that has had no effect yet; it leaves nothing behind")
    cancel.add_argument("job_id", metavar="JOB")
    zone_serve.add_arguments(commands.add_parser("serve", help="serve it as the volume-snapshot REST API"))
    keys = commands.add_parser("keys", help="the key pairs of `zone serve`: list them, make one, remove one")
    zone_keys.add_arguments(keys)
    for command in set(commands.choices.values()) - {keys}:
        command.add_argument("--zone", default="", help="the zone's name, where settings list several")


def run(args: argparse.Namespace) -> int:
    if args.zone_command == "serve":
        return zone_serve.run(args)
    if args.zone_command == "keys":
        return zone_keys.run(args)
    if args.zone_command == "purge":
        return zone_purge.run(args)
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    settings = load_settings(os.environ)
    guard = app.build_guard(settings)
    zone = app.open_local_zone(settings, args.zone)
    try:
        match args.zone_command:
            case "add":
                kind = ResourceType.INSTANCE if args.instance else ResourceType.VOLUME
                path = str(args.path.absolute())
                deed = app.deed("zone add", zone, user_name(), path=path, name=args.name or args.path.name)
                async with guard.recorded(deed) as found:
                    added = await zone.add_resource(args.path, args.name, kind)
                    found["resource_id"] = added.id
                print(_line(added))
                if odd := added.byte_size % SECTOR_BYTES:
                    print(
                        f"Its last {odd} bytes are not a whole sector of {SECTOR_BYTES}: is it complete?",
                        file=sys.stderr,
                    )
            case "remove":
                deed = app.deed("zone remove", zone, user_name(), resource_id=args.resource_id)
                try:
                    async with guard.recorded(deed):
                        removed = await zone.remove_resource(args.resource_id)
                except NotFound as error:
                    raise NotFound(error.message, hint=f"`{guard.command} zone list` shows the ids.") from None
                print(f"{removed.id} is forgotten; its file {removed.path} and its snapshots are as they were.")
            case "cancel":
                job = await zone.cancel_job(args.job_id)
                done = "is cancelled" if job.is_finished else "has been told to stop, and ends in a moment"
                print(f"Job {job.job_id} ({job.action}) {done}.")
            case "list":
                await _list(zone, guard.command)
            case "check":
                return await _check(zone)
    finally:
        await zone.aclose()
    return 0


def _line(resource: Volume | Instance) -> str:
    path = clean_text(resource.path or "", 400)
    line = f"{resource.id}  {clean_text(resource.name)}  {format_bytes(resource.byte_size)}  {path}"
    in_use = f"  in use: {clean_text(resource.held_by, 400)}" if resource.held_by else ""
    links = f"  ({resource.hard_links} hard links)" if (resource.hard_links or 0) > 1 else ""
    problem = f"  PROBLEM: {clean_text(resource.problem, 800)}" if resource.problem else ""
    return f"{line}{in_use}{links}{problem}"


async def _list(zone: "LocalZone", command: str) -> None:
    query = ResourceFilter(verbose=1)
    resources: list[Volume | Instance] = [
        *await read_whole(zone.list_volumes, query),
        *await read_whole(zone.list_instances, query),
    ]
    for resource in resources:
        print(_line(resource))
    if not resources:
        print(f"No disk is registered. Register one with: {command} zone add PATH")


async def _check(zone: "LocalZone") -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("verifying", total=None)
        report = await zone.check(lambda done, total: progress.update(task, completed=done, total=total))
    for finding in report.findings:
        print(f"{'DAMAGED' if finding.is_damage else 'look at'}  {finding.subject}: {finding.text}")
    size = format_bytes(report.byte_count)
    print(
        f"{report.snapshot_count} snapshot{'' if report.snapshot_count == 1 else 's'}, {size} read back: "
        + ("all verified." if report.is_clean else "see above.")
    )
    if any(finding.is_damage for finding in report.findings):
        print(
            "Snapshots that build on a damaged one are affected; the next backup of such a disk is a full one.",
            file=sys.stderr,
        )
    return 0 if report.is_clean else 1
