"""A check that a diagnosis suggests, run from its page: agreed to by an operator where it touches, followed as a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from assistant.acting import confirmed_or_ticket, enqueue
from assistant.checked import found_by
from assistant.faces.web.visit import PageError, Visit
from assistant.readers import Ask
from assistant.render.results import result_blocks
from assistant.security.roles import NEEDED
from tools import registry
from tools.registry import Action, ActionError

if TYPE_CHECKING:
    from assistant.diagnosis.model import NextStep
    from assistant.store.jobs import Job

#: Seconds after which the page of a job that is not over is asked for again.
_AGAIN_S = 2


def runnable(visit: Visit, steps: Iterable[NextStep]) -> dict[str, str]:
    """For every step that is a tool's: empty where the visitor may run it, else the sentence on what that needs."""
    principal, found = visit.visitor.principal, {}
    for step in steps:
        if step.action != "run_tool" or not step.tool:
            continue
        try:
            action = registry.get(step.tool)
        except ActionError:
            continue  # this server was started without the tool
        if principal is None or not principal.in_scope(action.name):
            continue
        may = principal.role >= NEEDED[action.effect]
        found[step.id] = (
            "" if may else visit.word("web-check-operator", title=_title(visit, action), **_effect(visit, action))
        )
    return found


async def run(visit: Visit) -> Response:
    """Begin a suggested check. What touches a machine is shown first, and begins with the ticket that comes back."""
    incident, service = visit.request.path_params["incident"], visit.service
    answered = await service.incident(visit.principal, incident, visit.lang)
    wanted = visit.field("step")
    step = next((one for one in answered.diagnosis.next_steps if one.id == wanted and one.tool), None)
    if step is None or step.tool is None:
        raise PageError(409, visit.word("web-check-gone"))
    action = registry.get(step.tool)
    arguments = dict(step.arguments)
    if "lang" in action.input_model.model_fields:
        arguments["lang"] = visit.lang
    confirmed = None
    if action.effect != "reads":
        ticket = visit.field("ticket", 4000) or None
        outcome = await service.in_thread(
            lambda: confirmed_or_ticket(
                service.consents, visit.principal, action, arguments, ticket, face="web", audit=service.audit
            )
        )
        if isinstance(outcome, str):
            return _ask(visit, incident, wanted, action, arguments, outcome)
        confirmed = outcome
    job = await service.in_thread(
        lambda: enqueue(
            service.jobs,
            visit.principal,
            action,
            arguments,
            face="web",
            confirmed=confirmed,
            incident=incident,
            audit=service.audit,
        )
    )
    return visit.to(f"/jobs/{job.id}")


def _ask(visit: Visit, incident: str, step: str, action: Action, arguments: Mapping[str, Any], ticket: str) -> Response:
    whole = action.validate(arguments).model_dump(mode="json", exclude_defaults=True)
    title = _title(visit, action)
    return visit.page(
        "agree.html",
        title=visit.word("agree-title", title=title),
        effect=visit.word("agree-text", **_effect(visit, action)),
        call=" ".join([action.name, *(f"{name}={value}" for name, value in whole.items())]),
        incident=incident,
        step=step,
        ticket=ticket,
    )


async def followed(visit: Visit) -> Response:
    """A check under way, and its result when it is there."""
    job = await visit.service.job(visit.principal, visit.request.path_params["job"])
    action = _known(job)
    title = _title(visit, action) if action else job.action
    why = visit.told(job.error or job.state)
    state = job.state if job.state in ("queued", "running", "cancelled") else "failed"
    response = visit.page(
        "job.html",
        title=title,
        job=job,
        sentence=""
        if job.state == "done"
        else visit.word(f"web-check-{state}", **({"why": why} if state == "failed" else {})),
        doing=job.doing if not job.finished else "",
        decides=job.incident is not None and found_by(job) is not None,
        rows=result_blocks(action, job.result, visit.service.catalog, visit.lang)
        if action and job.state == "done"
        else [],
    )
    if not job.finished:
        # A header, because a page that renews itself from within takes readers' place away without their browser knowing.
        response.headers["Refresh"] = str(_AGAIN_S)
    return response


async def go_on(visit: Visit) -> Response:
    """Diagnose the incident again, with what its check has found."""
    job = visit.request.path_params["job"]
    answered = await visit.service.with_check(visit.principal, job, Ask(language=visit.lang), face="web")
    if answered.incident is None:
        raise PageError(503, visit.told(answered.not_saved or ""))
    return visit.to(f"/incidents/{answered.incident}")


async def stop(visit: Visit) -> Response:
    """End a check."""
    job = await visit.service.job(visit.principal, visit.request.path_params["job"])
    await visit.service.in_thread(visit.service.jobs.cancel, job.id)
    return visit.to(f"/jobs/{job.id}")


def _known(job: Job) -> Action | None:
    try:
        return registry.get(job.action)
    except ActionError:
        return None


def _title(visit: Visit, action: Action) -> str:
    return visit.service.catalog.tool(action.name, action.title, visit.lang)


def _effect(visit: Visit, action: Action) -> dict[str, str]:
    return {"effect": visit.word(f"effect-{action.effect}")}
