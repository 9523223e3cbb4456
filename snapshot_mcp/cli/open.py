"""`snapshot-mcp open SNAPSHOT`: serve a restore point read-only over NBD on a UNIX socket, without copying it."""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.out import say, say_json, warn
from snapshot_mcp.cli.person import user_name
from snapshot_mcp.contract.errors import BadRequest, Unsupported
from snapshot_mcp.contract.text import clean_text, encodable, format_bytes
from snapshot_mcp.zones.finding import find_snapshot

if TYPE_CHECKING:
    from snapshot_mcp.app import NbdServer, RestorePointContent
    from snapshot_mcp.settings import Settings

MAX_SOCKET_BYTES = 107
"""The longest path of a UNIX socket on Linux."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="the restore point's id")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="where the socket is made; else in a folder of its own"
    )
    parser.add_argument("--once", action="store_true", help="end when the last client has left")
    parser.add_argument("--zone", default="", help="the zone's name, if the settings have several")
    parser.add_argument("--json", action="store_true", help="print the address as JSON")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or with `--once` until the last client has left."""
    from snapshot_mcp import app

    settings = app.own_settings()
    return anyio.run(_run, settings, args)


async def _run(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    name = args.zone or settings.first_zone
    try:
        zone = app.open_local_zone(settings, name)
    except BadRequest:
        raise Unsupported(
            f"Zone {name!r} is not an embedded (local) zone: its data lies elsewhere.",
            hint="Bring the restore point back beside the disk: `snapshot-mcp restore SNAPSHOT --to-volume NAME`.",
        ) from None
    guard = app.build_guard(settings, has_page=False)
    async with aclosing(zone):
        found = await find_snapshot(zone, args.snapshot)
        content = await zone.open_restore_point(found.snapshot_id)
        with content.opened(), _Address(args.socket) as address:
            deed = app.deed("open restore point", zone, user_name(), snapshot_id=found.snapshot_id)
            async with guard.recorded(deed):
                pass
            uri = f"nbd+unix:///?socket={address.path}"
            if args.json:
                say_json({"uri": uri, "socket": encodable(str(address.path)), "disk_bytes": content.size_bytes}, None)
            else:
                say(
                    f"{clean_text(found.snapshot_id)} of {clean_text(found.resource.resource_name)!r}"
                    f" ({format_bytes(content.size_bytes)}) is open read-only, until Ctrl-C:",
                    f"  {encodable(uri)}",
                )
            sys.stdout.flush()  # whoever reads it through a pipe waits for the address
            await _serve(content, address.listener, found.snapshot_id, is_once=args.once)
        if content.damage:
            warn(
                f"snapshot-mcp: {clean_text(content.damage.message, 400)} A client that read it got an error, not other bytes."
            )
            return 1
    return 0


async def _serve(content: "RestorePointContent", listener: socket.socket, snapshot_id: str, *, is_once: bool) -> None:
    from snapshot_mcp import app

    server: NbdServer
    server = app.nbd_server(
        listener, content, frozenset({"", snapshot_id}), (lambda: server.close()) if is_once else (lambda: None)
    )

    async def wait_for_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for _ in signals:
                server.close()
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_signal)
        await anyio.to_thread.run_sync(server.serve)
        tasks.cancel_scope.cancel()


class _Address:
    """A socket that only this user reaches, in a folder of mode 0700; both are gone at the end."""

    def __init__(self, path: Path | None) -> None:
        self._wanted = path.absolute() if path else None

    def __enter__(self) -> "_Address":
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        is_usable = bool(base) and Path(base).is_dir() and os.access(base, os.W_OK)
        self._folder = "" if self._wanted else tempfile.mkdtemp(prefix="snapshot-mcp-", dir=base if is_usable else None)
        self.path = self._wanted or Path(self._folder) / "nbd"
        if len(os.fsencode(self.path)) > MAX_SOCKET_BYTES:
            self._remove_folder()
            hint = "Give a shorter --socket."
            raise BadRequest(f"The socket's path {encodable(str(self.path))!r} is too long for a socket.", hint=hint)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.listener.bind(os.fsencode(self.path))
        except OSError as error:
            self.listener.close()
            self._remove_folder()
            raise BadRequest(
                f"No socket can be made at {clean_text(encodable(str(self.path)))!r}: {error.strerror}.",
                hint="Give a --socket in a folder of yours, where nothing has that name.",
            ) from None
        finally:
            os.umask(before)
        self.listener.listen(8)
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()
        with suppress(OSError):
            self.path.unlink()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
