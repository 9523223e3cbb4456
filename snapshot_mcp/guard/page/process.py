"""The page's own process: one for each home, so that a link outlives the conversation that it was given in.

Whoever wants a link takes the lock HOME/page.lock, listens on the page's port, and passes both on to a detached process; as long
as that runs, the kernel holds the lock and connections are accepted. That process keeps them and its child serves, so the port
stays taken if the child is killed. It ends once nothing waits for a person, and forgets its address with that (GUARD.md, "The
page"). Blocking but for `serve`.
"""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.ground import detached
from snapshot_mcp.ground.clock import SystemClock
from snapshot_mcp.ground.web import listen
from snapshot_mcp.guard.consent.address import HOST, AddressBook, PageAddress
from snapshot_mcp.guard.consent.errors import PageNotDetached
from snapshot_mcp.guard.page.server import LoopbackPage
from snapshot_mcp.guard.page.watch import LOOK_SECONDS, ApprovalWatch

if TYPE_CHECKING:
    from snapshot_mcp.guard.guard import Guard

LOCK_NAME: Final = "page.lock"
LOG_NAME: Final = "page.log"

LINGER_SECONDS: Final = 3.0
"""How long it stays after nothing waits any more, so that browsers show what became of the last one."""
END_SECONDS: Final = 2.0
"""How often the zone is asked whether a job has ended that could still be taken back; a minute long at most."""
WAIT_SECONDS: Final = 15.0
"""How long to wait for a page that is about to end or to start, each of which takes about a second."""
RETRY_SECONDS: Final = 0.05

ASKED_TO_END: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that end the page; after any other it is served again."""

MAX_DEATHS: Final = 5
DEATHS_SECONDS: Final = 60.0
"""A page that dies more often than that is left alone."""

log = logging.getLogger(__name__)


class PageProcess:
    """Starts the page of a home. `main` is the function that the process calls, by module and name."""

    def __init__(self, home: Path, main: tuple[str, str], environ: Mapping[str, str]) -> None:
        self._home = home
        self._main = main
        self._environ = environ

    def keep(self) -> PageAddress:
        """Return the address of the page, whose process runs then. Raises: PageNotDetached."""
        if not detached.is_possible():
            raise PageNotDetached("This system cannot detach a process.")
        try:
            return self._keep()
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("the approval page's process could not be started: %s", error)
            raise PageNotDetached(f"The approval page's process could not be started: {error}.") from None

    def revive(self) -> None:
        """Start the page again if links to it were given out and all of it was killed; best effort."""
        with suppress(ZoneError):
            if self._book.find() is not None:
                self.keep()

    def _keep(self) -> PageAddress:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            lock = detached.take_lock(self._home / LOCK_NAME)
            if lock is not None:
                try:
                    return self._start(lock)
                finally:
                    os.close(lock)
            has_started = bool((self._home / LOCK_NAME).read_text())
            if has_started and (address := self._book.find()):
                return address
            if time.monotonic() > deadline:
                raise OSError("another process holds its lock and does not serve it")
            time.sleep(RETRY_SECONDS)

    def _start(self, lock: int) -> PageAddress:
        os.ftruncate(lock, 0)  # who finds it held waits until the process has said its id
        found = self._book.find()
        listener, address = _listen(found)
        with listener:
            self._book.write(address)
            try:
                detached.start_detached(
                    self._main,
                    [str(lock), str(listener.fileno())],
                    keep=[lock, listener.fileno()],
                    log=self._home / LOG_NAME,
                    environ=self._environ,
                )
            except BaseException:
                self._book.remove()
                raise
        return address

    @property
    def _book(self) -> AddressBook:
        return _book(self._home)


def _book(home: Path) -> AddressBook:
    from snapshot_mcp.guard.consent.records import Records

    return Records(home, SystemClock(), lambda: None).addresses


def _listen(found: PageAddress | None) -> tuple[socket.socket, PageAddress]:
    """Listen where the page was before, if that is free, with a new secret.

    The page and its keeper are gone, so the port was free: who listened on it meanwhile may know every earlier link.
    """
    if found is not None:
        with suppress(OSError):
            return listen(HOST, found.port), PageAddress(found.port)
    listener = listen(HOST, 0)
    return listener, PageAddress(listener.getsockname()[1], left_port=found.port if found else 0)


def run(guard: "Guard", lock: int, listener: socket.socket) -> None:
    """Be the page, with the lock and the socket of the one that started it, until nothing waits.

    This process keeps both, and its child serves: where that is killed the port is never free, and another child goes on.
    """
    if not _is_child(guard.home / LOCK_NAME, lock):
        return
    detached.say_who(lock, os.getppid())
    detached.shorten_log(guard.home / LOG_NAME)
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
    book = _book(guard.home)
    address = book.find()
    if address is not None:
        anyio.run(_serve, guard, address, listener, lock, book)


def _is_child(path: Path, lock: int) -> bool:
    """Return true in a child, which serves; false in this process, once a child has ended by itself or was asked to."""
    deaths: list[float] = []
    while _is_in_place(lock, path):
        child = os.fork()
        if not child:
            return True
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) in ASKED_TO_END:
            return False
        log.warning("the approval page was killed by signal %s", os.WTERMSIG(status))
        deaths = [at for at in deaths if time.monotonic() - at < DEATHS_SECONDS] + [time.monotonic()]
        if len(deaths) >= MAX_DEATHS:
            return False
    return False


async def _serve(guard: "Guard", address: PageAddress, listener: socket.socket, lock: int, book: AddressBook) -> None:
    watch = ApprovalWatch(guard)
    page = LoopbackPage(guard, address, watch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(page.serve, listener)
        while _is_in_place(lock, guard.home / LOCK_NAME) and not watch.is_blind:
            if await watch.is_waiting():
                await anyio.sleep(LOOK_SECONDS)
            elif await watch.can_take_back(SystemClock().read()):
                await anyio.sleep(END_SECONDS)
                with suppress(ZoneError):
                    await guard.note_all_ends()
            elif await _is_over(book):
                break
        page.stop()


async def _is_over(book: AddressBook) -> bool:
    """Forget the address if still nothing waits after a while; return whether it is forgotten."""
    await anyio.sleep(LINGER_SECONDS)
    with suppress(ZoneError):  # its file is busy or its disk is full
        return await in_thread(book.remove_unless_wanted)
    return False


def _is_in_place(lock: int, path: Path) -> bool:
    """Whether the home is still the one that this process belongs to."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False
