"""Errors as RFC 9457 problem details: one shape for every refusal, with a sentence and never a stack."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from assistant.faces.http.wanted import GONE
from assistant.readers import ReadersError
from assistant.security.authentication import UnauthenticatedError
from assistant.security.roles import ForbiddenError
from assistant.service import QuestionError, UndecidedError
from assistant.store.database import NotFoundError, StoreError
from assistant.store.incidents import StaleRevisionError
from tools.registry import ActionError, ConsentError, DeadlineError, InputError, UnknownActionError

log = logging.getLogger("vllm_diagnose.http")
MEDIA = "application/problem+json"
_MOST_ERRORS = 20


class Problem(BaseModel):
    """RFC 9457. ``errors`` holds one sentence for each thing that is wrong with the request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    request_id: str = ""
    errors: list[str] = Field(default_factory=list)


class Json(JSONResponse):
    """JSON that every input survives: a broken surrogate from somebody's log becomes a question mark."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route as OpenAPI wants them; 401, 413, 422, 429, 500 and 503 come with every route."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    out: dict[int | str, dict[str, Any]] = {}
    for status in sorted({400, 401, 403, 413, 422, 429, 500, 503, *statuses}):
        out[status] = {"description": _TITLES[status], "content": {MEDIA: schema}}
    out[401]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    out[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return out


_TITLES = {
    400: "The request cannot be read",
    401: "Who sends this is not known",
    403: "Not allowed",
    404: "Not found",
    405: "Not a method of this address",
    408: "Not sent in time",
    409: "Not possible as things are now",
    410: "Not there any more",
    413: "Too large",
    415: "Not a type that is read here",
    421: "Not a name of this server",
    422: "The request does not fit",
    429: "Too many requests",
    500: "Something went wrong here",
    503: "Not possible right now",
    504: "Not finished in time",
}


class TooOftenError(Exception):
    """The sender asks too often; ``wait_s`` says how many seconds to wait."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"Too many requests; wait {wait_s} s.")
        self.wait_s = wait_s


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    errors: list[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem as an answer."""
    body = Problem(
        title=_TITLES.get(status, "Error"),
        status=status,
        detail=detail,
        request_id=getattr(request.state, "request_id", ""),
        errors=errors or [],
    )
    return Json(body.model_dump(), status_code=status, headers=dict(headers or {}), media_type=MEDIA)


def install(app: FastAPI, metadata_url: str) -> None:
    """Make every error of ``app`` a problem."""

    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request)) or headers.get("Allow", "")
        return problem(request, error.status_code, str(error.detail), headers=headers)

    async def validation(request: Request, error: RequestValidationError) -> Response:
        errors = [sentence(part) for part in error.errors()[:_MOST_ERRORS]]
        broken = any(part.get("type") == "json_invalid" for part in error.errors())
        return problem(request, 400 if broken else 422, " ".join(errors)[:2000], errors=errors)

    async def unauthenticated(request: Request, error: UnauthenticatedError) -> Response:
        return problem(request, 401, str(error), headers={"WWW-Authenticate": error.challenge(metadata_url)})

    async def too_often(request: Request, error: TooOftenError) -> Response:
        return problem(request, 429, str(error), headers={"Retry-After": str(error.wait_s)})

    async def unavailable(request: Request, error: Exception) -> Response:
        return problem(request, 503, str(error), headers={"Retry-After": "5"})

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("request %s failed", getattr(request.state, "request_id", ""), exc_info=error)
        return problem(request, 500, "This is a mistake of ours; the request id names it in the server's log.")

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return problem(request, GONE, "The client went before its request was there.")

    def saying(status: int) -> Any:
        async def handler(request: Request, error: Exception) -> Response:
            errors = list(error.problems) if isinstance(error, InputError) else []
            return problem(request, status, str(error), errors=errors)

        return handler

    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, validation)  # type: ignore[arg-type]
    app.add_exception_handler(UnauthenticatedError, unauthenticated)  # type: ignore[arg-type]
    app.add_exception_handler(TooOftenError, too_often)  # type: ignore[arg-type]
    app.add_exception_handler(StoreError, unavailable)
    app.add_exception_handler(ClientDisconnect, gone)  # type: ignore[arg-type]
    for kind, status in (
        (NotFoundError, 404),
        (UnknownActionError, 404),
        (StaleRevisionError, 409),
        (ConsentError, 403),
        (ForbiddenError, 403),
        (InputError, 422),
        (QuestionError, 422),
        (UndecidedError, 409),
        (ReadersError, 422),
        (DeadlineError, 504),
        (TimeoutError, 504),
        (ActionError, 409),  # the request is well formed; the machine is not as the tool needs it
    ):
        app.add_exception_handler(kind, saying(status))
    app.add_exception_handler(Exception, unexpected)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Every documented method of the address that was asked; each route by itself knows only its own."""
    found: set[str] = set()
    for path, operations in app.openapi().get("paths", {}).items():
        if compile_path(path)[0].match(request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def sentence(part: Mapping[str, Any]) -> str:
    """One error of Pydantic's as a sentence, without the value that was sent."""
    where = ".".join(str(step) for step in part.get("loc", ()) if step not in ("body", "query", "path", "header"))
    message = str(part.get("msg", "is not as expected"))
    if part.get("type") == "extra_forbidden":
        message = "this is no field"
    elif part.get("type") == "json_invalid":
        return "The body is no JSON."
    return f"{where or 'the request'}: {message[:1].lower()}{message[1:]}."
