"""The one process that `serve` runs: HTTP API, MCP over HTTP, Slack events and pages on one service.

:func:`create_app` puts the faces together. Each brings a function that takes the application and what they share
(:class:`Shared`), and says what has to run while the server does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from assistant import __version__
from assistant.faces.http.api import mount as mount_api
from assistant.faces.http.guard import Guard
from assistant.faces.http.observed import Observed, observing
from assistant.faces.http.observed import mount as mount_metrics
from assistant.faces.http.problems import TooOftenError
from assistant.faces.mcp.server import mount as mount_mcp
from assistant.faces.slack.http import mount as mount_slack
from assistant.faces.web.mount import mount as mount_web
from assistant.observability import Metrics
from assistant.running import opened
from assistant.security.authentication import ANONYMOUS, Authenticator
from assistant.security.limiter import Limiter
from assistant.service import Service
from assistant.telemetry import tracing_of

if TYPE_CHECKING:
    from assistant.alerts.channels import Channel
    from assistant.alerts.desk import Desk
    from assistant.security.oauth import Issuer
    from assistant.security.roles import Principal
    from assistant.settings import Settings
    from assistant.telemetry import Tracing

#: What a face wants to run while the server does.
Running = Callable[[], contextlib.AbstractAsyncContextManager[None]]
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass
class Shared:
    """What the faces of one server share. ``service`` is there while the server runs, not before."""

    settings: Settings
    port: int = 0
    running: list[Running] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)  # where diagnosed alerts go besides the configured places
    desk: Desk | None = None  # who works on alerts; there while the server runs
    tracing: Tracing | None = None
    _service: Service | None = None
    _authenticator: Authenticator | None = None

    @property
    def service(self) -> Service:
        """The running service; raises ``RuntimeError`` before the server has begun and after it has ended."""
        if self._service is None:
            raise RuntimeError("the server is not running")
        return self._service

    @cached_property
    def metrics(self) -> Metrics:
        """What this server tells Prometheus about itself."""
        from knowledge.catalog import load

        return Metrics(__version__, load().causes)

    def drain(self) -> None:
        """Begin to stop; before the server has begun there is nothing to do."""
        if self._service is not None:
            self._service.drain()

    @property
    def draining(self) -> bool:
        """Whether the server has begun to stop."""
        return self._service is not None and self._service.draining

    @cached_property
    def limiter(self) -> Limiter:
        """How often each sender may ask."""
        return Limiter(self.settings.whole("server.requests_per_minute"))

    @property
    def authenticator(self) -> Authenticator:
        """Who sends a request; there while the server runs."""
        if self._authenticator is None:
            self._authenticator = Authenticator(
                self.service.tokens,
                anonymous=self.settings.text("server.anonymous") == "viewer",
                issuer=_issuer(self),
            )
        return self._authenticator

    async def admit(self, authorization: str | None, address: str) -> Principal:
        """Who sends a request, counted against how often they may ask; one door for the API and MCP.

        Raises ``UnauthenticatedError``, :class:`TooOftenError` and ``StoreError``.
        """
        principal = await self.authenticator.who(authorization)
        wait_s = await self.limiter.take(address if principal.id == ANONYMOUS.id else principal.id)
        if wait_s is not None:
            raise TooOftenError(wait_s)
        return principal

    def url(self, path: str) -> str:
        """The address of ``path`` as people outside reach it."""
        return self.base_url + path

    @property
    def base_url(self) -> str:
        """The public URL without a slash at its end; the listening address where none is configured."""
        settings = self.settings
        host = settings.text("server.host")
        own = f"http://{f'[{host}]' if ':' in host else host}:{self.port or settings.whole('server.port')}"
        return (settings.text("server.public_url") or own).rstrip("/")

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of the server's own pages."""
        found = [self.base_url]
        if self.settings.text("server.host") in ("127.0.0.1", "localhost", "::1"):
            port = self.port or self.settings.whole("server.port")
            found += [f"http://{host}:{port}" for host in _LOOPBACK]
        return tuple(dict.fromkeys(found))

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
    settings: Settings,
    *,
    port: int = 0,
    work: bool = True,
    faces: tuple[Callable[[FastAPI, Shared], None], ...] = (),
    own: tuple[Callable[[FastAPI, Shared], None], ...] | None = None,
) -> FastAPI:
    """The application of ``settings``.

    ``port`` is the one that is really listened on; ``faces`` are mounted besides the program's own, and ``own`` in their
    place; ``work`` carries jobs out in this process.
    """
    shared = Shared(settings, port)
    shared.tracing = tracing_of(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with opened(settings, work=work) as service, contextlib.AsyncExitStack() as stack:
            await service.start()
            shared._service = service
            stack.enter_context(observing(service, shared.metrics, shared.tracing))
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
    mount_metrics(app, shared)
    for mount in (*(_own_faces() if own is None else own), *faces):
        mount(app, shared)
    app.add_middleware(Observed, shared=shared)
    app.add_middleware(
        Guard,
        hosts=shared.hosts,
        max_body_bytes=settings.whole("server.max_body_bytes"),
        receive_s=settings.number("server.receive_s"),
    )
    return app


def _own_faces() -> tuple[Callable[[FastAPI, Shared], None], ...]:
    # Slack first: its channel has to be there when the API begins to work on alerts, and goes after that has ended.
    return (mount_slack, mount_api, mount_mcp, mount_web)


def _issuer(shared: Shared) -> Issuer | None:
    """The configured authorization server, its keys fetched through the one way out."""
    settings = shared.settings
    url = settings.text("auth.issuer")
    if not url:
        return None
    from assistant.security.oauth import Issuer
    from tools.addresses import Allowance
    from tools.outbound import Outbound

    keys_url = settings.text("auth.jwks_url") or url.rstrip("/") + "/.well-known/jwks.json"
    policy = shared.service.policy.allowing(Allowance.of(keys_url))

    async def fetch() -> Any:
        async with Outbound(policy) as out:
            return (await out.get(keys_url)).json()

    return Issuer(url, settings.text("auth.audience") or shared.url("/mcp"), fetch)


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
