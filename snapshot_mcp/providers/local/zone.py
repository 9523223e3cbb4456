"""`LocalZone`: the embedded zone as a Provider: what every zone of ours does (`catalogue.zone`), and what is about files."""

from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from snapshot_mcp.catalogue.admission import Rules
from snapshot_mcp.catalogue.answers import to_resource
from snapshot_mcp.catalogue.zone import CatalogueZone
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.keep_free import DEFAULT_KEEP_FREE, KeepFree
from snapshot_mcp.contract.models import Instance, Volume
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.providers.local import registration
from snapshot_mcp.providers.local.check import Advance, CheckReport, check
from snapshot_mcp.providers.local.errors import translate
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.worker import ensure_worker


class LocalZone(CatalogueZone[FolderCatalogue]):
    """The embedded zone in `folder` (see `contract.Provider` for the methods).

    `recovery_seconds`: grace after a deletion; `chain_limit`: available snapshots in a chain before the next is full;
    `allow_fuzzy`: capture disks that are in use although the copy may be a mixture (and say so). `clock`: the system's where
    none is given.
    """

    features = frozenset(
        {
            Feature.RECOVER,
            Feature.RECOVER_INCREMENTALS,
            Feature.WATCH,
            Feature.TAGS,
            Feature.PROGRESS,
            Feature.TERMS,
            Feature.ONE_HOLD,
            Feature.CANCEL,
        }
    )

    def __init__(
        self,
        folder: Path,
        zone: str = "local",
        recovery_seconds: int = 7200,
        chain_limit: int = 30,
        allow_fuzzy: bool = False,
        keep_free: KeepFree = DEFAULT_KEEP_FREE,
        home: Path | None = None,
        configuration: Sequence[Path] = (),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(zone, Rules(recovery_seconds, chain_limit, allow_fuzzy, keep_free))
        self.folder = folder.absolute()
        self.recovery_seconds = recovery_seconds
        self.keep_free = keep_free
        self.home = home
        self.configuration = tuple(configuration)
        self._clock = clock

    def __repr__(self) -> str:
        return f"LocalZone({self.zone!r}, {str(self.folder)!r})"

    @property
    def location(self) -> str:
        return str(self.folder)

    async def add_resource(
        self, path: Path, name: str = "", resource_type: ResourceType = ResourceType.VOLUME
    ) -> Volume | Instance:
        """Register a raw disk image (`registration`). Raises BadRequest, NotUsable, ResourceBusy, Unsupported."""
        return await self._write(
            lambda catalogue: to_resource(
                catalogue, registration.register(catalogue, path, name, resource_type, self.home, self.configuration)
            )
        )

    async def remove_resource(self, resource_id: str) -> Volume | Instance:
        """Forget a disk image; its file and its snapshots stay. Raises NotFound, ResourceBusy."""
        return await self._write(
            lambda catalogue: to_resource(catalogue, registration.unregister(catalogue, resource_id))
        )

    async def check(self, advance: Advance = lambda done, total: None) -> CheckReport:
        """Read back and verify every byte of every snapshot (`check.check`); remembers what is damaged."""

        def run() -> CheckReport:
            if not self._exists():
                return CheckReport(0, 0, ())
            with self._in_our_words(), self._open() as catalogue:
                return check(catalogue, advance)

        return await anyio.to_thread.run_sync(run)

    def _exists(self) -> bool:
        return FolderCatalogue.exists(self.folder)

    def _open(self) -> FolderCatalogue:
        return FolderCatalogue(self.folder, clock=self._clock)

    def _ensure_worker(self) -> None:
        ensure_worker(self.folder)

    def _translate(self, error: Exception) -> ZoneError | None:
        return translate(error)
