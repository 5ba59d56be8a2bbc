"""Registered actions as MCP tools: the same declaration, carried out through the same gate as every other face."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import func_metadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations

from assistant.acting import confirmed_or_ticket, enqueue, perform
from assistant.checked import found_by
from assistant.faces.schemas import MOST_DEPTH, compact
from assistant.readers import ReadersError
from assistant.security.roles import ForbiddenError
from assistant.service import QuestionError
from tools.registry import Action, ActionError

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from assistant.faces.mcp.door import Door
    from assistant.store.jobs import Job

#: The actions that are offered to models, in this order; every further one would cost each client's context.
OFFERED = (
    "parse_logs",
    "fetch_metrics",
    "estimate_memory",
    "run_nccl_test",
    "check_gpu",
    "check_host",
    "check_network",
    "search_knowledge",
)
#: The interactive view of MCP Apps, and the actions whose results it draws.
VIEW = "ui://vllm-diagnose/diagnosis.html"
VIEWED = ("estimate_memory",)
#: Characters of a result; what is longer is cut list by list.
MOST_RESULT = 5200
#: Characters of a result and of the text beside it.
MOST_ANSWER = 5800
_REST = "(the rest is in the structured content)"


class AssistantTool(Tool):
    """A tool whose call is ours: :meth:`answer` gets the plain arguments and returns text and data."""

    door: Any = None

    @classmethod
    def declared(
        cls,
        door: Door,
        *,
        name: str,
        title: str,
        description: str,
        parameters: dict[str, Any],
        returns: dict[str, Any] | None,
        annotations: ToolAnnotations,
        **more: Any,
    ) -> AssistantTool:
        """A tool with the given schemas."""

        async def nothing() -> None:
            return None

        metadata = func_metadata(nothing, structured_output=False)
        metadata.output_schema = returns
        return cls(
            fn=nothing,
            name=name,
            title=title,
            description=description,
            parameters=parameters,
            fn_metadata=metadata,
            is_async=True,
            annotations=annotations,
            door=door,
            **more,
        )

    async def answer(self, arguments: dict[str, Any], context: Context[Any, Any]) -> Any:
        """What the tool does; raises errors that are sentences."""
        raise NotImplementedError

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Carry out one call. What a person or a model can mend comes back as text; the rest as a crash, unseen."""
        from assistant.store.database import StoreError

        try:
            return await self.answer(arguments, context)
        except (ActionError, ForbiddenError, QuestionError, ReadersError, StoreError) as error:
            raise ToolError(str(error)) from error
        except TimeoutError:
            raise ToolError(f"{self.name} did not finish in time; give it less at once.") from None


class ActionTool(AssistantTool):
    """One registered action. ``most`` is how many characters of a result are returned."""

    action: Any = None
    most: int = MOST_RESULT

    @classmethod
    def of(cls, action: Action, door: Door, **more: Any) -> AssistantTool:
        """The tool for ``action``; what touches a machine takes a confirmation besides its own arguments."""
        parameters = compact(action.input_schema())
        description = action.description
        if action.effect != "reads":
            parameters.setdefault("properties", {})["confirm"] = {
                "type": "string",
                "description": "the ticket of an earlier call with the same arguments, once a person has agreed",
            }
            description += (
                "\n\nTouches the machine: the first call returns a ticket and what would happen; ask the person, then"
                " call again with confirm. Answers with a job for get_job."
            )
        annotations = ToolAnnotations(
            title=action.title,
            read_only_hint=action.effect == "reads",
            destructive_hint=False,
            idempotent_hint=action.effect == "reads",
            open_world_hint=action.name in ("fetch_metrics", "check_network"),
        )
        return cls.declared(
            door,
            name=action.name,
            title=action.title,
            description=description,
            parameters=parameters,
            returns=None if action.effect != "reads" else compact(action.output_schema(), depth=MOST_DEPTH),
            annotations=annotations,
            action=action,
            meta={"ui": {"resourceUri": VIEW}} if action.name in VIEWED else None,
            **more,
        )

    async def answer(self, arguments: dict[str, Any], context: Context[Any, Any]) -> CallToolResult:
        """Carry the action out now, or queue it when it touches the machine."""
        action: Action = self.action
        service = await self.door.service()
        principal = self.door.principal(context)
        if action.effect == "reads":
            output = await perform(
                principal,
                action,
                arguments,
                face="mcp",
                policy=service.policy,
                report=reporter(context),
                audit=service.audit,
                runbooks=service.settings.text("runbooks_folder"),
                server=service.server,
            )
            return result(bounded(output.model_dump(mode="json"), self.most))
        given = {key: value for key, value in arguments.items() if key != "confirm"}
        ticket = arguments.get("confirm")
        confirmed = confirmed_or_ticket(
            service.consents,
            principal,
            action,
            given,
            str(ticket) if ticket else None,
            face="mcp",
            audit=service.audit,
        )
        if isinstance(confirmed, str):
            return result(
                {
                    "needs_confirmation": True,
                    "would": action.title,
                    "effect": action.effect,
                    "confirm": confirmed,
                    "next": f"Ask the person. If they agree, call {action.name} again with the same arguments and confirm.",
                }
            )
        job = await service.in_thread(
            lambda: enqueue(
                service.jobs, principal, action, given, face="mcp", confirmed=confirmed, audit=service.audit
            )
        )
        return result(job_body(job, self.most))


class JobTool(AssistantTool):
    """`get_job`: how a job goes, and its end on request."""

    most: int = MOST_RESULT

    @classmethod
    def made(cls, door: Door, **more: Any) -> AssistantTool:
        """The tool."""
        return cls.declared(
            door,
            name="get_job",
            title="Look at a job",
            description="State, progress and result of a job that an earlier call started; cancel ends it.",
            parameters={
                "type": "object",
                "properties": {
                    "job": {"type": "string", "description": "id that the earlier call returned"},
                    "wait_s": {"type": "number", "minimum": 0, "maximum": 50, "default": 20},
                    "cancel": {"type": "boolean", "default": False},
                },
                "required": ["job"],
                "additionalProperties": False,
            },
            returns={
                "type": "object",
                "properties": {"job": {"type": "string"}, "state": {"type": "string"}, "result": {}},
                "required": ["job", "state"],
            },
            annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False),
            **more,
        )

    async def answer(self, arguments: dict[str, Any], context: Context[Any, Any]) -> CallToolResult:
        """Wait a moment for the job, reporting its progress, and return how it stands."""
        service = await self.door.service()
        principal = self.door.principal(context)
        identifier = str(arguments.get("job", ""))
        seconds = _seconds(arguments.get("wait_s", 20))
        cancel = arguments.get("cancel") is True
        async with service.noted(principal, "mcp", "get_job", {"job": identifier[:80], "cancel": cancel}):
            job = await service.job(principal, identifier)
            if cancel:
                job = await service.in_thread(service.jobs.cancel, identifier)
        report = reporter(context)
        until = asyncio.get_running_loop().time() + seconds
        while not job.finished and asyncio.get_running_loop().time() < until:
            report(job.progress, job.doing)
            await asyncio.sleep(0.5)
            job = await service.job(principal, identifier)
        return result(job_body(job, self.most))


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 50:
        raise QuestionError(f"wait_s is {str(value)[:40]!r}; expected seconds from 0 to 50.")
    return float(value)


def job_body(job: Job, most: int = MOST_RESULT) -> dict[str, Any]:
    """A job as a model needs it."""
    body: dict[str, Any] = {"job": job.id, "action": job.action, "state": job.state}
    if job.finished:
        if job.result is not None:
            body["result"] = bounded(job.result, most) if isinstance(job.result, dict) else job.result
        if job.error:
            body["error"] = job.error
        if found_by(job) is not None:
            body["next"] = f"Call diagnose with job {job.id}, and incident if the check was made for one."
    else:
        body |= {"progress": job.progress, "doing": job.doing, "next": f"Call get_job with job {job.id}."}
    return body


def result(body: dict[str, Any], text: str | None = None) -> CallToolResult:
    """Data with a text beside it for clients that only show text."""
    shown = outline(body) if text is None else text
    return CallToolResult(content=[TextContent(type="text", text=shown)], structured_content=body)


def outline(body: Mapping[str, Any]) -> str:
    """Data as lines for clients that only show text, as many as fit beside the structured form.

    Every text is written as JSON writes it, so that what was read from outside stays quoted on its own line.
    """
    room = MOST_ANSWER - len(json.dumps(body, ensure_ascii=False))
    lines: list[str] = []
    for line in _lines(body):
        room -= len(line) + 1
        if room < 0:
            return "\n".join([*lines, _REST])
        lines.append(line)
    return "\n".join(lines)


def _lines(body: Mapping[str, Any]) -> Iterator[str]:
    for key, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{key}:"
            yield from (f"- {_words(entry)}" for entry in value)
        elif value not in (None, [], {}, ""):
            yield f"{key}: {_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{key} {_words(part)}" for key, part in value.items() if part not in (None, [], {}, ""))
        return ", ".join(pairs)
    if isinstance(value, list):
        return "; ".join(_words(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


def bounded(body: Mapping[str, Any], most: int = MOST_RESULT) -> dict[str, Any]:
    """The same data in at most ``most`` characters: the longest list is cut until it fits."""
    out: dict[str, Any] = json.loads(json.dumps(body, ensure_ascii=False, default=str))
    left_out = 0
    while len(json.dumps(out, ensure_ascii=False)) > most - 100:
        place = _largest(out)
        if place is None:
            break
        holder, key = place
        value = holder[key]
        keep = len(value) // 2
        left_out += len(value) - keep if isinstance(value, list) else 0
        holder[key] = value[:keep]
    if left_out:
        out["left_out"] = left_out
    return out


def _largest(node: Any) -> tuple[Any, Any] | None:
    """Where the longest list of more than one entry, or text of more than 400 characters, stands."""
    best: tuple[int, Any, Any] | None = None
    waiting = [node]
    while waiting:
        holder = waiting.pop()
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in pairs:
            if isinstance(value, dict | list):
                waiting.append(value)
            cuttable = (isinstance(value, list) and len(value) > 1) or (isinstance(value, str) and len(value) > 400)
            if cuttable:
                size = len(json.dumps(value, ensure_ascii=False))
                if best is None or size > best[0]:
                    best = (size, holder, key)
    return None if best is None else (best[1], best[2])


def reporter(context: Context[Any, Any]) -> Any:
    """Progress of an action as progress notifications, from any thread; the protocol wants growing values."""
    loop = asyncio.get_running_loop()
    said = 0.0

    def report(fraction: float | None, text: str) -> None:
        nonlocal said
        said = max(said + 1e-6, fraction or 0.0)
        value = said

        def send() -> None:
            task = loop.create_task(context.report_progress(value, 1.0, text or None))
            _sending.add(task)
            task.add_done_callback(_sent)

        loop.call_soon_threadsafe(send)

    return report


_sending: set[asyncio.Task[None]] = set()


def _sent(task: asyncio.Task[None]) -> None:
    _sending.discard(task)
    if not task.cancelled():
        task.exception()  # a client that went away is not told; that is no failure of the call
