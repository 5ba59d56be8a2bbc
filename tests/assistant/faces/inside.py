"""The application on a real socket, in a thread of the test's own process: what it does can be looked at and replaced."""

from __future__ import annotations

import threading
import time
from typing import Any

import uvicorn

from assistant.faces.app import create_app
from assistant.faces.cli.serve import listen
from assistant.faces.patience import PatientProtocol
from assistant.settings import Settings

#: Seconds that a start may take on a machine full of other tests.
_START_S = 120.0


class Inside:
    """A server that runs until :meth:`stop`; ``graceful_s`` is how long it then waits for requests under way."""

    def __init__(self, settings: Settings, *, graceful_s: int | None = None, **more: Any) -> None:
        self._listener = listen("127.0.0.1", 0)
        port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.app = create_app(settings, port=port, **more)
        config = uvicorn.Config(self.app, http=PatientProtocol, log_level="error", timeout_graceful_shutdown=graceful_s)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        until = time.monotonic() + _START_S
        while not self.server.started and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.05)
        assert self.server.started, "the server did not start"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        self._listener.close()
