"""Carrying an action out for somebody: may they, did they agree, now or as a job, and a note that it was done.

All faces come through here, so that what a role may do does not depend on the door it came in by.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assistant.security import consent as consents
from assistant.security.roles import ForbiddenError, Principal, require
from tools import registry
from tools.addresses import Policy
from tools.registry import Action, Consent, ConsentError, Context, FindServer, Report

if TYPE_CHECKING:
    from pydantic import BaseModel

    from assistant.security.consent import Confirmed, Consents
    from assistant.store.audit import Audit, Outcome
    from assistant.store.jobs import Job, Jobs
    from assistant.store.worker import Carry


async def perform(
    principal: Principal,
    action: Action,
    arguments: Mapping[str, Any],
    *,
    face: str,
    policy: Policy,
    consent: Consent | None = None,
    report: Report | None = None,
    audit: Audit | None = None,
    deadline_s: float | None = None,
    runbooks: str = "",
    server: FindServer | None = None,
) -> BaseModel:
    """Run ``action`` now. Raises :class:`ForbiddenError` and what :meth:`Action.call` raises."""
    try:
        require(principal, action.name, action.effect)
        more: dict[str, Any] = {"report": report} if report else {}
        more |= {"server": server} if server else {}
        context = Context(policy=policy, consent=consent, runbooks=runbooks, **more)
        result = await action.call(arguments, context, deadline_s=deadline_s)
    except (ForbiddenError, ConsentError):
        _note(audit, principal, face, action, "refused", arguments)
        raise
    except (Exception, asyncio.CancelledError):
        _note(audit, principal, face, action, "failed", arguments)
        raise
    _note(audit, principal, face, action, "done", arguments)
    return result


def confirmed_or_ticket(
    given: Consents,
    principal: Principal,
    action: Action,
    arguments: Mapping[str, Any],
    ticket: str | None,
    *,
    face: str,
    audit: Audit | None = None,
) -> Confirmed | str:
    """The confirmation that ``ticket`` stands for, or a new ticket where there is none; a refusal is written down.

    Raises :class:`ForbiddenError` and ``InputError``.
    """
    try:
        if ticket:
            return given.accept(principal, ticket, action, arguments)
        return given.ask(principal, action, arguments)
    except ForbiddenError:
        _note(audit, principal, face, action, "refused", arguments)
        raise


def enqueue(
    jobs: Jobs,
    principal: Principal,
    action: Action,
    arguments: Mapping[str, Any],
    *,
    face: str,
    confirmed: Confirmed | None = None,
    incident: str | None = None,
    audit: Audit | None = None,
) -> Job:
    """Queue ``action`` as a job of ``principal``. An action that touches needs ``confirmed``, which makes one job.

    Raises :class:`ForbiddenError`, ``InputError``, :class:`ConsentError` and ``StoreError``.
    """
    try:
        require(principal, action.name, action.effect)
        whole = action.validate(arguments).model_dump(mode="json")
        if action.effect != "reads" and (confirmed is None or not confirmed.consent.covers(action.name, whole)):
            raise ConsentError(f"{action.name} {action.effect}; somebody has to agree to this very call first.")
    except (ForbiddenError, ConsentError):
        _note(audit, principal, face, action, "refused", arguments)
        raise
    job = jobs.submit(
        action.name,
        whole,
        effect=action.effect,
        deadline_s=action.deadline_s,
        requested_by=principal.id,
        consent=consents.to_json(confirmed.consent) if confirmed else None,
        incident=incident,
        key=confirmed.key if confirmed else None,
        max_attempts=2 if action.effect == "reads" else 1,
    )
    _note(audit, principal, face, action, "allowed", arguments)
    return job


def carrier(policy: Policy, runbooks: str = "", server: FindServer | None = None) -> Carry:
    """What a :class:`~assistant.store.worker.Worker` needs to carry registered actions out."""

    async def carry(job: Job, report: Report) -> Any:
        consent = consents.from_json(job.consent) if job.consent else None
        more: dict[str, Any] = {"server": server} if server else {}
        context = Context(report=report, policy=policy, consent=consent, runbooks=runbooks, **more)
        result = await registry.get(job.action).call(job.arguments, context)
        return result.model_dump(mode="json")

    return carry


def _note(
    audit: Audit | None,
    principal: Principal,
    face: str,
    action: Action,
    outcome: Outcome,
    arguments: Mapping[str, Any],
) -> None:
    """Write the call down; a database that is away does not keep anybody from looking."""
    if audit is None:
        return
    from assistant.store.database import StoreError

    with contextlib.suppress(StoreError):
        audit.note(
            who=principal.id,
            role=principal.role.name,
            face=face,
            did=action.name,
            effect=action.effect,
            outcome=outcome,
            detail=arguments,
        )
