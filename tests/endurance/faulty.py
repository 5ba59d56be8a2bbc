"""A server on loopback that fails as told: it hangs, resets, talks garbage, drips, or answers 500; or passes through."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

#: What a dependency can do instead of answering.
FAILURES = ("hang", "reset", "garbage", "nonsense", "500", "drip")
_PAGE = b"<html><body>It works!</body></html>"
_NONSENSE = b'{"status": "success", "data": {"result": [[[[{"a": NaN}]]], "\\ud800"], "resultType": 7}}'


class Faulty:
    """One TCP server.

    ``mode`` is one of :data:`FAILURES`, or ``works``, which passes everything to ``upstream``, or ``page``, which
    answers every request with ``page``.
    """

    def __init__(self, mode: str = "hang", upstream: tuple[str, int] | None = None, page: bytes = b"") -> None:
        self.mode = mode
        self.asked = 0
        self._upstream = upstream
        self._page = page
        self._ended = threading.Event()
        self._changed = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def become(self, mode: str) -> None:
        """Fail that way from now on; what is connected notices."""
        self.mode = mode
        self._changed += 1

    def __enter__(self) -> Faulty:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._changed += 1
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.asked += 1
            if self.mode == "works":
                self._pass_on(client)
            self._fail(client)

    def _fail(self, client: socket.socket) -> None:
        mode = self.mode
        client.settimeout(20)
        with contextlib.suppress(TimeoutError):
            if not client.recv(65536):
                return
        if mode == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif mode == "garbage":
            client.sendall(random.Random(self.asked).randbytes(4096))
        elif mode == "nonsense":
            body = _NONSENSE if self.asked % 2 else _PAGE
            kind = b"application/json" if self.asked % 2 else b"text/html"
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            client.sendall(head % (kind, len(body)) + body)
        elif mode == "page":
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            client.sendall(head % len(self._page) + self._page)
        elif mode == "500":
            client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry")
        else:
            self._say_nothing(client, drip=mode == "drip")

    def _say_nothing(self, client: socket.socket, *, drip: bool) -> None:
        """Keep the client waiting; dripping, a byte now and then keeps every timeout between two bytes from ending it."""
        if drip:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n[")
        changed, until = self._changed, time.monotonic() + 120
        while self._changed == changed and time.monotonic() < until:
            readable, _, _ = select.select([client], [], [], 0.1)
            if readable and not client.recv(65536):
                return
            if drip:
                client.sendall(b" ")

    def _pass_on(self, client: socket.socket) -> None:
        assert self._upstream is not None
        changed = self._changed
        with socket.create_connection(self._upstream, 5) as server:
            while self._changed == changed:
                readable, _, _ = select.select([client, server], [], [], 0.05)
                for one in readable:
                    data = one.recv(65536)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)


@contextlib.contextmanager
def failing(*names: str) -> Iterator[dict[str, Faulty]]:
    """One faulty server for each name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Faulty()) for name in names}
