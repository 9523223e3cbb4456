"""Carry out the worker's jobs; each action that touches files has its module here."""

import sqlite3
from contextlib import suppress
from functools import partial
from typing import Final

from snapshot_mcp.catalogue import deletion, jobs
from snapshot_mcp.catalogue.room import largest_holders
from snapshot_mcp.contract.errors import StorageFull, ZoneError
from snapshot_mcp.contract.parts import Copier
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.ground import reserve
from snapshot_mcp.providers.local.errors import translate
from snapshot_mcp.providers.local.folder import FILE_NAME, FolderCatalogue
from snapshot_mcp.providers.local.work import apply, copying, create, export, verify

ACTIONS: Final[dict[JobAction, jobs.Action[FolderCatalogue]]] = {
    JobAction.CREATE: create.carry_out,
    JobAction.DELETE: deletion.carry_out,
    JobAction.LEASE: deletion.recover,
    JobAction.APPLY: apply.carry_out,
    JobAction.CAPTURE_INSTANCE: export.carry_out,
    JobAction.CREATE_VOLUME: export.carry_out,
    JobAction.VERIFY: verify.carry_out,
}


def carry_out(catalogue: FolderCatalogue, job_id: str, copier: Copier | None = None) -> None:
    """Carry out a job that is `working`, in its own thread with its own connection; enter the copies that follow it."""
    copy = partial(copying.carry_out, copier=copier)
    jobs.carry_out(catalogue, job_id, {**ACTIONS, JobAction.COPY: copy}, partial(_translate, catalogue))
    copying.enter_after(catalogue, job_id, copier)


def _translate(catalogue: FolderCatalogue, error: Exception) -> ZoneError | None:
    """Translate an error; for a full disk say how much is free and what would free most."""
    known = translate(error, catalogue.folder / FILE_NAME)
    if not isinstance(known, StorageFull):
        return known
    catalogue.store.make_room()
    free = f"{format_bytes(reserve.free_bytes(catalogue.folder))} are free on the zone's disk."
    with suppress(sqlite3.Error, OSError):
        free = f"{free} {largest_holders(catalogue)}".strip()
    return known.add(hint=free)
