"""What every page passes: who looks, how often, whose form it is; and errors as pages with a sentence."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from assistant.faces.web.visit import PageError, Visit, language_of
from assistant.readers import ReadersError
from assistant.security.authentication import UnauthenticatedError
from assistant.security.roles import ForbiddenError
from assistant.service import QuestionError
from assistant.store.database import NotFoundError, StoreError
from assistant.store.incidents import StaleRevisionError
from tools.registry import ActionError, DeadlineError, UnknownActionError

if TYPE_CHECKING:
    from assistant.faces.app import Shared
    from assistant.faces.web.sessions import Sessions

log = logging.getLogger("vllm_diagnose.web")
Page = Callable[[Visit], Awaitable[Response]]
#: What a form may hold besides files, in bytes a field.
MOST_FIELD = 8 << 20
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 404),
    (UnknownActionError, 404),
    (StaleRevisionError, 409),
    (StoreError, 503),
    (ForbiddenError, 403),
    (DeadlineError, 504),
    (TimeoutError, 504),
    (QuestionError, 422),
    (ReadersError, 422),
    (ActionError, 422),
    (UnauthenticatedError, 401),
)


class Door:
    """Wraps a page. ``open_to_all`` pages (signing in) are shown to whoever comes."""

    def __init__(self, shared: Shared, sessions: Sessions) -> None:
        self._shared = shared
        self._sessions = sessions

    def __call__(self, page: Page, *, open_to_all: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """The page as Starlette calls it."""

        async def endpoint(request: Request) -> Response:
            lang = language_of(request, self._shared.settings.text("language"))
            try:
                visitor = await self._sessions.who(request)
            except StoreError as error:
                return self._without_store(request, lang, error)
            visit = Visit(request, self._shared, self._sessions, visitor, lang)
            try:
                return await self._pass(visit, page, open_to_all)
            except HTTPException as error:
                return _said(visit, error.status_code, str(error.detail))
            except PageError as error:
                return _said(visit, error.status, str(error))
            except tuple(kind for kind, _ in _STATUS) as error:
                status = next(status for kind, status in _STATUS if isinstance(error, kind))
                return _said(visit, status, visit.told(error))
            except Exception as error:
                identifier = getattr(request.state, "request_id", "")
                log.error("request %s failed", identifier, exc_info=error)
                return _said(visit, 500, visit.word("web-error-ours", id=identifier))

        return endpoint

    async def _pass(self, visit: Visit, page: Page, open_to_all: bool) -> Response:
        request, visitor = visit.request, visit.visitor
        sender = visitor.principal.id if visitor.signed_in and visitor.principal else _address(request)
        wait_s = await self._shared.limiter.take(sender)
        if wait_s is not None:
            response = _said(visit, 429, visit.word("web-error-often", seconds=wait_s))
            response.headers["Retry-After"] = str(wait_s)
            return response
        if visitor.principal is None and not open_to_all:
            return _sign_in_first(visit)
        if request.method == "POST":
            async with request.form(max_files=50, max_fields=60, max_part_size=MOST_FIELD) as form:
                proof = form.get("proof", "")
                if not isinstance(proof, str) or not self._sessions.is_ours(request, visitor, proof):
                    raise PageError(403, visit.word("web-error-form"))
                visit.form = form
                return await page(visit)
        return await page(visit)

    def _without_store(self, request: Request, lang: str, error: StoreError) -> Response:
        """Without the store nobody can be told apart from anybody; say so, in plain text."""
        return Response(f"{error}\n", 503, {"Retry-After": "5"}, "text/plain; charset=utf-8")


def _sign_in_first(visit: Visit) -> Response:
    request = visit.request
    if request.method != "GET":
        raise PageError(403, visit.word("web-error-signed-out"))
    if visit.visitor.is_new and request.headers.get("sec-fetch-site") == "cross-site":
        # A strict cookie is not sent along a link on another site (a chat, a dashboard); from this page it is.
        return visit.page("onward.html", title=visit.word("web-onward"), here=visit.address())
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return visit.to("/login?" + urlencode({"next": target}) if target != "/" else "/login")


def _said(visit: Visit, status: int, sentence: str) -> Response:
    if visit.request.headers.get("accept", "").startswith("text/event-stream"):
        return Response(sentence, status, media_type="text/plain; charset=utf-8")
    return visit.page("error.html", status=status, title=visit.word("web-error"), sentence=sentence, number=status)


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
