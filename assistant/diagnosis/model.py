"""What goes into a diagnosis and what comes out of it: plain data, the same for every face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from tools.evidence import Coverage, Evidence, LookedAt, Origin, Reading

Verdict = Literal["cause", "healthy", "unknown"]
Relation = Literal["primary", "also", "alternative", "consequence"]
Language = Literal["en", "zh"]

#: The number of the JSON shape; a change that breaks a reader raises it.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one incident. A saved case gives the same diagnosis again, on any machine.

    ``text`` is what the person wrote, without the log lines in it; ``answers`` maps observables to what the person
    answered when asked.
    """

    reading: Reading = field(default_factory=Reading)
    text: str = ""
    language: Language = "en"
    vllm_version: str | None = None
    target: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The case as plain data; :func:`case_from_json` is its inverse."""
        return _plain(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Quote:
    """One piece of evidence as shown to people."""

    source: str
    line: int | None
    process: str | None
    time: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Advice:
    """One fix, rendered for this version and these numbers."""

    title: str
    why: str
    command: str | None
    flags: tuple[str, ...]
    expected: str
    trade_off: str | None
    impact: str
    undo: str | None
    work_around: bool
    changed: tuple[str, ...] = ()  # pieces of the command that are new, for a face to mark
    change: str | None = None  # what changes, as "--flag old → new"
    python: str | None = None  # the same argument as `LLM(...)` takes it
    effect: str | None = None  # what the numbers say the change does; also the beginning of ``expected``
    notes: tuple[str, ...] = ()  # what was left out, assumed, or is to be filled in


@dataclass(frozen=True, slots=True)
class Reference:
    """Where it is written."""

    document: str
    section: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause with all that speaks for and against it."""

    id: str
    title: str
    explanation: str
    confidence: float
    severity: str
    relation: Relation
    because: tuple[Quote, ...]
    against: tuple[str, ...]
    fixes: tuple[Advice, ...]
    check: str
    sources: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Collect:
    """Something to save before a restart destroys it, or that would decide an open question."""

    text: str
    command: str | None


@dataclass(frozen=True, slots=True)
class RuledOut:
    id: str
    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step through the tree, as it was walked."""

    node: str
    question: str
    answer: str
    origin: Literal["evidence", "tool", "person", "default"]
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class NextStep:
    """What would bring the answer further, cheapest first."""

    id: str
    action: Literal["run_tool", "ask", "collect"]
    text: str
    tool: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    effect: str | None = None
    choices: tuple[tuple[str, str], ...] | None = None  # (value, label)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer. Pure data: sentences are already in the asked language."""

    verdict: Verdict
    summary: str
    language: Language
    knowledge: str
    vllm_version: str | None
    target: str | None
    stage: str | None
    causes: tuple[Finding, ...]
    looked_at: tuple[LookedAt, ...]
    collect_first: tuple[Collect, ...]
    ruled_out: tuple[RuledOut, ...]
    path: tuple[Step, ...]
    next_steps: tuple[NextStep, ...]
    not_measured: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    version_source: Mapping[str, Any] = field(default_factory=dict)  # see assistant.diagnosis.version.Resolved
    version_label: str = ""
    case: Case | None = None

    def to_json(
        self,
        *,
        engine: str,
        created: str | None = None,
        full: bool = False,
        incident: str | None = None,
        revision: int = 1,
    ) -> dict[str, Any]:
        """The shape of ``docs/json.md``. ``full`` adds the evidence, enough to compute the diagnosis again."""
        out: dict[str, Any] = {
            "schema": SCHEMA,
            "engine": engine,
            "knowledge": self.knowledge,
            "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
            "incident": incident,
            "revision": revision,
            "verdict": self.verdict,
            "summary": self.summary,
            "language": self.language,
            "vllm_version": self.vllm_version,
            "vllm_version_source": dict(self.version_source),
            "target": self.target,
            "stage": self.stage,
            "looked_at": [
                {"source": s.source, "from": _plain(s.first_at), "to": _plain(s.last_at), "bytes": s.bytes}
                for s in self.looked_at
            ],
            "causes": [_finding_json(finding) for finding in self.causes],
            "collect_first": [_plain(c) for c in self.collect_first],
            "ruled_out": [{"id": r.id, "title": r.title, "why": r.why} for r in self.ruled_out],
            "path": [
                {"node": s.node, "question": s.question, "answer": s.answer, "from": s.origin, "tool": s.tool}
                for s in self.path
            ],
            "next_steps": [
                {
                    "id": n.id,
                    "action": n.action,
                    "text": n.text,
                    "tool": n.tool,
                    "arguments": dict(n.arguments),
                    "effect": n.effect,
                    "choices": None if n.choices is None else [{"value": v, "label": label} for v, label in n.choices],
                }
                for n in self.next_steps
            ],
            "not_measured": [{"what": what, "why": why} for what, why in self.not_measured],
            "notes": list(self.notes),
        }
        if full and self.case is not None:
            out["evidence"] = self.case.to_json()
        return out


def _finding_json(finding: Finding) -> dict[str, Any]:
    out = _plain(finding)
    out["confidence"] = round(finding.confidence, 4)
    return out  # type: ignore[no-any-return]


#: What JSON knows as it is; most of a case.
_AS_IT_IS = frozenset({str, int, float, bool, type(None)})


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON has them; ``dataclasses.asdict`` would copy all of it once more.

    A server does this for every incident that it keeps, hence without a call for what is plain already.
    """
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is tuple or kind is list:
        return [part if type(part) in _AS_IT_IS else _plain(part) for part in value]
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        out = {}
        for name in fields:
            part = getattr(value, name)
            out[name] = part if type(part) in _AS_IT_IS else _plain(part)
        return out
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: part if type(part) in _AS_IT_IS else _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _moment(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


def case_from_json(raw: Mapping[str, Any]) -> Case:
    """Reads a saved case back. Raises ``KeyError`` or ``ValueError`` where it is no case."""
    reading = raw["reading"]
    return Case(
        reading=Reading(
            evidence=tuple(
                Evidence(**{**e, "origin": Origin(**{**e["origin"], "at": _moment(e["origin"]["at"])})})
                for e in reading["evidence"]
            ),
            coverage=tuple(
                Coverage(
                    **{
                        **c,
                        "processes": tuple(c["processes"]),
                        "first_at": _moment(c["first_at"]),
                        "last_at": _moment(c["last_at"]),
                    }
                )
                for c in reading["coverage"]
            ),
            looked_at=tuple(
                LookedAt(s["source"], _moment(s["first_at"]), _moment(s["last_at"]), s["bytes"])
                for s in reading["looked_at"]
            ),
            not_measured=tuple((what, why) for what, why in reading["not_measured"]),
        ),
        text=raw["text"],
        language=raw["language"],
        vllm_version=raw["vllm_version"],
        target=raw["target"],
        answers=dict(raw["answers"]),
    )
