"""How `serve` ends: first it says that it is not ready, then it stops listening, then it finishes what it has.

A load balancer needs some seconds to see that a replica goes. Until then the replica takes what is sent to it and
closes each connection with the answer, so that the next request finds another.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from assistant import own_log

if TYPE_CHECKING:
    from assistant.faces.app import Shared

log = logging.getLogger(__name__)


class Draining(uvicorn.Server):
    """A server that goes on for ``server.drain_s`` seconds after the first SIGTERM; a second one ends it at once."""

    def __init__(self, config: uvicorn.Config, shared: Shared) -> None:
        super().__init__(config)
        self._shared = shared
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal's handler. An interruption from the keyboard is a person who does not want to wait."""
        drain_s = self._shared.settings.number("server.drain_s")
        if sig != signal.SIGTERM or self._until is not None or not self.started or not drain_s:
            self._shared.drain()
            super().handle_exit(sig, frame)
            return
        self._until = time.monotonic() + drain_s
        self._captured_signals.append(sig)
        self._shared.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Prepare and listen. What the program has by then stays, so Python looks for no garbage among it any more."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what there is, and then the log of it: uvicorn ends the process by the signal that it got."""
        await super().shutdown(sockets)
        await asyncio.to_thread(own_log.end)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._until is not None and time.monotonic() >= self._until:
            self.should_exit = True
        return await super().on_tick(counter)
