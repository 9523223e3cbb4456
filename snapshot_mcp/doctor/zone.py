"""A zone: it is really asked for its disks, and each disk for what protects it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import anyio

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Coverage, Instance, ResourceFilter, Volume, format_time
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.text import CLOCK_SKEW_SECONDS, age_in_words, clean_text
from snapshot_mcp.doctor.symptom import Symptom, look, well, wrong
from snapshot_mcp.server.coverage import protection_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import read_list

ASK_SECONDS = 30.0
"""How long a zone may take to answer."""

MAX_DISKS = 1000
OLD = timedelta(days=7)
"""A newest backup older than this is worth a look."""

PROBLEM_CHARACTERS = 800

Disk = Volume | Instance


async def look_at_zone(zone: Zone, command: str) -> list[Symptom]:
    """Ask a zone for its disks; return what is found of it and of them."""
    about = f"zone {zone.name}"
    try:
        with anyio.fail_after(ASK_SECONDS):
            return await _ask(zone, about, command)
    except ZoneError as error:
        return [wrong(about, error.message, error.hint)]
    except TimeoutError:
        return [wrong(about, f"It did not answer within {ASK_SECONDS:.0f} s.", "Look at its provider, then try again.")]


async def _ask(zone: Zone, about: str, command: str) -> list[Symptom]:
    provider = zone.provider
    query = ResourceFilter(verbose=1 if Feature.TERMS in provider.features else 0)
    volumes, volume_count = await read_list(provider.list_volumes, query, MAX_DISKS)
    instances, instance_count = await read_list(provider.list_instances, query, MAX_DISKS)
    disks: list[Disk] = [*volumes, *instances]
    protection = await protection_of(zone, disks)
    count = volume_count + instance_count
    place = clean_text(provider.location, 400)
    first = (
        well(
            about,
            f"It answered: {count} disk{'' if count == 1 else 's'} or machine{'' if count == 1 else 's'} ({place}).",
        )
        if count
        else look(about, f"It answered, and has no disk ({place}).", _how_to_add(zone, command))
    )
    symptoms = [first, *_clock(about, provider)]
    if protection.note:
        symptoms.append(look(about, protection.note))
    for disk in disks:
        moved = f"{command} zone move {disk.id} PATH --zone {zone.name}" if hasattr(provider, "plan_move") else ""
        symptoms += _disk(disk, protection.coverage.get(disk.id), protection.running.get(disk.id, []), moved)
    return symptoms


def _how_to_add(zone: Zone, command: str) -> str:
    """Return how a zone gets a disk; only an embedded one has them registered."""
    if hasattr(zone.provider, "add_resource"):
        return f"{command} zone add PATH --zone {zone.name}"
    return "Make one at its provider: disks are found there."


def _clock(about: str, provider: object) -> Iterator[Symptom]:
    """Say how far a provider's clock is from this machine's, where its answers tell."""
    ahead = getattr(provider, "clock_ahead_seconds", None)
    if ahead is None:
        return
    if abs(ahead) > CLOCK_SKEW_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        text = f"Its clock is {abs(ahead) / 60:.0f} min {way} this machine's: one of the two is wrong."
        yield wrong(about, text, "Compare this machine's clock with another: date -u")


def _disk(disk: Disk, coverage: Coverage | None, running: list[str], moved: str) -> Iterator[Symptom]:
    about = f"disk {clean_text(disk.name)} ({clean_text(disk.id)})"
    is_gone = bool(disk.problem) and not disk.byte_size
    if disk.problem:
        yield wrong(about, clean_text(disk.problem, PROBLEM_CHARACTERS), moved if is_gone else "")
    elif not disk.byte_size:
        yield wrong(
            about, "It is empty: 0 bytes.", f"Look at {clean_text(disk.path or disk.name, PROBLEM_CHARACTERS)}."
        )
    elif disk.held_by:
        yield look(about, f"In use: {clean_text(disk.held_by, PROBLEM_CHARACTERS)}.")
    if running:
        yield well(about, f"Running now: {', '.join(running)}.")
    if coverage:
        yield from _protection(about, coverage, can_be_backed_up=not is_gone and bool(disk.byte_size))


def _protection(about: str, coverage: Coverage, *, can_be_backed_up: bool) -> Iterator[Symptom]:
    now, newest = datetime.now(UTC), coverage.newest_good_time
    if coverage.damaged_count:
        count = coverage.damaged_count
        text = f"{count} restore point{' is' if count == 1 else 's are'} damaged or built on a damaged one."
        yield wrong(about, text, "Back it up again: the next backup is full.")
    if not newest:
        step = f"Ask the assistant to back up {about.removeprefix('disk ')}." if can_be_backed_up else ""
        yield look(about, "It has no good restore point.", step)
        return
    age = age_in_words(newest, now)
    text = f"Newest good backup {format_time(newest)} ({age}), {coverage.good_count} good in all"
    read = f"; read back {age_in_words(coverage.verified_at, now)}" if coverage.verified_at else "; never read back"
    if (newest - now).total_seconds() > CLOCK_SKEW_SECONDS:
        yield wrong(about, f"{text}: this machine's clock is wrong, or was.", "Compare it with another: date -u")
    elif now - newest > OLD:
        yield look(about, f"{text}{read}.", "Back it up.")
    else:
        yield well(about, f"{text}{read}.")
