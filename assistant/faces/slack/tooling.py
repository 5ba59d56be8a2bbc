"""Tools from Slack: what only looks runs at once; what touches a machine is shown to an operator first, then a job.

The call that somebody is asked about lies in the store, and its button carries only a random name for it. The ticket
of the confirmation is bound to the person who asked, the action and its arguments, for ten minutes, for one job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from assistant.acting import enqueue, perform
from assistant.checked import found_in
from assistant.faces.slack.answer import checks
from assistant.faces.slack.drawing import pages
from assistant.faces.slack.elements import Piece, actions, button, cut, fixed, paragraph, quiet, rich, words
from assistant.faces.slack.results import result_file, result_pieces
from assistant.security.roles import ForbiddenError
from assistant.store.database import NotFoundError, StoreError
from tools import registry
from tools.outbound import OutboundError
from tools.registry import ActionError, InputError

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis
    from assistant.faces.slack.work import Work
    from assistant.store.jobs import Job
    from tools.registry import Action

#: Seconds for which a call that was shown can be agreed to; the ticket's own time.
_OFFER_S = 600.0
#: Seconds between two looks at a job, and between two edits of its message.
_LOOK_S, _EDIT_S = 1.0, 4.0
_SHORT = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dp": "data_parallel_size",
    "-q": "quantization",
}
#: What a command of ours runs, and where its first word without a flag belongs.
COMMANDS = {"memory": ("estimate_memory", "model"), "nccl": ("run_nccl_test", "ranks")}
EXAMPLES = {"memory": "/vllm-diagnose memory Qwen/Qwen3-8B --gpu L4", "nccl": "/vllm-diagnose nccl --ranks 2"}


async def command(work: Work) -> None:
    """``memory …`` and ``nccl …``."""
    name = str(work.order["command"])
    tool, first = COMMANDS[name]
    try:
        action = registry.get(tool)
    except ActionError:
        await work.whisper("slack-no-tool", name=tool)
        return
    try:
        arguments = arguments_of(action, str(work.order.get("text", "")), first)
        action.validate(arguments)
    except (ValueError, ActionError) as error:
        said = [work.told(one) for one in error.problems] if isinstance(error, InputError) else [work.told(error)]
        problem = work.word("slack-bad-arguments", problems=cut(" ".join(said), 900))
        await work.whisper_text(f"{problem}\n{work.word('slack-usage', example=EXAMPLES[name])}")
        return
    await _run(work, action, _in_language(action, arguments, work))


def _in_language(action: Action, arguments: dict[str, Any], work: Work) -> dict[str, Any]:
    """The arguments, with the language of the talk where the action speaks."""
    return {**arguments, "lang": work.lang} if "lang" in action.input_model.model_fields else arguments


def arguments_of(action: Action, text: str, first: str) -> dict[str, Any]:
    """``Qwen/Qwen3-8B --gpu L4 -tp 2`` as arguments of an action; raises ``ValueError`` with a sentence.

    A flag without a value is true. What the action has no field of its own for goes into its ``arguments``, if it has
    such a field, and is refused by the action otherwise.
    """
    try:
        parts = shlex.split(text.replace("“", '"').replace("”", '"').replace("—", "--"))
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    fields = action.input_model.model_fields
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    while parts:
        part = parts.pop(0)
        if not part.startswith("-"):
            if first in found:
                raise ValueError(f"{part[:80]!r} has no flag in front of it.")
            found[first] = part
            continue
        flag, equals, value = part.partition("=")
        name = _SHORT.get(flag) or flag.lstrip("-").replace("-", "_")
        given: Any = value
        if not equals:
            given = parts.pop(0) if parts and not parts[0].startswith("--") else True
        (found if name in fields or "arguments" not in fields else others)[name] = given
    if others:
        found["arguments"] = others
    return found


async def propose(work: Work, diagnosis: Diagnosis, step: str, incident: str) -> None:
    """The check that a diagnosis suggests; what it finds decides ``incident`` anew."""
    found = next((one for one in checks(diagnosis) if one.id == step), None)
    if found is None or found.tool is None:
        await work.whisper("slack-stale")
        return
    try:
        action = registry.get(found.tool)
        arguments = _in_language(action, dict(found.arguments), work)
        action.validate(arguments)
    except ActionError as error:
        await work.whisper_text(work.told(error))
        return
    work.line = replace(work.line, thread=work.line.root, ts="", url="")
    await _run(work, action, arguments, incident)


async def _run(work: Work, action: Action, arguments: dict[str, Any], incident: str | None = None) -> None:
    if action.effect != "reads":
        await _offer(work, action, arguments, incident)
        return
    text = work.word("slack-working", title=work.title(action.name))
    await work.show([rich(paragraph(words(f"⏳ {text}")))], text)
    service = work.service
    try:
        result = await perform(
            work.who,
            action,
            arguments,
            face="slack",
            policy=service.policy,
            audit=service.audit,
            runbooks=service.settings.text("runbooks_folder"),
            server=service.server,
        )
    except (ActionError, OutboundError, ForbiddenError) as error:
        text = work.word("slack-job-failed", title=work.title(action.name), why=cut(work.told(error), 1500))
        await work.show([rich(paragraph(words(f"⚠️ {text}")))], text)
        return
    plain = result.model_dump(mode="json")
    if action.name == "estimate_memory":
        others = arguments.get("arguments") or {}
        sizes = (
            arguments.get("tensor_parallel_size"),
            *(others.get(f"{k}_parallel_size") for k in ("pipeline", "data")),
        )
        plain["gpus"] = math.prod(int(size or 1) for size in sizes)
    await _deliver(work, action, plain)
    await _decide(work, action.name, plain, incident)


async def _offer(work: Work, action: Action, arguments: dict[str, Any], incident: str | None) -> None:
    """Show the call to whoever asked, with the ticket to agree with."""
    effect = work.word(f"effect-{action.effect}")
    service = work.service
    try:
        ticket = service.consents.ask(work.who, action, arguments)
    except ForbiddenError:
        await refused(work, action.name, action.effect)
        await work.whisper("slack-needs-operator", title=work.title(action.name), effect=effect)
        return
    call = {
        "action": action.name,
        "arguments": arguments,
        "ticket": ticket,
        "line": work.line.to_json(),
        "incident": incident,
    }
    name = secrets.token_hex(10)
    try:
        await service.in_thread(lambda: service.claims.take(f"slack-call:{name}", json.dumps(call), keep_s=_OFFER_S))
    except StoreError as error:
        await work.whisper_text(work.told(error))
        return
    whole = action.validate(arguments).model_dump(mode="json", exclude_defaults=True)
    title = work.word("agree-title", title=work.title(action.name))
    blocks = [
        rich(
            paragraph(words(title, bold=True)),
            paragraph(words(work.word("agree-text", effect=effect))),
            fixed(f"{action.name} {json.dumps(whole, ensure_ascii=False)}", 2000),
        ),
        actions(
            f"call:{name}",
            [
                button("agree", work.word("agree-run"), name, style="danger"),
                button("leave", work.word("agree-leave"), name),
            ],
        ),
    ]
    await work.whisper_blocks(blocks, title)


async def agree(work: Work) -> None:
    """Somebody agreed to a call, or left it."""
    service, name = work.service, str(work.order["value"])
    if not (len(name) == 20 and name.isalnum()):
        await work.whisper("slack-gone")
        return
    raw = await service.in_thread(service.claims.get, f"slack-call:{name}")
    if raw is None:
        await work.whisper("slack-gone")
        return
    if work.order["action"] == "leave":
        await service.in_thread(service.claims.drop, f"slack-call:{name}")
        await work.speaker.replace_whisper(work.line, work.word("slack-left"))
        return
    call = json.loads(raw)
    try:
        action = registry.get(str(call["action"]))
        confirmed = service.consents.accept(work.who, str(call["ticket"]), action, call["arguments"])
        job = await service.in_thread(
            lambda: enqueue(
                service.jobs,
                work.who,
                action,
                call["arguments"],
                face="slack",
                confirmed=confirmed,
                incident=call.get("incident"),
                audit=service.audit,
            )
        )
    except (ActionError, ForbiddenError, StoreError) as error:
        await work.whisper_text(work.told(error))
        return
    text = work.word("slack-working", title=work.title(action.name))
    await work.speaker.replace_whisper(work.line, text)
    line = type(work.line).of(call["line"])
    work.line = replace(line, thread=line.root or work.line.thread, ts="", url="")
    # From here on a restart only has to look at the job.
    with contextlib.suppress(StoreError):
        await work.keep(kind="watch", job=job.id, line=work.line.to_json(), quiet=False)
    work.order.update(kind="watch", job=job.id, quiet=False)
    await watch(work)


async def watch(work: Work) -> None:
    """Show a job's progress in one message until it ends, and then its result."""
    service, identifier = work.service, str(work.order["job"])
    shown, wait = "", 0.0
    while True:
        try:
            job: Job | None = await service.in_thread(service.jobs.get, identifier)
        except NotFoundError:
            await work.say("slack-gone")
            return
        except StoreError:
            job = None
        if job is not None and job.finished:
            break
        if job is not None and wait <= 0:
            title = work.title(job.action)
            text = work.word("slack-working-on", title=title, doing=job.doing) if job.doing else ""
            text = text or work.word("slack-working", title=title)
            if text != shown:
                stop = actions(f"job:{identifier}", [button("stop", work.word("slack-form-close"), identifier)])
                await work.show([rich(paragraph(words(cut(f"⏳ {text}", 1500)))), stop], text)
                shown, wait = text, _EDIT_S
        await asyncio.sleep(_LOOK_S)
        wait -= _LOOK_S
    title = work.title(job.action)
    if job.state == "done":
        await _deliver(work, registry.get(job.action), job.result)
        await _decide(work, job.action, job.result, job.incident)
        return
    key = "slack-cancelled" if job.state == "cancelled" else "slack-job-failed"
    text = work.word(
        key, title=title, **({} if job.state == "cancelled" else {"why": cut(work.told(job.error or job.state), 1500)})
    )
    await work.show([rich(paragraph(words(f"⚠️ {text}")))], text)


async def stop(work: Work) -> None:
    """End a job; its own person or an operator may."""
    service = work.service
    try:
        job = await service.in_thread(service.jobs.get, str(work.order["value"])[:80])
        if job.requested_by != work.who.id and work.who.role.name == "viewer":
            raise NotFoundError("")
        await service.in_thread(service.jobs.cancel, job.id)
    except NotFoundError:
        await work.whisper("slack-needs-operator", title="stop", effect=work.word("effect-runs"))
    except StoreError as error:
        await work.whisper_text(work.told(error))


async def refused(work: Work, did: str, effect: str = "reads") -> None:
    """Write down that somebody was not let; a database that is away keeps nobody from anything."""
    with contextlib.suppress(StoreError):
        await work.service.in_thread(
            lambda: work.service.audit.note(
                who=work.who.id, role=work.who.role.name, face="slack", did=did, effect=effect, outcome="refused"
            )
        )


async def _deliver(work: Work, action: Action, result: Any) -> None:
    """The result: what one message takes of it, pictures and the whole as files in the thread."""
    made: Sequence[Piece] = result_pieces(action, result, work.catalog, work.lang)
    title = work.word("slack-result", title=work.title(action.name))
    first, *rest = pages(made) or [[quiet(title)]]
    await work.show(first, title)
    for page in rest[:2]:
        await work.speaker.below(work.client, work.line, page, title)
    for name, content, label in result_file(action, result, work.catalog, work.lang, whole=len(rest) > 2):
        await work.speaker.attach(work.client, work.line, name, content, label)


async def _decide(work: Work, action: str, result: Any, incident: str | None) -> None:
    """Where a diagnosis suggested the check, the case is decided anew with what it found."""
    found = found_in(action, result)
    if incident is not None and found is not None:
        from assistant.faces.slack.talks import go_on

        await go_on(work, incident, found, work.title(action))
