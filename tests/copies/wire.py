"""The way to an object store: it counts what is asked for, and cuts the line after so many bytes that are sent."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

BLOCK: Final = 1 << 16
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)


@dataclass
class Wire:
    """`asked`: method and target of each request that began; `left`: bytes until it is cut, None for never."""

    url: str
    asked: list[tuple[str, str]] = field(default_factory=list)
    left: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut_after(self, byte_count: int | None) -> None:
        """Let so many more bytes through to the store; then all connections end, and new ones, until it is called again."""
        with self._lock:
            self.left = byte_count

    def count(self) -> Counter[str]:
        """How often each method was asked for; a list of objects is LIST."""
        return Counter("LIST" if "list-type=2" in target else method for method, target in self.asked)

    def allowed(self, wanted: int) -> int:
        with self._lock:
            if self.left is None:
                return wanted
            granted = min(wanted, self.left)
            self.left -= granted
            return granted


@contextmanager
def wire_to(url: str) -> Iterator[Wire]:
    """Stand between clients and the server at `url`."""
    target = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        wire = Wire(f"http://127.0.0.1:{listener.getsockname()[1]}")
        threading.Thread(target=_accept, args=(listener, (target.hostname, target.port), wire), daemon=True).start()
        yield wire
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, target: tuple[str | None, int | None], wire: Wire) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, target, wire), daemon=True).start()


def _serve(client: socket.socket, target: tuple[str, int], wire: Wire) -> None:
    with client, suppress(OSError):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(target) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answers, args=(server, client), daemon=True).start()
            with suppress(EOFError):
                _requests(client, server, wire)
            for one in (server, client):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


def _answers(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while block := server.recv(BLOCK):
            client.sendall(block)
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _requests(client: socket.socket, server: socket.socket, wire: Wire) -> None:
    """Pass requests on, one behind the other. Raises EOFError where the client ends, or the line is cut."""
    held = b""

    def more() -> bytes:
        if not (block := client.recv(BLOCK)):
            raise EOFError
        return block

    def send(content: bytes) -> None:
        granted = wire.allowed(len(content))
        server.sendall(content[:granted])
        if granted < len(content):
            raise EOFError

    while True:
        while b"\r\n\r\n" not in held:
            held += more()
        head, _, held = held.partition(b"\r\n\r\n")
        method, target, _ = head.partition(b"\r\n")[0].decode().split(" ", 2)
        assert not _CHUNKED.search(head), "no client here sends chunks"
        wire.asked.append((method, target))
        send(head + b"\r\n\r\n")
        found = _LENGTH.search(head)
        left = int(found[1]) if found else 0
        while left:
            block, held = (held, b"") if held else (more(), b"")
            block, held = block[:left], block[left:]
            send(block)
            left -= len(block)
