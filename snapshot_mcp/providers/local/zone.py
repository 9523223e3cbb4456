"""`LocalZone`: the embedded zone as a Provider, `catalogue.zone` over files."""

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from snapshot_mcp.catalogue import deletion, room
from snapshot_mcp.catalogue.admission import CHAIN_LIMIT, RECOVERY_SECONDS, ZoneRules
from snapshot_mcp.catalogue.answers import to_image, to_resource
from snapshot_mcp.catalogue.copied import CatalogueLedger, enter_copy, statuses, troubles
from snapshot_mcp.catalogue.lookup import find_usable
from snapshot_mcp.catalogue.report import Advance, CheckReport
from snapshot_mcp.catalogue.store import NewerSnapshot
from snapshot_mcp.catalogue.zone import OWN_FEATURES, CatalogueZone
from snapshot_mcp.contract.copied import CopyStatus
from snapshot_mcp.contract.errors import NotUsable, StorageFull, ZoneError
from snapshot_mcp.contract.keep_free import DEFAULT_KEEP_FREE, KeepFree
from snapshot_mcp.contract.models import Image, Instance, Job, Volume
from snapshot_mcp.contract.own_file import OwnFile
from snapshot_mcp.contract.parts import Ledger, Part, Parts
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.text import encodable, format_bytes
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.files import make_private_folder
from snapshot_mcp.providers import WorkerProgram
from snapshot_mcp.providers.local import own_file, registration, whereabouts
from snapshot_mcp.providers.local.adopting import MadeZone, make_zone
from snapshot_mcp.providers.local.check import check
from snapshot_mcp.providers.local.errors import translate
from snapshot_mcp.providers.local.folder import FILE_NAME, FOLDERS, FolderCatalogue, file_at
from snapshot_mcp.providers.local.formats import AS_IT_SEEMS, Form, Machine
from snapshot_mcp.providers.local.image.layers import RAW
from snapshot_mcp.providers.local.moving import Move, Mover
from snapshot_mcp.providers.local.opening import refuse_other_sizes, refuse_running
from snapshot_mcp.providers.local.parts import LocalParts
from snapshot_mcp.providers.local.place import shown
from snapshot_mcp.providers.local.reading import read_out
from snapshot_mcp.providers.local.rebuild import RebuildReport, rebuild
from snapshot_mcp.providers.local.serving import RestorePointContent
from snapshot_mcp.providers.local.strays import (
    find_newer,
    find_strays,
    needed_by_strays,
    newer_format,
    refuse_without_files,
    strays_in_words,
)
from snapshot_mcp.providers.local.worker import PROGRAM, ensure_worker, find_worker

Result = TypeVar("Result")

NOTICE_SECONDS = 60.0
"""How long what was found of files without rows is repeated."""


@dataclass(frozen=True, slots=True)
class Oversight:
    """What a list of a zone says of its files: those without a row, and those of a newer format with its version."""

    stray_ids: tuple[str, ...]
    newer: tuple[tuple[str, int], ...]


class LocalZone(CatalogueZone[FolderCatalogue]):
    """The embedded zone in `folder` (`contract.Provider` has the methods, `ZoneRules` the settings)."""

    features = OWN_FEATURES | {Feature.SEPARATE, Feature.PARTS}

    def __init__(
        self,
        folder: Path,
        zone: str = "local",
        recovery_seconds: int = RECOVERY_SECONDS,
        chain_limit: int = CHAIN_LIMIT,
        allow_fuzzy: bool = False,
        keep_free: KeepFree = DEFAULT_KEEP_FREE,
        home: Path | None = None,
        configuration: Sequence[Path] = (),
        clock: Clock | None = None,
        export_format: str = RAW,
        worker: WorkerProgram | None = None,
        copies: tuple[str, ...] = (),
    ) -> None:
        super().__init__(zone, ZoneRules(recovery_seconds, chain_limit, allow_fuzzy, keep_free))
        self.folder = folder.absolute()
        self.recovery_seconds = recovery_seconds
        self.home = home
        self.export_format = export_format
        self._worker = worker or PROGRAM
        self.copies = copies
        """The names of the copies elsewhere that follow its backups."""
        self.configuration = tuple(configuration)
        self._clock = clock
        self._copy: Path | None = None
        self._notice, self._notice_until = "", 0.0
        self._notice_of: FolderCatalogue | None = None

    def look_only(self, copy: Path) -> None:
        """Read from a copy of the catalogue, which is written to this path, so that nothing of the zone is changed."""
        self._copy = copy

    def __repr__(self) -> str:
        return f"LocalZone({self.zone!r}, {str(self.folder)!r})"

    @property
    def location(self) -> str:
        """Return the zone's folder."""
        return encodable(str(self.folder))

    async def add_resource(
        self,
        path: Path,
        name: str = "",
        resource_type: ResourceType = ResourceType.VOLUME,
        form: Form = AS_IT_SEEMS,
    ) -> Volume | Instance:
        """Register a disk image (`registration`). Raises BadRequest, NotUsable, ResourceBusy, Unsupported."""

        def register(catalogue: FolderCatalogue) -> Volume | Instance:
            own = self.home, self.configuration
            return to_resource(catalogue, registration.register(catalogue, path, name, resource_type, form, *own))

        return await self._write(register)

    async def add_domain(
        self, domain: str, resource_type: ResourceType, form: Form, only: Path | None, *, is_monitored: bool
    ) -> list[Volume | Instance]:
        """Register the disks of a domain of libvirt (`registration`). Raises what `add_resource` raises."""
        machine = Machine(domain=domain, is_monitored=is_monitored)

        def register(catalogue: FolderCatalogue) -> list[Volume | Instance]:
            own = self.home, self.configuration
            rows = registration.register_domain(catalogue, machine, resource_type, only, form.bases, *own)
            return [to_resource(catalogue, row) for row in rows]

        return await self._write(register)

    async def remove_resource(self, resource_id: str) -> Volume | Instance:
        """Unregister a disk image; its file and snapshots stay. Raises NotFound, ResourceBusy, NotUsable."""
        return await self._write(lambda one: to_resource(one, registration.unregister(one, resource_id)))

    async def remove_image(self, image_id: str) -> Image:
        """Take an exported image off the list; its file stays. Raises NotFound."""

        def remove(catalogue: FolderCatalogue) -> Image:
            with catalogue.transaction():
                row = own_file.find_image(catalogue, image_id)
                own_file.take_off_list(catalogue, row)
            return to_image(catalogue, row)

        return await self._write(remove)

    async def look_at_own_file(self, item_id: str) -> OwnFile:
        """Return what deleting the file of an exported volume or image takes (`own_file`). Raises if it must be kept."""
        return await self._write(lambda one: own_file.look_at_own_file(one, item_id))

    async def delete_own_file(self, agreed: OwnFile) -> None:
        """Delete that file for ever, and take it off the list. Raises TermsChanged if it is not what was agreed to."""
        await self._write(lambda one: own_file.delete_own_file(one, agreed))

    async def plan_move(
        self,
        resource_id: str,
        path: Path,
        advance: Advance = lambda done, total: None,
        form: Form = AS_IT_SEEMS,
    ) -> Move:
        """Compare a file with the disk that is to be moved there (`moving`, which says what it raises)."""

        def run() -> Move:
            with self._errors_translated(), self._open() as catalogue:
                return Mover(catalogue, self.home, self.configuration).plan(resource_id, path, advance, form)

        return await anyio.to_thread.run_sync(run)

    async def move_resource(self, move: Move) -> Volume | Instance:
        """Move a disk as planned. Raises TermsChanged if the disk or the file changed since, and what `plan_move` raises."""
        own = self.home, self.configuration
        return await self._write(lambda one: to_resource(one, Mover(one, *own).carry_out(move)))

    async def check(self, advance: Advance = lambda done, total: None) -> CheckReport:
        """Verify every byte of every snapshot and record what is damaged (`check.check`)."""

        def run() -> CheckReport:
            if not self._exists():
                return CheckReport(0, 0, ())
            with self._errors_translated(), self._open() as catalogue:
                return check(catalogue, advance)

        return await anyio.to_thread.run_sync(run)

    async def read_out(self, snapshot_id: str, fd: int, advance: Advance = lambda done, total: None) -> int:
        """Write a restore point's verified content into a new, empty file; return its size in bytes (`reading`)."""

        def run() -> int:
            with self._errors_translated(), self._open() as catalogue:
                return read_out(catalogue, snapshot_id, fd, advance)

        return await anyio.to_thread.run_sync(run)

    async def start_copy(self, copy: str) -> Job:
        """Enter a run of a copy (`[copies.NAME]`), or return the one that waits."""
        return await self._enqueue(lambda one: enter_copy(one, copy))

    async def list_copies(self) -> tuple[CopyStatus, ...]:
        """Return how each copy stands that has run."""
        return await self._read(statuses, ())

    async def with_parts(self, work: Callable[[Parts, Ledger], Result]) -> Result:
        """Return what `work` makes of the zone's parts and of what it remembers of its copies, in a thread."""

        def run() -> Result:
            with self._errors_translated(), self._open() as catalogue:
                return work(LocalParts(catalogue, self.zone), CatalogueLedger(catalogue))

        return await anyio.to_thread.run_sync(run)

    async def open_restore_point(self, snapshot_id: str) -> RestorePointContent:
        """Open a restore point to read it here and there. Raises NotFound, NotUsable, Damaged."""

        def open_it(catalogue: FolderCatalogue) -> RestorePointContent:
            find_usable(catalogue, snapshot_id)
            return RestorePointContent(catalogue.store.snapshots, snapshot_id)

        return await self._write(open_it)

    async def purge(self, snapshot_ids: Collection[str] | None = None) -> tuple[str, ...]:
        """Purge as every zone of ours does, but nothing that a snapshot file without a row builds on."""

        def run(catalogue: FolderCatalogue) -> list[str]:
            needed = needed_by_strays(catalogue, self.folder)
            return deletion.purge(catalogue, at_once=snapshot_ids, needed=needed)

        return tuple(await self._write(run))

    async def look_over(self) -> Oversight:
        """Find the snapshot files that no row names, and those of a newer format, without reading their content."""

        def look(catalogue: FolderCatalogue) -> Oversight:
            return Oversight(tuple(find_strays(catalogue, self.folder)), tuple(find_newer(self.folder)))

        return await self._read(look, Oversight((), ()))

    @property
    def keep_free(self) -> KeepFree:
        """Return what backups and exports leave free."""
        return self._rules.keep_free

    def worker_pid(self) -> int:
        """Return the process that is the zone's worker, 0 if none is. Blocking."""
        return find_worker(self.folder)

    async def largest_holders(self) -> str:
        """Return what holds most of the zone's space, and how to free it; "" for an empty zone."""
        return await self._read(room.largest_holders, "")

    async def rebuild(self) -> RebuildReport:
        """Take in again the snapshot files that no row names (`rebuild.rebuild`). Raises ResourceBusy while the zone is open."""

        def run() -> RebuildReport:
            with self._errors_translated():
                return rebuild(self.folder, self._clock)

        await self.aclose()  # its own connection would be in the way
        return await anyio.to_thread.run_sync(run)

    async def make_of(self, source: str, parts: Sequence[Part], fetch: Callable[[Part, Path], None]) -> MadeZone:
        """Make this zone, which must not exist yet, of parts that come from elsewhere (`adopting`). Raises NotUsable."""

        def run() -> MadeZone:
            with self._errors_translated():
                return make_zone(self.folder, source, parts, fetch)

        return await anyio.to_thread.run_sync(run)

    async def adopt(self) -> list[str]:
        """Make a copy of a zone a zone of its own; return the ids of the disks that have no file now (`whereabouts`)."""

        def run() -> list[str]:
            with self._errors_translated(), self._open() as catalogue:
                if catalogue.original is None:
                    raise NotUsable(f"The zone in {str(self.folder)!r} is not a copy.", hint="Nothing was changed.")
                return whereabouts.adopt(catalogue)

        detached = await anyio.to_thread.run_sync(run)
        await self.aclose()
        return detached

    async def copy_problem(self) -> str:
        """Return that this zone is a copy that nobody has adopted, "" if it is not one."""
        original = await self._read(lambda one: one.original, None)
        return str(whereabouts.is_a_copy(self.folder, original)) if original else ""

    async def notice(self) -> str:
        """Return what a list cannot show: files without rows (not in a zone of very many), copies that fail. "" for nothing."""

        def look(catalogue: FolderCatalogue) -> str:
            if self._notice_of is not catalogue or time.monotonic() > self._notice_until:
                self._notice = strays_in_words(catalogue, self.folder)
                self._notice_of, self._notice_until = catalogue, time.monotonic() + NOTICE_SECONDS
            return f"{self._notice} {troubles(catalogue)}".strip()

        return await self._read(look, "")

    async def refuse_beforehand(self, action: JobAction, snapshot_ids: Sequence[str]) -> None:
        """Raise what an act would be refused with, before a person is asked: in a copy, without files, of a newer format."""

        def look(catalogue: FolderCatalogue) -> None:
            if catalogue.original:
                raise whereabouts.is_a_copy(self.folder, catalogue.original)
            refuse_without_files(catalogue, self.folder)
            if action == JobAction.APPLY:
                refuse_running(catalogue, snapshot_ids)
                refuse_other_sizes(catalogue, snapshot_ids)
                for row in (row for one in snapshot_ids for row in catalogue.ancestors(one)):
                    if (version := newer_format(self.folder, row["snapshot_id"])) is not None:
                        raise NewerSnapshot(row["snapshot_id"], f"file format {version}")

        await self._read(look, None)

    def _check_change(self, catalogue: FolderCatalogue) -> None:
        reserve.relieve(self.folder)
        refuse_without_files(catalogue, self.folder)
        for name in FOLDERS:
            make_private_folder(self.folder / name)
        if catalogue.original and (original := whereabouts.settle(catalogue, FILE_NAME)):
            raise whereabouts.is_a_copy(self.folder, original)
        catalogue.original, catalogue.problem = None, ""

    def _identity(self) -> object:
        return file_at(self.folder)

    def _exists(self) -> bool:
        return FolderCatalogue.exists(self.folder)

    def _open(self) -> FolderCatalogue:
        return FolderCatalogue(self.folder, clock=self._clock, copy=self._copy)

    def _ensure_worker(self) -> None:
        if self._catalogue is None or not self._catalogue.original:
            ensure_worker(self.folder, self._worker)

    def _translate(self, error: Exception) -> ZoneError | None:
        known = translate(error, self.folder / FILE_NAME)
        if self._copy and isinstance(known, StorageFull):
            where = str(self._copy.parent)
            return NotUsable(f"There is no room in {where!r} to look at a copy of the catalogue.", hint="Set TMPDIR.")
        return known.add(hint=self._room_in_words()) if isinstance(known, StorageFull) else known

    def _room_in_words(self) -> str:
        """Return how much is free, and what would free most."""
        free = f"{format_bytes(reserve.free_bytes(self.folder))} are free on the disk of {shown(self.folder)}."
        try:
            held = self._catalogue and room.largest_holders(self._catalogue)
        except sqlite3.Error:
            held = None
        return f"{free} {held}" if held else free
