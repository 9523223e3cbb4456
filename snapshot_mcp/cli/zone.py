"""`snapshot-mcp zone …`: manage the embedded zone and its disks."""

import argparse
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli import zone_forget, zone_keys, zone_move, zone_purge, zone_rebuild, zone_remove, zone_serve
from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.cli.out import say, warn
from snapshot_mcp.cli.person import user_name
from snapshot_mcp.cli.zone_form import add_domain, add_form, add_machine, form_of, say_form
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import Instance, ResourceFilter, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import clean_text, encodable, format_bytes
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.zones.finding import read_whole

MAX_MISSING = 3
"""Most disks without a file that are named after another was registered."""

SECTOR_BYTES = 512
"""A machine reads and writes whole sectors of a disk."""

COMMANDS = {
    "serve": zone_serve.run,
    "keys": zone_keys.run,
    "purge": zone_purge.run,
    "move": zone_move.run,
    "remove": zone_remove.run,
    "forget": zone_forget.run,
}
"""The commands that have a module of their own."""

if TYPE_CHECKING:
    from snapshot_mcp.app import Guard, LocalZone, OwnZone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    commands = parser.add_subparsers(dest="zone_command", metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="register a disk as a volume, or as an instance")
    add.add_argument("path", type=Path, nargs="?", metavar="PATH", help="the image; it stays where it is")
    add.add_argument("--name", default="", help="its name (default: the file's name)")
    add.add_argument(
        "--instance", action="store_true", help="register an instance's disk: its snapshots export to images"
    )
    add_form(add)
    add_machine(add)
    add_domain(add)
    zone_remove.add_arguments(
        commands.add_parser(
            "remove", help="unregister a disk, or take an image off the list; its file and snapshots remain"
        )
    )
    zone_move.add_arguments(
        commands.add_parser("move", help="take a disk to another path, where its file is now; its restore points stay")
    )
    zone_forget.add_arguments(
        commands.add_parser(
            "forget", help="destroy all restore points of a disk on Ceph, so that it can be removed there"
        )
    )
    commands.add_parser("rebuild", help="take snapshot files in again that the catalogue does not know, or has lost")
    commands.add_parser("adopt", help="make a copy of a zone a zone of its own, without the original's disks")
    commands.add_parser("list", help="list the registered disks, their users and their problems")
    commands.add_parser("check", help="read and verify every byte of every snapshot")
    commands.add_parser("purge", help="free the space of deleted snapshots now; they can no longer be recovered")
    cancel = commands.add_parser("cancel", help="cancel a job that has had no effect yet; it leaves nothing behind")
    cancel.add_argument("job_id", metavar="JOB")
    zone_serve.add_arguments(commands.add_parser("serve", help="serve the zone as the volume-snapshot REST API"))
    keys = commands.add_parser("keys", help="list, create and remove the key pairs of `zone serve`")
    zone_keys.add_arguments(keys)
    for command in set(commands.choices.values()) - {keys}:
        command.add_argument("--zone", default="", help="the zone's name, if the settings have several")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    command = COMMANDS.get(args.zone_command)
    return command(args) if command else anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    settings = app.own_settings()
    guard = app.build_guard(settings)
    if args.zone_command in {"cancel", "list", "check"}:
        async with aclosing(app.open_own_zone(settings, args.zone)) as own:
            return await _look(own, args, guard.command)
    async with aclosing(app.open_local_zone(settings, args.zone)) as zone:
        match args.zone_command:
            case "add" if args.domain:
                await _add_domain(zone, guard, args)
            case "add":
                if args.path is None:
                    raise BadRequest(
                        "No disk was given.", hint="Give its PATH, or --domain NAME for a machine's disks."
                    )
                kind = ResourceType.INSTANCE if args.instance else ResourceType.VOLUME
                path = encodable(str(args.path.absolute()))
                name, form = encodable(args.name or args.path.name), form_of(args)
                deed = app.deed("zone add", zone, user_name(), path=path, name=name, format=form.format or "raw")
                async with guard.recorded(deed) as found:
                    added = await zone.add_resource(args.path, args.name, kind, form)
                    found["resource_id"] = added.id
                say(_line(added))
                say_form(args)
                if odd := added.byte_size % SECTOR_BYTES:
                    note = f"Its size is not a multiple of {SECTOR_BYTES} bytes ({odd} are left over): is it complete?"
                    warn(note)
                await _point_to_missing(zone, added, guard.command)
            case "adopt":
                deed = app.deed("zone adopt", zone, user_name(), folder=encodable(str(zone.folder)))
                async with guard.recorded(deed) as found:
                    detached = await zone.adopt()
                    found["resource_ids"] = detached
                say("The copy is a zone of its own now. Jobs that were copied with it have ended.")
                say(*(f"{one} has no file: {guard.command} zone move {one} PATH" for one in detached))
            case "rebuild":
                deed = app.deed("zone rebuild", zone, user_name(), folder=encodable(str(zone.folder)))
                async with guard.recorded(deed) as found:
                    report = await zone.rebuild()
                    found["snapshot_ids"] = list(report.taken_in)
                return zone_rebuild.tell(report, guard.command)
    return 0


async def _add_domain(zone: "LocalZone", guard: "Guard", args: argparse.Namespace) -> None:
    """Register the disks of a domain of libvirt."""
    from snapshot_mcp import app

    if args.name or args.format:
        raise BadRequest(
            "A domain's disks have the names and formats of its definition.", hint="Leave --name and --format out."
        )
    kind = ResourceType.INSTANCE if args.instance else ResourceType.VOLUME
    only = args.path.absolute() if args.path else None
    form = form_of(args)
    deed = app.deed("zone add", zone, user_name(), domain=encodable(args.domain), path=encodable(str(only or "")))
    async with guard.recorded(deed) as found:
        added = await zone.add_domain(args.domain, kind, form, only, is_monitored=args.monitor)
        found["resource_ids"] = [one.id for one in added]
    say(*map(_line, added))
    say_form(args)


async def _look(zone: "OwnZone", args: argparse.Namespace, command: str) -> int:
    """Run a command that every zone of ours has."""
    match args.zone_command:
        case "cancel":
            job = await zone.cancel_job(args.job_id)
            done = "is cancelled" if job.is_finished else "is being cancelled and will end in a moment"
            say(f"Job {job.job_id} ({job.action}) {done}.")
        case "list":
            await _list(zone, command)
        case "check":
            return await _check(zone)
    return 0


async def _point_to_missing(zone: "LocalZone", added: Volume | Instance, command: str) -> None:
    """Say which disks have no file at their path: what was added may be one of them, which was moved."""
    query = ResourceFilter()
    disks = [*await read_whole(zone.list_volumes, query), *await read_whole(zone.list_instances, query)]
    for one in [one for one in disks if not one.byte_size][:MAX_MISSING]:
        name = f"{clean_text(one.name)} ({one.id})"
        warn(
            f"{name} has no file at its path. If this is its file, keep its restore points:",
            f"{command} zone remove {added.id}",
            f"{command} zone move {one.id} {quote(added.path or '')}",
        )


def _line(resource: Volume | Instance) -> str:
    path = clean_text(resource.path or "", 400)
    size = " ".join(filter(None, [format_bytes(resource.byte_size), clean_text(resource.format or "")]))
    line = f"{resource.id}  {clean_text(resource.name)}  {size}  {path}"
    in_use = f"  in use: {clean_text(resource.held_by, 400)}" if resource.held_by else ""
    links = f"  ({resource.hard_links} hard links)" if (resource.hard_links or 0) > 1 else ""
    problem = f"  PROBLEM: {clean_text(resource.problem, 800)}" if resource.problem else ""
    return f"{line}{in_use}{links}{problem}"


async def _list(zone: "OwnZone", command: str) -> None:
    from snapshot_mcp import app

    if local := app.as_local(zone):
        await _is_copy(local)
        for line in zone_rebuild.overlooked(await local.look_over(), command):
            warn(line)
    query = ResourceFilter(verbose=1)
    resources: list[Volume | Instance] = [
        *await read_whole(zone.list_volumes, query),
        *await read_whole(zone.list_instances, query),
    ]
    say(*map(_line, resources))
    for image in await read_whole(zone.list_images, ResourceFilter()):
        problem = f"  PROBLEM: {clean_text(image.problem, 800)}" if image.problem else ""
        line = f"{image.id}  {clean_text(image.name)}  {format_bytes(image.byte_size)}  {clean_text(image.path or '', 400)}"
        say(f"{line}  (an exported image){problem}")
    if not resources:
        say(
            f"No disk is registered. Register one with: {command} zone add PATH"
            if local
            else "There is no image in the pool."
        )


async def _is_copy(zone: "LocalZone") -> bool:
    """Return whether the zone is a copy that nobody has adopted, and say so."""
    if problem := await zone.copy_problem():
        warn(problem)
    return bool(problem)


async def _check(zone: "OwnZone") -> int:
    from snapshot_mcp import app

    local = app.as_local(zone)
    is_copy = await _is_copy(local) if local else False
    with progress_bar("verifying") as advance:
        report = await zone.check(advance)
    for finding in report.findings:
        say(f"{'DAMAGED' if finding.is_damage else 'look at'}  {finding.subject}: {finding.text}")
    size = format_bytes(report.byte_count)
    say(
        f"{report.snapshot_count} snapshot{'' if report.snapshot_count == 1 else 's'}, {size} read: "
        + ("all verified." if report.is_clean else "see above.")
    )
    if any(finding.is_damage for finding in report.findings):
        warn("Snapshots built on a damaged one are affected too; the next backup of such a disk will be full.")
    return 0 if report.is_clean and not is_copy else 1
