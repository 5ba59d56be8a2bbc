"""Tools and jobs over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from assistant.acting import enqueue, perform
from assistant.faces.http.diagnoses import (
    LOOK_EVERY_S,
    STREAM_S,
    Seconds,
    event,
    location,
    moment,
    service_of,
    stream,
)
from assistant.faces.http.models import ConfirmationOut, DiagnosisOut, JobOut, JobRequest, ToolsOut
from assistant.faces.http.problems import Json, problem, responses
from assistant.faces.http.senders import Sender
from assistant.faces.http.wanted import while_wanted
from assistant.faces.schemas import compact
from assistant.readers import Ask
from tools import registry
from tools.registry import Action, ConsentError

if TYPE_CHECKING:
    from assistant.security.roles import Principal
    from assistant.service import Service
    from assistant.store.jobs import Job

router = APIRouter(tags=["tools and jobs"])
Name = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{1,47}$", examples=["search_knowledge"])]
Language = Annotated[Literal["en", "zh"] | None, Query(description="of the answer; of the question if left out")]
JobId = Annotated[str, Path(max_length=200, description="id of a job")]


@router.get("/tools", response_model=ToolsOut, summary="List the tools")
async def tools(_: Sender) -> Response:
    """Every tool with what it does to a machine and the schema of its arguments."""
    items = [
        {
            "name": action.name,
            "title": action.title,
            "description": action.description,
            "effect": action.effect,
            "deadline_s": action.deadline_s,
            "input_schema": compact(action.input_schema()),
        }
        for action in registry.actions()
    ]
    return Json({"items": items})


def add_tools() -> APIRouter:
    """One route for every tool that only reads, with its own schemas; the others are jobs."""
    added = APIRouter(tags=["tools and jobs"])
    for action in registry.actions():
        if action.effect == "reads":
            _add(added, action)

    @added.post("/tools/{name}", include_in_schema=False)
    async def other(_: Sender, name: Name) -> Response:
        found = registry.get(name)
        raise ConsentError(f"{found.name} {found.effect}; start it as a job, which asks for a confirmation.")

    return added


def _add(router: APIRouter, action: Action) -> None:
    schema = {**compact(action.input_schema()), "additionalProperties": False}

    async def run(request: Request, who: Sender) -> Response:
        service = service_of(request)
        raw = await request.body()
        doing = perform(
            who,
            action,
            _arguments(action, raw),
            face="http",
            policy=service.policy,
            audit=service.audit,
            runbooks=service.settings.text("runbooks_folder"),
            server=service.server,
        )
        result = await while_wanted(request, doing)
        return Json(result.model_dump(mode="json"))

    router.add_api_route(
        f"/tools/{action.name}",
        run,
        methods=["POST"],
        summary=action.title,
        description=action.description,
        operation_id=f"run_{action.name}",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        response_model=action.output_model,
        responses=responses(404, 409, 415, 504),
    )


def _arguments(action: Action, raw: bytes) -> dict[str, Any]:
    """The arguments of a call as they were sent."""
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is no JSON that can be read.") from None
    if not isinstance(given, dict):
        raise HTTPException(422, "The body must be an object with the tool's arguments.")
    return _strictly(action, given)


def _strictly(action: Action, sent: dict[str, Any]) -> dict[str, Any]:
    """The arguments, checked without guessing what a text that should be a number may mean."""
    given: dict[str, Any] = _whole(sent)
    unknown = sorted(set(given) - set(action.input_model.model_fields))
    if unknown:
        raise HTTPException(422, f"{unknown[0][:80]!r} is not an argument of {action.name}.")
    try:
        action.input_model.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    return given


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 9.0 is the whole number 9."""
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


@router.post(
    "/jobs",
    response_model=JobOut,
    status_code=202,
    summary="Start a tool as a job",
    responses={
        200: {"model": ConfirmationOut, "description": "A person has to agree first"},
        **responses(404),
    },
)
async def start(request: Request, who: Sender, given: JobRequest) -> Response:
    """What only reads starts at once. What touches a machine answers 200 with a ticket: show it, and repeat with it."""
    service = service_of(request)
    action = registry.get(given.tool)
    arguments = _strictly(action, given.arguments)
    confirmed = None
    if action.effect != "reads":
        if not given.confirm:
            ticket = service.consents.ask(who, action, arguments)
            return Json(
                {
                    "needs_confirmation": True,
                    "tool": action.name,
                    "effect": action.effect,
                    "title": action.title,
                    "confirm": ticket,
                }
            )
        confirmed = service.consents.accept(who, given.confirm, action, arguments)
    job = await service.in_thread(
        lambda: enqueue(
            service.jobs,
            who,
            action,
            arguments,
            face="http",
            confirmed=confirmed,
            incident=given.incident,
            audit=service.audit,
        )
    )
    return Json(job_body(job), status_code=202, headers={"Location": f"/v1/jobs/{job.id}"})


@router.get("/jobs/{job}", response_model=JobOut, summary="Look at a job", responses=responses(404))
async def look(request: Request, who: Sender, job: JobId) -> Response:
    """State, progress and result; only of one's own jobs unless one is an admin."""
    found = await service_of(request).job(who, job)
    if found.cancel_wanted:
        return problem(request, 404, f"The job was ended on request; its state is {found.state}.")
    return Json(job_body(found))


@router.post(
    "/jobs/{job}/diagnosis",
    response_model=DiagnosisOut,
    status_code=201,
    summary="Diagnose with what a check has found",
    responses=responses(404, 409, 504),
)
async def decide(request: Request, who: Sender, job: JobId, language: Language = None) -> Response:
    """A new incident of what a finished check found and, where it was made for one, what that incident knows."""
    deciding = service_of(request).with_check(who, job, Ask(language=language), face="http")
    answered = await while_wanted(request, deciding)
    return Json(answered.to_json(), status_code=201, headers=location(answered))


@router.delete("/jobs/{job}", response_model=JobOut, summary="End or forget a job", responses=responses(404))
async def end(request: Request, who: Sender, job: JobId) -> Response:
    """A queued job ends at once, a running one when it next looks; a finished one is forgotten with its result."""
    service = service_of(request)
    before = await service.job(who, job)
    if before.finished and await service.in_thread(service.jobs.remove, job):
        return Json(job_body(before))
    return Json(job_body(await service.in_thread(service.jobs.cancel, job)))


@router.get(
    "/jobs/{job}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
        **responses(404),
    },
)
async def follow(request: Request, who: Sender, job: JobId, for_s: Seconds = STREAM_S) -> Response:
    """Server-sent events with every change until the job is finished."""
    service = service_of(request)
    found = await service.job(who, job)
    if found.cancel_wanted:
        return problem(request, 404, f"The job was ended on request; its state is {found.state}.")
    return stream(_progress(request, service, who, job, for_s))


async def _progress(request: Request, service: Service, who: Principal, job: str, for_s: float) -> AsyncIterator[str]:
    seen: dict[str, Any] = {}
    loop = asyncio.get_running_loop()
    end_at = loop.time() + for_s
    while not service.draining and not await request.is_disconnected():
        found = await service.job(who, job)
        body = job_body(found)
        if body != seen:
            seen = body
            yield event("job", body)
        if found.finished or loop.time() + LOOK_EVERY_S > end_at:
            return
        await asyncio.sleep(LOOK_EVERY_S)


def job_body(job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "id": job.id,
        "tool": job.action,
        "effect": job.effect,
        "state": job.state,
        "incident": job.incident,
        "created": moment(job.created_at_ms),
        "started": moment(job.started_at_ms),
        "finished": moment(job.finished_at_ms),
        "progress": job.progress,
        "doing": job.doing,
        "result": job.result,
        "error": job.error,
    }
