"""A cause as ordered steps, for machines and for pages: what to save, the fixes in order, how to check."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from assistant.advice.fixes import advise, collect_first
from assistant.diagnosis.truth import Facts
from knowledge.catalog import Catalog
from knowledge.shapes import Cause

#: Symptoms, and texts, that a runbook shows as signs.
MOST_SIGNS = 4


def runbook(
    catalog: Catalog, identifier: str, language: Literal["en", "zh"], vllm_version: str | None
) -> dict[str, Any] | None:
    """The steps for a version (the newest when None), or None where there is no such cause."""
    cause = catalog.causes.get(identifier)
    if cause is None:
        return None
    steps: list[dict[str, Any]] = [
        {
            "kind": "collect",
            "title": entry.text,
            "why": "",
            "command": entry.command,
            "impact": "none",
            "undo": None,
            "expected": "",
            "trade_off": None,
            "work_around": False,
        }
        for entry in collect_first(cause, catalog, language)
    ]
    fixes = advise(cause, Facts(), catalog, vllm_version, language)
    for fix in fixes:
        whole = asdict(fix)
        whole.pop("flags")
        steps.append({"kind": "fix", **whole})
    return {
        "id": cause.id,
        "title": cause.title[language],
        "language": language,
        "vllm_version": vllm_version,
        "severity": cause.severity,
        "begins": cause.begins,
        "explanation": cause.explanation[language],
        "signs": _signs(cause, catalog, language),
        "steps": [{"number": number, **step} for number, step in enumerate(steps, 1)],
        "check": cause.check[language],
        "sources": [asdict(source) for source in cause.sources],
    }


def _signs(cause: Cause, catalog: Catalog, language: Literal["en", "zh"]) -> list[str]:
    """How the cause shows: what people say, then what is printed, the most telling first."""
    said = [text for signal in cause.signals for text in (signal.symptoms or {}).get(language, ())]
    printed = [
        catalog.messages[name].says[0]
        for weight in ("decisive", "strong")
        for signal in cause.signals
        if signal.weight == weight
        and signal.key.startswith("message:")
        and (name := signal.key.removeprefix("message:")) in catalog.messages
    ]
    return [*said[:MOST_SIGNS], *dict.fromkeys(printed[:MOST_SIGNS])]
