"""Diagnoses over HTTP: new ones, saved ones, answers, feedback, and what happens to them as events."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from assistant.faces.http.models import (
    EXAMPLE,
    AnswersRequest,
    DiagnosisOut,
    DiagnosisRequest,
    FeedbackOut,
    FeedbackRequest,
    IncidentsOut,
)
from assistant.faces.http.problems import Json, problem, responses
from assistant.faces.http.senders import Sender
from assistant.faces.http.wanted import while_wanted
from assistant.faces.schemas import compact
from assistant.readers import GRACE_S, Ask

if TYPE_CHECKING:
    from assistant.security.roles import Principal
    from assistant.service import Answered, Service

router = APIRouter(tags=["diagnoses"])

#: Hours for which an idempotency key is remembered.
KEEP_KEY_S = 24 * 3600.0
#: Seconds between two looks at a saved incident, and for which one stream of events stays open.
LOOK_EVERY_S, STREAM_S = 1.0, 3600.0
_KEEP_ALIVE_S = 15.0
_FIELDS = ("text", "target", "vllm_version", "language")

Incident = Annotated[str, Path(max_length=200, description="id of a saved incident")]
Seconds = Annotated[
    float, Query(alias="for_s", ge=0, le=STREAM_S, description="seconds after which the stream ends by itself")
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="the same key and body give the same incident for a day, however often they are sent",
    ),
]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": compact(DiagnosisRequest.model_json_schema()),
                "examples": {"a log and a question": {"value": EXAMPLE}},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        # a form knows no types, so only what can be told apart is restricted
                        "text": {"description": "question or symptom"},
                        "target": {"description": "name of a configured target"},
                        "vllm_version": {"description": "if it is not in the logs"},
                        "language": {"enum": ["en", "zh"]},
                        "logs": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": 50,
                        },
                    },
                    "required": ["logs"],
                    "additionalProperties": False,
                }
            },
        },
    }
}


def service_of(request: Request) -> Service:
    """The running service."""
    service: Service = request.app.state.shared.service
    return service


@router.post(
    "/diagnoses",
    response_model=DiagnosisOut,
    status_code=201,
    summary="Diagnose an incident",
    openapi_extra=_BODY,
    responses=responses(404, 409, 415, 504),
)
async def create(request: Request, who: Sender, idempotency_key: Key = None, full: bool = False) -> Response:
    """Diagnose words, logs and a configured target as one incident, and keep it unless `save` is false.

    Logs are sent as JSON or uploaded as `multipart/form-data`. With `full` the answer holds the evidence, enough to
    compute the diagnosis again.
    """
    given, logs, digest = await _read(request)
    service = service_of(request)
    claim = f"http:{who.id}:{idempotency_key}" if idempotency_key else ""
    if claim:
        # Until there is an incident the key is held no longer than the work can take: a server that is killed meanwhile
        # must not keep the client from trying again.
        working_s = service.settings.number("deadline_s") * 2 + GRACE_S
        earlier = await service.in_thread(lambda: service.claims.take(claim, f"{digest}:", keep_s=working_s))
        if earlier is not None:
            return await _earlier(request, who, earlier, digest, full)
    try:
        ask = Ask(
            text=given.text,
            logs=logs,
            vllm_version=given.vllm_version,
            language=given.language,
            target=given.target,
            answers=given.answers,
        )
        answered = await while_wanted(request, service.diagnose(who, ask, face="http", save=given.save))
    except BaseException:
        if claim:  # it did not happen, so it may be tried again
            await asyncio.shield(service.in_thread(service.claims.drop, claim))
        raise
    if claim:
        value = f"{digest}:{answered.incident or ''}"
        await service.in_thread(lambda: service.claims.put(claim, value, keep_s=KEEP_KEY_S))
    return Json(answered.to_json(full=full), status_code=201, headers=location(answered))


def location(answered: Answered) -> dict[str, str]:
    """Where a new incident is found again; empty where it was not kept."""
    return {"Location": f"/v1/diagnoses/{answered.incident}"} if answered.incident else {}


async def _earlier(request: Request, who: Principal, earlier: str, digest: str, full: bool) -> Response:
    """The answer that the same key got before."""
    before, _, incident = earlier.partition(":")
    if before != digest:
        return problem(request, 409, "This Idempotency-Key was used for another request.")
    if not incident:
        return problem(request, 409, "The request with this Idempotency-Key is still being worked on, or kept nothing.")
    answered = await service_of(request).incident(who, incident)
    headers = {"Location": f"/v1/diagnoses/{incident}", "Idempotency-Replayed": "true"}
    return Json(answered.to_json(full=full), status_code=201, headers=headers)


async def _read(request: Request) -> tuple[DiagnosisRequest, tuple[tuple[str, bytes], ...], str]:
    """The request, its logs as bytes, and a digest of the whole."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        raw = await request.body()
        try:
            given = DiagnosisRequest.model_validate(json.loads(raw))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        except (ValueError, RecursionError):
            raise HTTPException(400, "The body is no JSON that can be read.") from None
        logs = tuple((log.name, log.content.encode("utf-8", "replace")) for log in given.logs)
        return given, logs, hashlib.sha256(raw).hexdigest()
    if kind == "multipart/form-data":
        return await _read_form(request)
    raise HTTPException(415, "Send application/json, or multipart/form-data with files called logs.")


async def _read_form(request: Request) -> tuple[DiagnosisRequest, tuple[tuple[str, bytes], ...], str]:
    fields: dict[str, Any] = {}
    logs: list[tuple[str, bytes]] = []
    async with request.form(max_files=50, max_fields=20, max_part_size=8 << 20) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                logs.append((value.filename or f"log {len(logs) + 1}", await value.read()))
            elif name == "logs":
                raise HTTPException(422, "logs: send files; text goes into the field text.")
            elif value or name not in _FIELDS:
                fields[name] = value if name == "text" else value[:80]  # a form cannot be told of limits
    try:
        given = DiagnosisRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    digest = hashlib.sha256(repr((sorted(fields.items()), logs)).encode("utf-8", "replace"))
    return given, tuple(logs), digest.hexdigest()


@router.get("/diagnoses", response_model=IncidentsOut, summary="List saved incidents")
async def recent(
    request: Request,
    _: Sender,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,15}-[0-9a-f]{20}$")] = None,
) -> Response:
    """Newest first; `next` of one page is the `cursor` of the following one."""
    service = service_of(request)
    before = None
    if cursor:
        at, identifier = cursor.split("-")
        before = (int(at), identifier)
    rows = await service.in_thread(lambda: service.incidents.recent(limit + 1, before=before))
    page = rows[:limit]
    items = [{**row, "created_at": moment(row["created_at"])} for row in page]
    following = f"{page[-1]['created_at']}-{page[-1]['id']}" if len(rows) > limit else None
    return Json({"items": items, "next": following})


@router.get(
    "/diagnoses/{incident}", response_model=DiagnosisOut, summary="Show a saved incident", responses=responses(404, 504)
)
async def show(request: Request, who: Sender, incident: Incident, full: bool = False) -> Response:
    """The newest revision, diagnosed again from the saved evidence."""
    answered = await service_of(request).incident(who, incident)
    return Json(answered.to_json(full=full), headers={"ETag": f'"{incident}-{answered.revision}"'})


@router.post(
    "/diagnoses/{incident}/answers",
    response_model=DiagnosisOut,
    summary="Answer questions of an incident",
    responses=responses(404, 409, 504),
)
async def answer(request: Request, who: Sender, incident: Incident, given: AnswersRequest) -> Response:
    """Answer to the revision that was seen; a stale one is 409 and changes nothing."""
    service = service_of(request)
    answering = service.answer(who, incident, given.answers, face="http", revision=given.revision)
    answered = await while_wanted(request, answering)
    return Json(answered.to_json())


@router.post(
    "/diagnoses/{incident}/feedback",
    status_code=204,
    response_class=Response,
    summary="Say whether the diagnosis was right",
    responses=responses(404),
)
async def feedback(request: Request, who: Sender, incident: Incident, given: FeedbackRequest) -> Response:
    """Kept with the evidence, so that it can be learned from."""
    service = service_of(request)
    await service.in_thread(
        lambda: service.incidents.feedback(
            incident, given.helped, comment=service.clean(given.comment), given_by=f"http: {who.id}"
        )
    )
    return Response(status_code=204)


@router.get("/feedback", response_model=FeedbackOut, summary="What people said, per cause")
async def judged(request: Request, _: Sender) -> Response:
    """For every cause that was found: incidents, and how many were judged right, partly right and wrong."""
    service = service_of(request)
    rows = await service.in_thread(service.feedback.per_cause)
    return Json({"items": [asdict(row) for row in rows]})


@router.get(
    "/diagnoses/{incident}/events",
    summary="Follow an incident",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
        **responses(404),
    },
)
async def events(request: Request, who: Sender, incident: Incident, for_s: Seconds = STREAM_S) -> Response:
    """Server-sent events: `diagnosis` with every revision, `job` with the progress of its jobs."""
    service = service_of(request)
    await service.in_thread(service.incidents.revision, incident)  # 404 before anything is streamed
    return stream(_changes(request, service, who, incident, for_s))


async def _changes(
    request: Request, service: Service, who: Principal, incident: str, for_s: float
) -> AsyncIterator[str]:
    seen, jobs = 0, {}  # type: int, dict[str, str]
    loop = asyncio.get_running_loop()
    end = loop.time() + for_s
    while not service.draining and not await request.is_disconnected():
        if await service.in_thread(service.incidents.revision, incident) > seen:
            answered = await service.incident(who, incident)
            seen = answered.revision
            yield event("diagnosis", answered.to_json(), f"{seen}")
        for job in await service.in_thread(service.jobs.of_incident, incident):
            body = json.dumps({"id": job.id, "state": job.state, "progress": job.progress, "doing": job.doing})
            if jobs.get(job.id) != body:
                jobs[job.id] = body
                yield f"event: job\ndata: {body}\n\n"
        if loop.time() + LOOK_EVERY_S > end:
            return
        await asyncio.sleep(LOOK_EVERY_S)


def event(name: str, body: Any, identifier: str = "") -> str:
    """One server-sent event."""
    mark = f"id: {identifier}\n" if identifier else ""
    return f"{mark}event: {name}\ndata: {json.dumps(body, ensure_ascii=True)}\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Events as an answer that proxies neither keep back nor end for silence."""

    async def with_signs_of_life() -> AsyncIterator[str]:
        waiting = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=_KEEP_ALIVE_S)
                if not done:
                    yield ": still here\n\n"
                    continue
                text = waiting.result()
                if text is None:
                    return
                yield text
                waiting = asyncio.ensure_future(anext(events, None))
        finally:
            waiting.cancel()

    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(with_signs_of_life(), media_type="text/event-stream", headers=headers)


def moment(at_ms: int | None) -> str | None:
    """Milliseconds since 1970 as RFC 3339."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
