"""Bundles over HTTP: one incident in one redacted file."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from assistant.bundles import MEDIA
from assistant.faces.http.diagnoses import service_of
from assistant.faces.http.models import EXAMPLE, DiagnosisRequest, questions
from assistant.faces.http.problems import problem, responses
from assistant.faces.http.senders import Sender
from assistant.faces.http.wanted import while_wanted
from assistant.readers import Ask

router = APIRouter(tags=["bundles"])


def _either(schema: dict[str, Any]) -> None:
    """A saved incident by itself, or what a diagnosis is made of."""
    questions(schema)
    given = (
        {"text": {"pattern": "\\S"}},
        {"logs": {"type": "array", "minItems": 1}},
        {"target": {"type": "string", "pattern": "\\S"}},
    )
    schema["anyOf"] = [
        {"properties": {"incident": {"type": "string"}}, "required": ["incident"]},
        *({"properties": part, "required": list(part)} for part in given),
    ]


class BundleRequest(DiagnosisRequest):
    """A saved incident by its id, or words, logs and a target as for a diagnosis."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_either)

    incident: Annotated[
        str | None, Field(max_length=200, description="a saved incident; nothing else is used then")
    ] = None


@router.post(
    "/bundles",
    status_code=201,
    summary="Make a bundle",
    response_class=Response,
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": {"logs": {"value": EXAMPLE}}}}}},
    responses={
        201: {
            "description": "A zip file; `vllm-diagnose bundle open` reads it",
            "content": {MEDIA: {"schema": {"type": "string", "format": "binary"}}},
        },
        **responses(404, 504),
    },
)
async def create(request: Request, who: Sender, given: BundleRequest) -> Response:
    """Logs, evidence, environment and the diagnosis, without secrets and addresses, in one file for somebody else."""
    if given.incident is None and not (given.text.strip() or given.logs or (given.target or "").strip()):
        return problem(request, 422, "Nothing was given; send an incident, text, logs or a target.")
    ask = Ask(
        text=given.text,
        logs=tuple((log.name, log.content.encode("utf-8", "replace")) for log in given.logs),
        vllm_version=given.vllm_version,
        language=given.language,
        target=given.target,
        answers=given.answers,
    )
    packing = service_of(request).bundle(who, Ask() if given.incident else ask, given.incident, face="http")
    data = await while_wanted(request, packing)
    headers = {"Content-Disposition": 'attachment; filename="incident.zip"'}
    return Response(data, status_code=201, media_type=MEDIA, headers=headers)
