"""`run_compile_test`: does torch.compile work where the server runs, and if not, what does the compiler miss."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import Field

from tools.redaction import clean, redact
from tools.registry import ActionError, Context, action
from tools.sanity.choose import choose, only_here
from tools.sanity.launch import Event, LaunchError, run_program
from tools.sanity.results import Asked, Report, Sheet

WORKER = Path(__file__).with_name("compile_worker.py")
_DEADLINE_S = 180.0
_STAGES = ("cache", "compiler", "import", "dynamo", "inductor")


class CompileInput(Asked):
    """A test of the compilers behind torch.compile."""

    python: str | None = Field(None, description="vLLM's interpreter; that of the running server unless given")


class CompileReport(Report):
    """The result; ``log`` holds the traceback of what failed."""

    log: str = ""


@action(name="run_compile_test", title="Test of torch.compile", effect="loads", deadline_s=240)
async def run_compile_test(given: CompileInput, context: Context) -> CompileReport:
    """Compiles one small function with torch.compile under vLLM's interpreter and reads Inductor's error where that fails.
    Leaves no cache. Raises ``ActionError`` where the interpreter cannot be run."""
    only_here(context, python=given.python)
    chosen = await asyncio.to_thread(choose, given.python, given.pid)
    sheet = Sheet("run_compile_test", given.lang)

    def follow(event: Event) -> None:
        if event["event"] == "begin" and event.get("stage") in _STAGES:
            stage = str(event["stage"])
            context.report(_STAGES.index(stage) / len(_STAGES), sheet.word(f"check-compile.{stage}"))

    try:
        ran = await run_program(
            chosen.command,
            WORKER.read_text("utf-8"),
            [],
            environment=chosen.environment,
            deadline_s=_DEADLINE_S,
            on_event=follow,
        )
    except LaunchError as error:
        raise ActionError(str(error)) from None
    verdict = next((e for e in ran.events if e["event"] == "verdict"), None)
    for event in ran.events:
        if event["event"] == "done":
            facts = event.get("facts") or {}
            said = next((facts[name] for name in ("folder", "compiler", "torch") if facts.get(name)), None)
            value = said or (f"{event['seconds']} s" if "seconds" in event else None)
            works = event["stage"] != "compiler" or bool(facts.get("works"))
            sheet.add(f"compile.{event['stage']}", "ok" if works else "note", value)
    if verdict is None:
        kind = "late" if ran.late else "broken"
        text = ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else ""
        reached = next((e["stage"] for e in reversed(ran.events) if e["event"] == "begin"), "start")
        sheet.add("compile.result", "bad", kind, reason=sheet.word(f"compile-{kind}", stage=reached, detail=text))
        sheet.fact("compile.fault", kind, text)
        return CompileReport(**sheet.report().model_dump(), log="")
    kind, text = str(verdict["kind"]), str(verdict.get("text", ""))
    sheet.fact("compile.fault", kind, text)
    trace = redact(clean(str(verdict.get("trace", ""))))
    if kind == "none":
        return CompileReport(**sheet.report(sheet.word("compile-none", stage="", detail="")).model_dump())
    reason = sheet.word(f"compile-{kind}", stage=str(verdict.get("stage", "")), detail=text)
    sheet.add("compile.result", "bad", kind, quote=text, reason=reason)
    return CompileReport(**sheet.report(reason).model_dump(), log=trace)
