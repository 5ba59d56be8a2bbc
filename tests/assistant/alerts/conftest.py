"""A server with a place for its messages: a real receiver on this machine that keeps what it gets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.settings import load
from assistant.store.database import open_database
from assistant.store.migrations import migrate
from tests.assistant.faces.inside import Inside


@dataclass
class Received:
    """What the receiver got: method, path, the Authorization header and the body."""

    url: str
    requests: list[tuple[str, str, str, Any]] = field(default_factory=list)
    refuse: int = 0

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [body for method, path, _, body in self.requests if (method, path) == ("POST", "/hook")]


@pytest.fixture
def received() -> Iterator[Received]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if kept.refuse:
                kept.refuse -= 1
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            kept.requests.append((self.command, self.path, self.headers.get("Authorization", ""), body))
            answer = b'{"message": "Annotation added", "id": 7}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PATCH = do_POST  # noqa: N815 (the name that the server looks for)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Received(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()


@contextmanager
def serving(folder: Path, settings_given: dict[str, str]) -> Iterator[httpx.Client]:
    """A running server on a store in ``folder``, and a client with a viewer's token."""
    settings = load(
        {
            "HOME": str(folder),
            "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
            "VLLM_DIAGNOSE_SERVER_READERS": "1",
            "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000",
            **settings_given,
        }
    )
    database = open_database(settings)
    migrate(database)
    token = Tokens(database).create(f"t{time.monotonic_ns()}", Role.viewer)[0]
    database.close()
    server = Inside(settings)
    try:
        with httpx.Client(base_url=server.address, timeout=30, headers={"Authorization": f"Bearer {token}"}) as client:
            yield client
    finally:
        server.stop()


def wait(ready: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``ready`` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = ready()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def alert(number: int, *, status: str = "firing", start: str = "2026-11-21T10:00:00Z", **labels: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {"alertname": "VllmKvCacheFull", "instance": f"gpu{number}:8000", **labels},
        "annotations": {"summary": f"The KV cache of gpu{number} is full and requests are preempted."},
        "startsAt": start,
        "endsAt": "2026-11-21T10:05:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": f"{number:016x}",
    }


def webhook(*alerts: dict[str, Any], group: str = "{}:{}", more: int = 0) -> dict[str, Any]:
    firing = any(one["status"] == "firing" for one in alerts)
    return {
        "version": "4",
        "groupKey": group,
        "truncatedAlerts": more,
        "status": "firing" if firing else "resolved",
        "receiver": "diagnose",
        "groupLabels": {"alertname": "VllmKvCacheFull"},
        "commonLabels": {"alertname": "VllmKvCacheFull"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
    }
