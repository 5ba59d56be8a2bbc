"""Alerts over HTTP: Alertmanager's webhook comes in, groups of alerts can be looked at."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from assistant.alerts.board import CLOSED, DUE, OPEN
from assistant.alerts.messages import group_json
from assistant.alerts.webhook import WebhookIn, notice_of
from assistant.faces.http.problems import Json, responses
from assistant.faces.http.senders import Sender
from assistant.security.roles import require

if TYPE_CHECKING:
    from assistant.alerts.desk import Desk
    from assistant.faces.app import Shared

router = APIRouter(tags=["alerts"])


class TakenOut(BaseModel):
    """What came of a notice: new alerts, known ones, ended ones, and the groups that they belong to."""

    new: int
    repeated: int
    resolved: int
    groups: list[str]


class GroupOut(BaseModel):
    """A group of alerts as one incident. docs/alerts.md describes every field."""

    model_config = ConfigDict(extra="allow")

    id: str
    incident: str | None
    state: Literal["firing", "resolved"]
    alertname: str
    started: str
    ended: str | None
    count: dict[str, int]
    targets: list[dict[str, Any]]
    alerts: list[dict[str, Any]]


class GroupsOut(BaseModel):
    items: list[GroupOut]


def desk_of(request: Request) -> Desk:
    """Who works on alerts."""
    desk: Desk | None = request.app.state.shared.desk
    if desk is None:
        raise RuntimeError("the server is not running")
    return desk


@router.post(
    "/alerts",
    response_model=TakenOut,
    status_code=202,
    summary="Take alerts from Alertmanager",
    responses=responses(),
)
async def take(request: Request, who: Sender, given: WebhookIn) -> Response:
    """Alertmanager's webhook, version 4. Answers as soon as the alerts are kept; the diagnosis goes where configured.

    Labels choose among configured targets. The same alert (fingerprint and start) counts once; alerts of one group
    within a minute are one incident.
    """
    require(who, "diagnose", "reads")
    taken = await desk_of(request).take(notice_of(given))
    body = {"new": taken.new, "repeated": taken.repeated, "resolved": taken.resolved, "groups": list(taken.groups)}
    return Json(body, status_code=202)


@router.get("/alerts", response_model=GroupsOut, summary="List groups of alerts")
async def groups(
    request: Request,
    who: Sender,
    state: Annotated[Literal["firing", "resolved"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """The newest first, each with its table of targets."""
    require(who, "diagnose", "reads")
    desk = desk_of(request)
    places = {"firing": (DUE, OPEN), "resolved": (DUE, CLOSED), None: (DUE, OPEN, CLOSED)}[state]
    found = [held for place in places for held in await desk.in_store(desk.board.at, place, limit * 2)]
    items = [group_json(held) for held in found if held.group.keys]
    items = [item for item in items if state in (None, item["state"])]
    items.sort(key=lambda item: str(item["started"]), reverse=True)
    return Json({"items": items[:limit]})


@router.get("/alerts/{group}", response_model=GroupOut, summary="Show a group of alerts", responses=responses(404))
async def show(
    request: Request, who: Sender, group: Annotated[str, Path(max_length=200, description="id of a group of alerts")]
) -> Response:
    """What fired, what was found at each target, and what was different after it was over."""
    require(who, "diagnose", "reads")
    desk = desk_of(request)
    return Json(group_json(await desk.in_store(desk.board.get, group)))


@contextlib.asynccontextmanager
async def working(shared: Shared) -> AsyncIterator[None]:
    """Work on alerts while the server runs."""
    from assistant.alerts.channels import configured
    from assistant.alerts.desk import Desk

    service = shared.service
    desk = Desk(service, (*configured(service.settings, service.policy), *shared.channels), shared.url)
    shared.desk = desk
    task = asyncio.create_task(desk.run())
    try:
        yield
    finally:
        shared.desk = None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
