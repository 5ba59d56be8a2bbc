"""An HTTP connection that does not wait for ever: whoever sends a request's head too slowly is hung up on.

uvicorn limits how long a connection may be idle after an answer, not how long the head of a request may take to arrive
nor, with its fast parser, how long the head may be; thousands of connections that send a byte a minute would hold a
server's descriptors. Bodies are limited by the guard.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from assistant.settings import Settings

#: Seconds from the first moment of a connection, or from the first byte of a further request, to the end of its head.
HEAD_S = 20.0
#: Bytes of a request's head; what comes in the same piece as its end is not counted apart, so this may be exceeded once
#: by what is received at a time.
MOST_HEAD_BYTES = 64 * 1024


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to waiting for the head of a request."""

    _late: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Something has come; an endless head is refused, and nothing but blank lines is no request either."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """The first byte of a request was read."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field was read; blanks around its value are no part of it (RFC 9110, section 5.5), which the parser leaves."""
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head of a request was read; from here on others keep the time."""
        self._in_head = False
        self._forget()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._hang_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hang_up(self) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # an answer is under way; the head behind it has waited long enough when that has gone out
        elif not self.transport.is_closing():
            self.transport.close()


def patient(application: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    """How both servers of the command line serve ``application``; ``more`` goes to uvicorn as it is."""
    return uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.number("server.stop_s")),
        http=PatientProtocol,
        **more,
    )
