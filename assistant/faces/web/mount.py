"""The pages among the routes of the server, and the sign-in link for whoever started it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assistant.faces.web import asking, checks, fleet, incidents, memory, reading, signing
from assistant.faces.web.door import Door
from assistant.faces.web.sessions import Sessions
from assistant.faces.web.visit import PageError, Visit, asset_address, assets, environment

if TYPE_CHECKING:
    from fastapi import FastAPI

    from assistant.faces.app import Shared

_FOR_EVER = "public, max-age=31536000, immutable"


def mount(app: FastAPI, shared: Shared) -> None:
    """Add the pages to the application."""
    sessions = Sessions(shared)
    door = Door(shared, sessions)
    app.state.web_sessions = sessions
    environment()
    pages = (
        ("/", asking.first, "GET"),
        ("/ask", asking.ask, "POST"),
        ("/incidents", incidents.listed, "GET"),
        ("/incidents/{incident}", incidents.one, "GET"),
        ("/incidents/{incident}/answers", incidents.answer, "POST"),
        ("/incidents/{incident}/feedback", incidents.feedback, "POST"),
        ("/incidents/{incident}/checks", checks.run, "POST"),
        ("/jobs/{job}", checks.followed, "GET"),
        ("/jobs/{job}/stop", checks.stop, "POST"),
        ("/jobs/{job}/diagnose", checks.go_on, "POST"),
        ("/runbooks", reading.runbooks, "GET"),
        ("/runbooks/site/{name:path}", reading.site_runbook, "GET"),
        ("/runbooks/{area}/{slug}", reading.one_runbook, "GET"),
        ("/documents/{lang}/{slug}", reading.document, "GET"),
        ("/memory", memory.calculator, "GET"),
        ("/memory", memory.calculator, "POST"),
        ("/fleet", fleet.everything, "GET"),
        ("/fleet/{target}", fleet.one, "GET"),
        ("/fleet/{target}/state", fleet.state, "GET"),
        ("/logout", signing.sign_out, "POST"),
    )
    routes = [Route(path, door(page), methods=[method], include_in_schema=False) for path, page, method in pages]
    for method, page in (("GET", signing.form), ("POST", signing.sign_in)):
        routes.append(Route("/login", door(page, open_to_all=True), methods=[method], include_in_schema=False))
    routes.append(Route("/assets/{name}", _asset, methods=["GET"], include_in_schema=False))
    routes.append(Route("/favicon.ico", _icon, methods=["GET"], include_in_schema=False))
    app.router.routes.extend(routes)
    _missing(app, door)


def tell_local_user(app: FastAPI) -> None:
    """Print a link that signs the local user in, once the server answers; for a server started on a terminal."""
    shared: Shared = app.state.shared
    sessions: Sessions = app.state.web_sessions

    @contextlib.asynccontextmanager
    async def tell() -> AsyncIterator[None]:
        ticket = await sessions.ticket()
        words = shared.service.catalog
        lang = "zh" if shared.settings.text("language") == "zh" else "en"
        line = words.word("web-sign-in-link", lang, url=shared.url(f"/login?ticket={ticket}"))
        print(line, file=sys.stderr, flush=True)
        yield

    shared.running.append(tell)


async def _asset(request: Request) -> Response:
    found = assets().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404, "There is no such file.")
    data, kind, tag = found
    is_exact = request.query_params.get("v") == tag
    headers = {"ETag": f'"{tag}"', "Cache-Control": _FOR_EVER if is_exact else "no-cache"}
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"  # an icon by itself
    if request.headers.get("if-none-match") == f'"{tag}"':
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=kind)


async def _icon(request: Request) -> Response:
    return Response(status_code=308, headers={"Location": asset_address("icon.svg")})


def _missing(app: FastAPI, door: Door) -> None:
    """An address that is not there: a page for a browser, a problem for a program."""

    async def page(visit: Visit) -> Response:
        raise PageError(404, visit.word("web-error-no-page"))

    drawn = door(page)

    async def missing(request: Request, error: Exception) -> Response:
        handler = app.exception_handlers[HTTPException]
        wants_page = "text/html" in request.headers.get("accept", "") and request.method == "GET"
        if wants_page and not request.url.path.startswith(("/v1/", "/mcp", "/slack", "/assets/")):
            return await drawn(request)
        answer: Response = await handler(request, error)  # type: ignore[misc]
        return answer

    app.add_exception_handler(404, missing)
