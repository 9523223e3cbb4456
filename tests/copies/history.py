"""A random history of homes with copies at one place: what the homes do, what befalls them, and what must hold all the time.

Pieces are small, so that a small part has many. What each restore point holds is known from its disk, not from the zone.
"""

import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from blake3 import blake3

from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.models import SnapshotUpdate
from snapshot_mcp.copies import sending
from snapshot_mcp.copies.check import check_sent
from snapshot_mcp.copies.fetch import Fetcher
from snapshot_mcp.copies.keys import KEYS_FILE, read_keys
from snapshot_mcp.copies.library import read_library
from snapshot_mcp.copies.sending import StorePlace
from snapshot_mcp.copies.stores import folder as folders
from snapshot_mcp.copies.stores import s3
from snapshot_mcp.ground.sqlite import copy_to
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FILE_NAME
from tests.copies.copyist import Copyist, kill, write_settings
from tests.copies.lab import DAY, CopyLab, QuietZone
from tests.copies.wire import Wire
from tests.disks import change, make_image

KIB: Final = 1 << 10
IMAGE: Final = 768 * KIB
PIECE: Final = 24 * KIB
STEPS: Final = (6, 12)
KILLED_WITHIN_SECONDS: Final = 0.4


@dataclass
class Home:
    """A home, its disks, what each restore point of it holds, and what was kept of its catalogue."""

    lab: CopyLab
    disks: dict[str, Path] = field(default_factory=dict)
    kept: Path | None = None


@dataclass
class History:
    """One history; `told` is the list of what happened, for whoever has to understand a failure."""

    seed: int
    folder: Path
    to: dict[str, Any]
    is_sealed: bool
    wire: Wire | None
    copyist: Copyist
    patch: pytest.MonkeyPatch
    homes: list[Home] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)
    ever: set[str] = field(default_factory=set)
    """What was listed once, and whose days are not over."""
    deleted: set[str] = field(default_factory=set)
    harmed: bool = False
    """Whether the store itself was harmed since a whole copy."""
    ahead: float = 0.0
    told: list[str] = field(default_factory=list)
    left: int | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.patch.setattr(sending, "PIECE", PIECE)
        self.patch.setattr(s3, "RETRIES", {"max_retries": 0})
        self.patch.setattr(StorePlace, "time", lambda place: time.time() + self.ahead)
        real = folders._write_all

        def write_all(descriptor: int, content: bytes, pace: Any) -> None:
            if self.left is not None:
                granted, self.left = content[: self.left], max(0, self.left - len(content))
                if len(granted) < len(content):
                    real(descriptor, granted, pace)
                    raise OSError(5, os.strerror(5))
            real(descriptor, content, pace)

        self.patch.setattr(folders, "_write_all", write_all)

    async def run(self) -> None:
        """Make the homes, do random things, and see that all of it comes back."""
        await self.begin()
        for _ in range(self.chance.randint(*STEPS)):
            home = self.chance.choice(self.homes)
            acts: list[tuple[int, Callable[[Home], Awaitable[None]]]] = [
                (6, self.back_up),
                (2, self.delete),
                (1, self.recover),
                (2, self.rename),
                (2, self.flip_here),
                (3, self.copy_whole),
                (4, self.copy_cut_off),
                (3, self.copy_killed),
                (2, self.copy_all_at_once),
                (1, self.put_back),
                (1, self.lose_zone),
                (1, self.harm_store),
                (1, self.wait_days),
            ]
            act = self.chance.choices([one for _, one in acts], [weight for weight, _ in acts])[0]
            self.told.append(f"{self.homes.index(home)} {act.__name__}")
            await act(home)
        await self.end()

    async def begin(self) -> None:
        first = self.add_home("one")
        await self.add_disk(first)
        if self.chance.random() < 0.5:
            await self.add_disk(first)
        await self.back_up(first)
        kind = self.chance.choice(("alone", "alone", "beside", "clone"))
        self.told.append(kind)
        if kind == "beside":
            second = self.add_home("two", first.lab)
            await self.add_disk(second)
        elif kind == "clone":
            if self.chance.random() < 0.7:
                await self.copy_whole(first)
            await self.clone(first)

    def add_home(self, name: str, beside: CopyLab | None = None) -> Home:
        home = self.folder / name
        if beside:
            (home / KEYS_FILE).parent.mkdir(parents=True)
            shutil.copy(beside.home / KEYS_FILE, home / KEYS_FILE)
        lab = CopyLab(home, self.to, self.is_sealed, key=beside.key if beside else None)
        write_settings(home, self.to, is_sealed=self.is_sealed)
        self.homes.append(Home(lab))
        return self.homes[-1]

    async def clone(self, home: Home) -> None:
        """Another machine is made of this one: a copy of the zone that a person adopts."""
        shutil.copytree(home.lab.home, self.folder / "two")
        lab = CopyLab(self.folder / "two", self.to, self.is_sealed, key=home.lab.key)
        write_settings(lab.home, self.to, is_sealed=self.is_sealed)
        await lab.zone.adopt()
        self.homes.append(Home(lab))
        await self.add_disk(self.homes[-1])

    async def add_disk(self, home: Home) -> None:
        number = sum(len(one.disks) for one in self.homes)
        path = make_image(self.folder / f"disk{number}.img", IMAGE, seed=self.seed * 10 + number)
        disk = (await home.lab.zone.add_resource(path, f"disk {number}")).id
        home.disks[disk] = path

    async def back_up(self, home: Home) -> None:
        disk, path = self.chance.choice(list(home.disks.items()))
        change(path, self.chance.choice((8, 64, 200)) * KIB, seed=self.chance.randrange(1 << 30))
        try:
            one = await home.lab.back_up(disk, f"point {len(self.content)}", is_full=self.chance.random() < 0.15)
        except AssertionError as error:  # the parent was found damaged, or its file is gone
            self.told.append(f"  no backup: {error}"[:300])
            return
        self.content[one] = blake3(path.read_bytes()).hexdigest()

    async def _all_of(self, home: Home, status: str) -> list[str]:
        return sorted(one.snapshot_id for one in (await home.lab.points()).values() if one.status == status)

    async def _one_of(self, home: Home, status: str) -> str | None:
        ids = await self._all_of(home, status)
        return self.chance.choice(ids) if ids else None

    def _forget_what_may_go(self) -> None:
        """Once days have gone by, what was deleted may leave the store (`deleting` has tests of its own)."""
        if self.ahead:
            self.ever -= self.deleted

    async def delete(self, home: Home) -> None:
        before = await self._all_of(home, "available")
        if before:
            await home.lab.delete(self.chance.choice(before), is_purged=self.chance.random() < 0.6)
            self.deleted |= set(before) - set(await self._all_of(home, "available"))
            self._forget_what_may_go()

    async def recover(self, home: Home) -> None:
        if one := await self._one_of(home, "deleted"):
            with suppress(ZoneError):
                await home.lab.zone.recover_snapshots([one])
                await home.lab.work(copies=False)

    async def rename(self, home: Home) -> None:
        if one := await self._one_of(home, "available"):
            tags = ("keep",) if self.chance.random() < 0.5 else ()
            await home.lab.zone.update_snapshot(one, SnapshotUpdate(snapshot_name=f"now {one}", tags=tags))

    async def flip_here(self, home: Home) -> None:
        files = sorted((home.lab.zone.folder / "snapshots").glob("ss-*.snap"))
        if files:
            flip(self.chance.choice(files), self.chance)

    async def copy_whole(self, home: Home) -> None:
        await home.lab.copy(ends_well=False)
        await self.holds()

    async def copy_cut_off(self, home: Home) -> None:
        """The line to the store, or the store's disk, ends at a random byte."""
        budget = int(2 ** self.chance.uniform(0, 21))
        if self.wire:
            self.wire.cut_after(budget)
        else:
            self.left = budget
        await home.lab.copy(ends_well=False)
        if self.wire:
            self.wire.cut_after(None)
        self.left = None
        await self.holds()

    async def copy_killed(self, home: Home) -> None:
        """The worker's process is killed, as the kernel does it, at a random moment."""
        await home.lab.zone.start_copy("nas")
        pid = await anyio.to_thread.run_sync(self.copyist.start, home.lab.home, PIECE)
        await anyio.sleep(self.chance.uniform(0.02, KILLED_WITHIN_SECONDS))
        await anyio.to_thread.run_sync(kill, home.lab.home, pid)
        await self.holds()

    async def copy_all_at_once(self, home: Home) -> None:
        async with anyio.create_task_group() as group:
            for one in self.homes:
                group.start_soon(lambda one=one: one.lab.copy(ends_well=False))
        await self.holds()

    async def put_back(self, home: Home) -> None:
        """The catalogue becomes what it was once; the first time it is only kept."""
        path = home.lab.zone.folder / FILE_NAME
        if home.kept is None:
            home.kept = self.folder / f"kept-{self.homes.index(home)}"
            copy_to(path, home.kept)
            return
        await home.lab.zone.aclose()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        shutil.copy(home.kept, path)
        home.lab.zone = QuietZone(home.lab.zone.folder, home=home.lab.home)

    async def lose_zone(self, home: Home) -> None:
        """The disk with the zone's folder dies, and a new zone begins."""
        await home.lab.lose_the_zone()
        home.kept = None
        paths, home.disks = list(home.disks.values()), {}
        for number, path in enumerate(paths):
            home.disks[(await home.lab.zone.add_resource(path, f"again {number}")).id] = path

    async def harm_store(self, home: Home) -> None:
        """An object of a part is lost, cut or changed in the store."""
        store = home.lab.store
        names = sorted(one.name for one in store.list("") if "/parts/" in one.name)
        if not names or self.chance.random() < 0.5:
            return
        name = self.chance.choice(names)
        content = b"".join(store.get(name))
        match self.chance.choice(("lose", "cut", "flip")):
            case "lose":
                store.remove([name])
            case "cut":
                store.put(name, content[: len(content) // 2])
            case _:
                at = self.chance.randrange(len(content))
                store.put(name, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        self.harmed = True
        self.told.append(f"  {name}")

    async def wait_days(self, home: Home) -> None:
        """The days of what was deleted here go by, for the homes and for the store."""
        self.ahead += 31 * DAY
        for one in self.homes:
            one.lab.ahead = self.ahead
        self._forget_what_may_go()

    async def holds(self) -> None:
        """Nothing is listed that is not whole; what was listed still is; a home claims no more than the store has."""
        listed, broken = await anyio.to_thread.run_sync(self._read)
        claimed = {one for home in self.homes for one in await self._claimed(home)}
        if not self.harmed:
            assert not broken, broken
            assert claimed <= listed, claimed - listed
            assert self.ever <= listed, self.ever - listed
        self.ever |= listed
        self._forget_what_may_go()

    def _read(self) -> tuple[set[str], dict[str, str]]:
        lab = self.homes[0].lab
        with suppress(ZoneError):  # nothing was copied so far
            library = read_library(lab.store, lab.key)
            assert not library.foreign or self.harmed or all("no manifest" in one for one in library.foreign)
            fetcher, broken = Fetcher(lab.store, lab.key), {}
            for one, *_ in library.found().values():
                try:
                    fetcher.read_through(one)
                except ZoneError as error:
                    broken[one.entry.part_id] = error.message
                broken |= {above: "is missing" for above in one.entry.parents if above not in library.found()}
            return set(library.found()), broken
        return set(), {}

    async def _claimed(self, home: Home) -> set[str]:
        return {one.snapshot_id for one in (await home.lab.points()).values() if one.copies}

    async def end(self) -> None:
        """All that is good at the homes is copied, and an empty home gets all that is listed, or is told why not."""
        self.told.append("end")
        for home in self.homes:
            await home.lab.zone.check()
            lab = home.lab
            await lab.zone.with_parts(lambda _, ledger, lab=lab: self._mend(lab, ledger))
            for _ in range(2):  # the first may find that another writer goes on under its name
                done = await lab.copy(ends_well=False)
            assert done.is_successful, done.reason
        await self.holds()
        listed, broken = await anyio.to_thread.run_sync(self._read)
        for home in self.homes:
            parts = await home.lab.zone.with_parts(lambda parts, _: parts.list_parts())
            good = {one.part_id for one in parts if one.is_whole and one.deleted_at is None}
            assert good <= listed, good - listed
            assert not good & broken.keys(), broken
        await self._restore(listed, broken)

    @staticmethod
    def _mend(lab: CopyLab, ledger: Any) -> None:
        with suppress(NotUsable):  # no copy has run since the zone is there
            check_sent("nas", lab.settings, lab.store, read_keys(lab.home), ledger, lambda amount: None)

    async def _restore(self, listed: set[str], broken: dict[str, str]) -> None:
        lab, new = self.homes[0].lab, self.folder / "new"
        if not listed:
            return
        back = await lab.restore_all(new, "--deleted", status=1 if broken else 0)
        told = set(back["missing"])
        assert broken.keys() <= told, (broken, told)
        assert not back["damaged"]
        zone = LocalZone(new / "zones" / "local")
        try:
            for one in sorted(listed - told):
                found = await lab.content(one, self.folder / "content", zone)
                assert blake3(found).hexdigest() == self.content[one], one
        finally:
            await zone.aclose()
        parents = {one: found[0].entry.parents for one, found in lab.library().found().items()}
        assert all(one in broken or broken.keys() & set(parents[one]) for one in told), (told, broken)
        if whole := sorted(listed - told):
            await self._to_file(lab, self.chance.choice(whole))

    async def _to_file(self, lab: CopyLab, one: str) -> None:
        out = self.folder / "out.img"
        words = ("restore-from", lab.settings.to, one, "--to-file", str(out), "--key-file", lab.key_file())
        await lab.shell(self.folder / "third").json(*words)
        assert blake3(out.read_bytes()).hexdigest() == self.content[one]

    async def close(self) -> None:
        for home in self.homes:
            await home.lab.zone.aclose()


def flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        at = chance.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))
