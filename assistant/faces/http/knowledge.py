"""Runbooks and search over HTTP."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from assistant.faces.http.diagnoses import service_of
from assistant.faces.http.models import RunbookOut, RunbooksOut, SearchOut
from assistant.faces.http.problems import Json, problem, responses
from assistant.faces.http.senders import Sender
from assistant.runbooks import runbook
from knowledge.catalog import load
from tools.knowledge_search import search

router = APIRouter(tags=["knowledge"])
Language = Annotated[Literal["en", "zh"], Query(alias="lang")]
Version = Annotated[str | None, Query(max_length=80, pattern=r"^[0-9A-Za-z.+_-]+$", examples=["0.11.0"])]
Slug = Annotated[str, Path(max_length=80, pattern=r"^[a-z0-9-]+$")]


@router.get("/runbooks", response_model=RunbooksOut, summary="List the runbooks")
async def runbooks(_: Sender, lang: Language = "en") -> Response:
    """One for every cause."""
    items = [
        {
            "id": cause.id,
            "title": cause.title[lang],
            "severity": cause.severity,
            "begins": cause.begins,
            "url": f"/v1/runbooks/{cause.id}",
        }
        for cause in load().causes.values()
        if not cause.is_normal
    ]
    return Json({"items": items})


@router.get(
    "/runbooks/{area}/{slug}",
    response_model=RunbookOut,
    summary="A cause as ordered steps",
    responses={304: {"description": "Not changed"}, **responses(404)},
)
async def show(
    request: Request, _: Sender, area: Slug, slug: Slug, lang: Language = "en", vllm_version: Version = None
) -> Response:
    """What to save, then fixes with commands for `vllm_version` (the newest unless given), then how to check."""
    found = _rendered(f"{area}/{slug}", lang, vllm_version)
    if found is None:
        return problem(request, 404, f"There is no runbook {area}/{slug}; /v1/search finds one.")
    body, tag = found
    headers = {"ETag": tag, "Cache-Control": "private, max-age=300"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@lru_cache(maxsize=2048)
def _rendered(identifier: str, language: Literal["en", "zh"], version: str | None) -> tuple[bytes, str] | None:
    """A runbook as JSON with its tag; knowledge does not change while a process lives."""
    found: dict[str, Any] | None = runbook(load(), identifier, language, version)
    if found is None:
        return None
    found["url"] = f"/v1/runbooks/{identifier}"
    body = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    return body, f'"{hashlib.sha256(body).hexdigest()[:20]}"'


@router.get("/search", response_model=SearchOut, summary="Search causes, documents and your own runbooks")
async def find(
    request: Request,
    _: Sender,
    q: Annotated[str, Query(min_length=1, max_length=600, examples=["NCCL hangs at start"])],
    lang: Annotated[Literal["en", "zh"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=20)] = 5,
) -> Response:
    """By words, an error text, or an id."""
    service = service_of(request)
    folder = service.settings.text("runbooks_folder")
    try:
        hits = await service.in_thread(search, q, lang, limit, folder)
    except OSError as error:
        return problem(request, 503, f"The folder of runbooks cannot be read: {error.strerror or error}.")
    return Json({"hits": [hit.model_dump() for hit in hits]})
