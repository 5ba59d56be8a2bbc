"""The HTTP API for runbooks and programs: diagnoses, answers, tools, jobs, runbooks, search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from assistant.faces.http import alerts, bundles, diagnoses, knowledge, problems, work
from assistant.faces.http.problems import Problem
from tools import registry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from assistant.faces.app import Shared


def mount(app: FastAPI, shared: Shared) -> None:
    """Add the API to the application."""
    from assistant.faces.mcp.bearer import METADATA

    problems.install(app, shared.url(METADATA))
    router = APIRouter(prefix="/v1", default_response_class=problems.Json, responses=problems.responses())
    registry.discover()
    for part in (diagnoses.router, work.router, work.add_tools(), knowledge.router, alerts.router, bundles.router):
        router.include_router(part)
    app.include_router(router)
    shared.running.append(lambda: alerts.working(shared))
    _describe(app)


def _describe(app: FastAPI) -> None:
    """Put the shape of problems among the components; no route returns it as a model of its own."""
    made = app.openapi

    def described() -> dict[str, object]:
        schema = made()
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        return schema

    app.openapi = described  # type: ignore[method-assign]
