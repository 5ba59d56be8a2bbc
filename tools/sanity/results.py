"""What checks and tests return: rows with a verdict and a sentence, and facts for the diagnosis.

A row's sentence comes from the knowledge in the asked language, so every face shows the same words. Facts are evidence
in the form that JSON carries; :func:`reading_of` turns them back into what the engine reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from knowledge.catalog import load
from tools.evidence import QUOTE_LIMIT, Evidence, LookedAt, Origin, Reading
from tools.redaction import clean, redact

Status = Literal["ok", "note", "bad", "unknown", "skipped"]
Where = Literal["here", "server"]
Language = Literal["en", "zh"]

_MOST_VALUE = 300


class Check(BaseModel):
    """One thing that was looked at. ``value`` is in ``unit``; ``where`` says whose view it is."""

    id: str
    status: Status
    title: str
    text: str = ""
    value: str | int | float | bool | None = None
    unit: str = ""
    where: Where = "here"
    quote: str = ""


class Fact(BaseModel):
    """One piece of evidence for the diagnosis: an observable, its value, and what shows it."""

    name: str
    state: Literal["present", "absent", "unknown"] = "present"
    value: str | int | float | bool | None = None
    process: str | None = None
    quote: str = ""
    why_unknown: str = ""


class Report(BaseModel):
    """The result of one check or test."""

    tool: str
    verdict: Status
    summary: str
    checks: list[Check] = Field(default_factory=list)
    facts: list[Fact] = Field(default_factory=list)
    seconds: float = 0.0


class Asked(BaseModel):
    """What every check takes."""

    pid: int | None = Field(None, ge=1, description="a process of the server to look at; found unless given")
    lang: Language = Field("en", description="language of the sentences")


def plain(value: object, most: int = _MOST_VALUE) -> str:
    """A value from outside as one short line without secrets and control characters."""
    return redact(clean(str(value))).replace("\n", " ").strip()[:most]


class Sheet:
    """Collects rows and facts while a check looks around."""

    def __init__(self, tool: str, lang: Language) -> None:
        self.tool, self.lang = tool, lang
        self.checks: list[Check] = []
        self.facts: list[Fact] = []
        self.where: Where = "here"
        self._words = load().sentences
        self._started = time.monotonic()

    def word(self, key: str, **values: object) -> str:
        """A sentence of the knowledge with its places filled with plain values."""
        filled = {name: value if isinstance(value, int | float) else plain(value) for name, value in values.items()}
        return self._words[key][self.lang].format(**filled)

    def add(self, identity: str, status: Status, value: object = None, *, unit: str = "", quote: str = "", where: Where | None = None, **values: object) -> None:  # fmt: skip
        """Add a row. Its sentence is ``check-ID-STATUS`` where the knowledge has one, with ``values`` in its places."""
        key = f"check-{identity}-{status}"
        shown = value if isinstance(value, bool | int | float) or value is None else plain(value)
        text = self.word(key, value=shown, **values) if key in self._words else ""
        self.checks.append(
            Check(
                id=identity,
                status=status,
                title=self.word(f"check-{identity}"),
                text=text,
                value=shown,
                unit=unit,
                where=where or self.where,
                quote=redact(clean(quote))[:QUOTE_LIMIT],
            )
        )

    def fact(self, name: str, value: str | int | float | bool, quote: str = "", process: str | None = None) -> None:
        """State an observable for the diagnosis."""
        value = plain(value) if isinstance(value, str) else value
        self.facts.append(Fact(name=name, value=value, quote=redact(clean(quote))[:QUOTE_LIMIT], process=process))

    def unknown(self, name: str, why: str) -> None:
        """Say that an observable could not be had, and why."""
        self.facts.append(Fact(name=name, state="unknown", why_unknown=plain(why)))

    def report(self, summary: str = "", **values: object) -> Report:
        """The result: as bad as its worst row."""
        order: tuple[Status, ...] = ("bad", "note", "ok")
        verdict: Status = next((s for s in order if any(c.status == s for c in self.checks)), "unknown")
        bad = sum(c.status == "bad" for c in self.checks)
        notes = sum(c.status == "note" for c in self.checks)
        text = summary or self.word(f"sanity-summary-{verdict}", bad=bad, notes=notes, looked=len(self.checks))
        return Report(
            tool=self.tool,
            verdict=verdict,
            summary=text,
            checks=self.checks,
            facts=self.facts,
            seconds=round(time.monotonic() - self._started, 3),
        )


def reading_of(reports: Iterable[Report]) -> Reading:
    """The facts of some results as the engine reads them. Their source is the tool's name."""
    evidence: list[Evidence] = []
    looked: list[LookedAt] = []
    for report in reports:
        looked.append(LookedAt(report.tool))
        for fact in report.facts:
            origin = Origin(report.tool, process=fact.process, order=len(evidence))
            evidence.append(Evidence(fact.name, fact.state, fact.value, origin, fact.quote, fact.why_unknown))
    return Reading(evidence=tuple(evidence), looked_at=tuple(looked))


def from_json(raw: Mapping[str, Any]) -> Report:
    """A result that was saved; raises ``pydantic.ValidationError``."""
    return Report.model_validate(raw)
