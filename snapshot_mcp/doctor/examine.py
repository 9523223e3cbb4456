"""The whole examination: the data folder, the guard's side, and all zones at once."""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.doctor.embedded import look_at_embedded
from snapshot_mcp.doctor.home import look_at_home
from snapshot_mcp.doctor.record import look_at_record
from snapshot_mcp.doctor.symptom import Symptom, wrong
from snapshot_mcp.doctor.zone import look_at_zone
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.ground.sqlite import copy_to
from snapshot_mcp.guard import Guard
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones import Zones


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined. `command` runs this program in a shell; `build_guard` builds a guard on another data folder."""

    home: Path
    zones: tuple[str, ...]
    command: str
    build_zone: Callable[[str], Provider]
    build_guard: Callable[[Path], Guard]


async def examine(patient: Patient) -> list[Symptom]:
    """Return what is found. The only files that are written are copies of databases, in a folder that is removed again."""
    found = [*look_at_home(patient.home)]
    with tempfile.TemporaryDirectory(prefix="snapshot-mcp-doctor-") as folder:
        found += await _examine_record(patient, Path(folder))
        found += await _examine_zones(patient, Path(folder))
    return found


async def _examine_record(patient: Patient, folder: Path) -> list[Symptom]:
    copied = folder / "home"
    copied.mkdir()
    try:
        for one in patient.home.glob("audit.*"):
            shutil.copy2(one, copied)
        if (patient.home / "guard.sqlite").exists():
            copy_to(patient.home / "guard.sqlite", copied / "guard.sqlite")
    except OSError as error:
        return [wrong("record", f"It cannot be read: {reason_of(error, patient.home)}.", "Correct its permissions.")]
    except sqlite3.Error as error:
        return [wrong("record", f"guard.sqlite in {patient.home} cannot be read: {error}.", "Put back a copy of it.")]
    return await look_at_record(patient.build_guard(copied), patient.home, patient.command)


async def _examine_zones(patient: Patient, folder: Path) -> list[Symptom]:
    found: dict[str, list[Symptom]] = {}
    factories = {name: partial(_open, patient, name, folder) for name in patient.zones}

    async def look(name: str) -> None:
        found[name] = await _examine_zone(zones, name, patient.command)

    async with Zones(factories) as zones, anyio.create_task_group() as tasks:
        for name in patient.zones:
            tasks.start_soon(look, name)
    return [one for name in patient.zones for one in found[name]]


def _open(patient: Patient, name: str, folder: Path) -> Provider:
    """Build a zone; one of ours reads from a copy of its catalogue and starts nothing."""
    provider = patient.build_zone(name)
    if look_only := getattr(provider, "look_only", None):
        look_only(folder / f"{name}.sqlite")
    return provider


async def _examine_zone(zones: Zones, name: str, command: str) -> list[Symptom]:
    try:
        zone = zones.get(name)
    except ZoneError as error:
        return [wrong(f"zone {name}", error.message, error.hint)]
    found = await look_at_zone(zone, command)
    if isinstance(zone.provider, LocalZone):
        found += await look_at_embedded(zone.provider, command)
    return found
