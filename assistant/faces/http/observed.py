"""Every request as a figure, a line of the server's own log and a span; and ``/metrics``, where the figures are read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from assistant.own_log import REQUESTS
from tools import registry

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis
    from assistant.faces.app import Shared
    from assistant.faces.http.guard import Application, Message, Receive, Send
    from assistant.observability import Metrics
    from assistant.service import Service
    from assistant.telemetry import Tracing

#: Asked every few seconds by probes; they are counted and not logged.
_QUIET = ("/healthz", "/readyz", "/metrics")


_API = "/v1/"


class Observed:
    """Counts, times and logs requests. While the server stops, every answer also ends its connection."""

    def __init__(self, app: Application, *, shared: Shared) -> None:
        self._app = app
        self._shared = shared

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shared, began = self._shared, time.monotonic()
        status, first = 500, 0.0
        identifier = scope.get("state", {}).get("request_id", "")

        async def answer(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
                if shared.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
                if any(value.startswith(b"text/event-stream") for _, value in message.get("headers", [])):
                    first = time.monotonic() - began
            await send(message)

        with contextlib.ExitStack() as stack:
            stack.enter_context(shared.metrics.under_way.track_inprogress())
            span: dict[str, Any] = {}
            if shared.tracing is not None:
                headers = dict(scope["headers"])
                span = stack.enter_context(shared.tracing.request(scope["method"], headers, identifier))
            try:
                await self._app(scope, receive, answer)
            finally:
                seconds, route = first or time.monotonic() - began, route_of(scope)
                span |= {"http.route": route, "http.response.status_code": status}
                shared.metrics.request(route, scope["method"], status, seconds)
                if route not in _QUIET:
                    principal = scope.get("state", {}).get("principal")
                    fields = {
                        "request_id": identifier,
                        "method": scope["method"] if len(scope["method"]) < 10 else "?",
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "who": principal.id if principal is not None else None,
                    }
                    REQUESTS.info("request", extra={"fields": fields})


def route_of(scope: MutableMapping[str, Any]) -> str:
    """The template that served a request; for what none did, ``other``. Never the path that was asked for."""
    path = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        versioned = scope["path"].startswith(_API) and not path.startswith(_API)  # a router's route lacks its prefix
        return f"{_API.rstrip('/')}{path}" if versioned else path or "/"
    for mounted in ("/mcp", "/slack"):
        if scope["path"] == mounted or scope["path"].startswith(mounted + "/"):
            return mounted
    return "other"


def mount(app: FastAPI, shared: Shared) -> None:
    """Add ``/metrics``."""
    who_may = shared.settings.text("server.metrics")
    if who_may == "off":
        return

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """The server's own figures in Prometheus' text format."""
        service = shared.service
        if who_may == "token":
            principal = await shared.authenticator.who(request.headers.get("authorization"))
            if await shared.limiter.take(principal.id) is not None:
                raise HTTPException(429, "The figures are asked for too often.")
        await _look(service, shared.metrics)
        page, kind = shared.metrics.page()
        return Response(page, media_type=kind)


async def _look(service: Service, metrics: Metrics) -> None:
    from assistant.store.database import StoreError

    jobs: dict[str, int] | None = None
    wait_s = service.settings.number("store.timeout_s")
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(wait_s):
            jobs = await service.in_thread(service.jobs.waiting)
    pool = service.readers
    readers = (getattr(pool, "processes", 1), getattr(pool, "asked", 0), getattr(pool, "replaced", 0))
    metrics.now(ready=not await service.ready(), jobs=jobs, readers=readers)


@contextlib.contextmanager
def observing(service: Service, metrics: Metrics, tracing: Tracing | None) -> Iterator[None]:
    """Listen to the readers, the tools and the store of a running service."""
    from assistant.readers import Readers

    def read(outcome: str, seconds: float, diagnosis: Diagnosis | None) -> None:
        metrics.reading(outcome, seconds, diagnosis)
        if tracing is not None:
            verdict = diagnosis.verdict if diagnosis is not None else ""
            tracing.ended("diagnose", seconds, {"outcome": outcome, "verdict": verdict})

    def called(tool: str, outcome: str, seconds: float) -> None:
        metrics.tool(tool, outcome, seconds)
        if tracing is not None:
            tracing.ended(f"tool {tool}", seconds, {"outcome": outcome})

    def kept(kind: str, seconds: float, failed: bool) -> None:
        metrics.transaction(kind, seconds, failed)
        if tracing is not None:
            tracing.ended(f"store {kind}", seconds, {"outcome": "failed" if failed else "done"})

    service.database.observer = kept
    if isinstance(service.readers, Readers):
        service.readers.observer = read
    registry.OBSERVERS.append(called)
    try:
        yield
    finally:
        registry.OBSERVERS.remove(called)
        service.database.observer = None
        if isinstance(service.readers, Readers):
            service.readers.observer = None
        if tracing is not None:
            tracing.close()
