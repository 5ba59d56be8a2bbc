"""A load balancer as sites run them, no kinder: it follows /readyz and repeats only what no server can have seen."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import selectors
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

#: Seconds between two probes of one server and for the answer to one; how many silent ones take a server out.
PROBE_S, PROBE_WAIT_S, FALL = 0.25, 2.0, 3
_MOST_HELD = 65536


@dataclass
class Backend:
    """One server behind the proxy."""

    port: int
    ready: bool = False
    silent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Passes each connection on to a server that says it is ready, in turn.

    A 503 at /readyz takes a server out at once, silence after :data:`FALL` probes. A connection that is refused goes to
    the next server, and so does one that a server closes before a byte of the request was sent to it. Anything else that
    fails behind it, the client sees; while no server is ready the client gets 503 at once. Nothing is queued.
    """

    def __init__(self) -> None:
        self.backends: list[Backend] = []
        #: What happened: ``passed``, ``refused`` and ``closed early`` (passed on to another), ``nobody ready``.
        self.seen: Counter[str] = Counter()
        self._turn = itertools.count()
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for backend in self.backends:
            backend.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def add(self, port: int, seconds: float = 60) -> None:
        """Send connections to the server at ``port`` too, and wait until a probe found it ready."""
        backend = Backend(port)
        self.backends = [*self.backends, backend]
        threading.Thread(target=self._probe, args=(backend,), daemon=True).start()
        until = time.monotonic() + seconds
        while not backend.ready:
            assert time.monotonic() < until, f"the server at port {port} never became ready"
            time.sleep(0.05)

    def remove(self, port: int) -> None:
        """Forget a server that has ended."""
        for backend in self.backends:
            if backend.port == port:
                backend.ended.set()
        self.backends = [one for one in self.backends if one.port != port]

    def _probe(self, backend: Backend) -> None:
        while not backend.ended.wait(PROBE_S):
            connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=PROBE_WAIT_S)
            try:
                connection.request("GET", "/readyz")
                backend.ready, backend.silent = connection.getresponse().status == 200, 0
            except (OSError, http.client.HTTPException) as error:
                backend.silent += 1
                if isinstance(error, ConnectionRefusedError) or backend.silent >= FALL:
                    backend.ready = False
            finally:
                connection.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(70)
            first = client.recv(_MOST_HELD)
            if not first:
                return
            ready = [backend for backend in self.backends if backend.ready]
            turn = next(self._turn)
            for place in range(len(ready)):
                server = self._sent(ready[(turn + place) % len(ready)], first)
                if server is not None:
                    self.seen["passed"] += 1
                    self._both_ways(client, server)
                    return
            self.seen["nobody ready"] += 1
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    def _sent(self, backend: Backend, first: bytes) -> socket.socket | None:
        """A connection on which the beginning of the request was sent; None where none of it was."""
        try:
            server = socket.create_connection(("127.0.0.1", backend.port), 5)
        except OSError:
            self.seen["refused"] += 1
            return None
        try:
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if server.recv(1, socket.MSG_PEEK) == b"":
                    raise ConnectionResetError
            server.settimeout(70)
        except OSError:  # closed before a byte was sent
            self.seen["closed early"] += 1
            server.close()
            return None
        server.sendall(first)
        return server

    def _both_ways(self, client: socket.socket, server: socket.socket) -> None:
        with server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._ended.is_set():
                for key, _ in selector.select(60):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)
