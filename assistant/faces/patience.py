"""An HTTP connection that does not wait for ever: whoever sends a request's head too slowly is hung up on.

uvicorn limits how long a connection may be idle after an answer, not how long the head of a request may take to arrive;
thousands of connections that send a byte a minute would hold a server's descriptors. Bodies are limited by the guard.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds from the first moment of a connection, or from the first byte of a further request, to the end of its head.
HEAD_S = 20.0


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with an end to waiting for the head of a request."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._hang_up)

    def data_received(self, data: bytes) -> None:
        """Something has come; the clock runs only while a head is not complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._late is None and self.conn.trailing_data[0]:
            self._late = self.loop.call_later(HEAD_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hang_up(self) -> None:
        self._late = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
