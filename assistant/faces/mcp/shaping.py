"""A diagnosis in few characters: what a model needs to act, cut to a bound whatever the input was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assistant.render.blocks import diagnosis_blocks
from assistant.render.markdown import to_markdown
from knowledge.catalog import Catalog

if TYPE_CHECKING:
    from assistant.service import Answered

#: Characters of the structured answer and of the text beside it.
MOST_STRUCTURED = 3400
MOST_TEXT = 2200
_MOST_QUOTE = 240


def structured(answered: Answered, tools: frozenset[str], *, local: bool) -> dict[str, Any]:
    """The answer as data, at most :data:`MOST_STRUCTURED` characters as JSON.

    ``tools`` are those that a step may name; ``local`` says that the client may name files of this machine.
    ``because[].text`` and ``not_measured`` quote what came from outside; everything else is the assistant's own.
    """
    whole = answered.to_json()
    body: dict[str, Any] = {
        key: whole[key] for key in ("verdict", "summary", "incident", "revision", "language", "vllm_version", "stage")
    }
    known = whole["verdict"] == "cause"
    body["causes"] = [_cause(cause, first=not place, known=known) for place, cause in enumerate(whole["causes"][:3])]
    body["collect_first"] = whole["collect_first"][:2]
    body["next_steps"] = [_step(step, answered.incident, tools, local) for step in whole["next_steps"][:4]]
    body["ruled_out"] = [entry["id"] for entry in whole["ruled_out"][:5]]
    body["not_measured"] = [{k: str(v)[:160] for k, v in entry.items()} for entry in whole["not_measured"][:3]]
    if answered.not_saved:
        body["not_saved"] = answered.not_saved[:200]
    for cut in _CUTS:
        if _size(body) <= MOST_STRUCTURED:
            break
        cut(body)
    return body


def text(answered: Answered, catalog: Catalog) -> str:
    """The answer as Markdown, most important first, at most :data:`MOST_TEXT` characters and never cut in a block."""
    parts: list[str] = []
    room = MOST_TEXT - 60
    for block in diagnosis_blocks(answered.diagnosis, catalog):
        drawn = to_markdown([block])
        if len(drawn) > room:
            break
        parts.append(drawn)
        room -= len(drawn) + 1
    if answered.incident:
        parts.append(f"`incident: {answered.incident}`\n")
    return "\n".join(parts) or answered.diagnosis.summary[:MOST_TEXT]


def _cause(cause: dict[str, Any], *, first: bool, known: bool) -> dict[str, Any]:
    """One cause. A guess comes without fixes: whoever reads one would try it instead of asking on."""
    out: dict[str, Any] = {
        "id": cause["id"],
        "title": cause["title"],
        "confidence": cause["confidence"],
        "relation": cause["relation"],
    }
    if not first:
        return out
    out["severity"] = cause["severity"]
    out["because"] = [
        {"source": q["source"], "line": q["line"], "process": q["process"], "text": q["text"][:_MOST_QUOTE]}
        for q in cause["because"][:2]
    ]
    if not known:
        return out
    out["fixes"] = [
        {k: fix[k] for k in ("title", "command", "impact", "undo", "work_around") if fix[k] not in (None, False)}
        for fix in cause["fixes"][:3]
    ]
    out["check"] = cause["check"]
    return out


#: What a step that collects asks for, as the argument that brings it.
_BROUGHT: dict[str, dict[str, Any]] = {
    "collect-log": {"logs": [{"name": "server.log", "content": "..."}]},
    "collect-above": {"logs": [{"name": "server.log", "content": "..."}]},
    "collect-symptom": {"text": "..."},
    "collect-version": {"vllm_version": "..."},
}


def _step(step: dict[str, Any], incident: str | None, tools: frozenset[str], local: bool) -> dict[str, Any]:
    """A step with the very call that takes it, where a call does."""
    out: dict[str, Any] = {"action": step["action"], "text": step["text"]}
    if step["action"] == "ask":
        out["question"] = step["id"]
        out["choices"] = [choice["value"] for choice in step["choices"] or ()]
        out["labels"] = [choice["label"] for choice in step["choices"] or ()]
        if incident:
            answer = "|".join(out["choices"]) or "..."
            out["call"] = {"tool": "diagnose", "arguments": {"incident": incident, "answers": {step["id"]: answer}}}
    elif step["id"] in _BROUGHT and incident:
        brought = _BROUGHT[step["id"]]
        arguments = {"paths": ["..."]} if local and "logs" in brought else brought
        out["call"] = {"tool": "diagnose", "arguments": {"incident": incident, **arguments}}
    elif step["action"] == "run_tool" and step["tool"] in tools:
        out["call"] = {"tool": step["tool"], "arguments": step["arguments"]}
        out["effect"] = step["effect"]
    return out


def _size(body: dict[str, Any]) -> int:
    return len(json.dumps(body, ensure_ascii=False))


def _shorter_commands(body: dict[str, Any]) -> None:
    """A command is whole or absent: half a command is worse than none."""
    for cause in body["causes"]:
        for fix in cause.get("fixes", ()):
            if len(fix.get("command") or "") > 700:
                fix["command"] = None


def _dropping(*steps: tuple[str, int]) -> Callable[[dict[str, Any]], None]:
    def cut(body: dict[str, Any]) -> None:
        for key, keep in steps:
            body[key] = body[key][:keep]

    return cut


def _fewer(key: str, keep: int) -> Callable[[dict[str, Any]], None]:
    def cut(body: dict[str, Any]) -> None:
        for cause in body["causes"]:
            if key in cause:
                cause[key] = cause[key][:keep]

    return cut


def _shorter_gaps(body: dict[str, Any]) -> None:
    """That something could not be looked at is always said: without it, silence reads as health."""
    body["not_measured"] = [{key: text[:80] for key, text in entry.items()} for entry in body["not_measured"]]


def _no_labels(body: dict[str, Any]) -> None:
    for step in body["next_steps"]:
        step.pop("labels", None)


_CUTS: tuple[Callable[[dict[str, Any]], None], ...] = (
    _no_labels,
    _dropping(("ruled_out", 2), ("not_measured", 1)),
    _dropping(("causes", 2), ("collect_first", 1), ("next_steps", 3)),
    _fewer("fixes", 2),
    _fewer("because", 1),
    _shorter_commands,
    _shorter_gaps,
    _dropping(("next_steps", 2), ("ruled_out", 0)),
    _fewer("fixes", 1),
    _dropping(("collect_first", 0), ("next_steps", 1)),
    _fewer("because", 0),
)
