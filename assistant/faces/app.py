"""The one process that `serve` runs: HTTP API, MCP over HTTP, Slack events and pages on one service.

:func:`create_app` puts the faces together. Each brings a function that takes the application and what they share
(:class:`Shared`), and says what has to run while the server does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from assistant import __version__
from assistant.faces.http.guard import Guard
from assistant.service import Service, opened

if TYPE_CHECKING:
    from assistant.settings import Settings

#: What a face wants to run while the server does.
Running = Callable[[], contextlib.AbstractAsyncContextManager[None]]
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(slots=True)
class Shared:
    """What the faces of one server share. ``service`` is there while the server runs, not before."""

    settings: Settings
    running: list[Running] = field(default_factory=list)
    _service: Service | None = None

    @property
    def service(self) -> Service:
        """The running service; raises ``RuntimeError`` before the server has begun and after it has ended."""
        if self._service is None:
            raise RuntimeError("the server is not running")
        return self._service

    @property
    def hosts(self) -> tuple[str, ...]:
        """What may stand in the Host header, without ports."""
        settings = self.settings
        names = [*settings["server.allowed_hosts"]]
        if url := settings.text("server.public_url"):
            names.append(urlsplit(url).hostname or "")
        if settings.text("server.host") in ("127.0.0.1", "localhost", "::1"):
            names += _LOOPBACK
        return tuple(dict.fromkeys(name.lower() for name in names if name))


def create_app(
    settings: Settings, *, work: bool = True, faces: tuple[Callable[[FastAPI, Shared], None], ...] = ()
) -> FastAPI:
    """The application of ``settings``. ``faces`` are mounted besides the program's own; ``work`` carries jobs out."""
    shared = Shared(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with opened(settings, work=work) as service, contextlib.AsyncExitStack() as stack:
            await service.readers.start()
            shared._service = service
            try:
                for running in shared.running:
                    await stack.enter_async_context(running())
                yield
            finally:
                await stack.aclose()
                shared._service = None

    app = FastAPI(
        title="vllm-diagnose",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.shared = shared
    _health(app, shared)
    for mount in (*_own_faces(), *faces):
        mount(app, shared)
    app.add_middleware(
        Guard,
        hosts=shared.hosts,
        max_body_bytes=settings.whole("server.max_body_bytes"),
    )
    return app


def _own_faces() -> tuple[Callable[[FastAPI, Shared], None], ...]:
    return ()


def _health(app: FastAPI, shared: Shared) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """Whether the process answers."""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", include_in_schema=False)
    async def readyz(_: Request) -> JSONResponse:
        """Whether a diagnosis could be given and kept right now."""
        problems = await shared.service.ready()
        return JSONResponse({"ready": not problems, "problems": list(problems)}, status_code=503 if problems else 200)
