"""What the API takes and returns, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tools.logs.parse import NamedLog


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is the whole number 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def questions(schema: dict[str, Any]) -> None:
    """Name every question and its choices, so that a client sees what may be answered."""
    from knowledge.catalog import load

    asked = [observable for observable in load().observables.values() if observable.ask]
    schema["properties"]["answers"] = {
        **schema["properties"]["answers"],
        "properties": {
            found.name: {"enum": [*found.choices, "unknown"]} if found.choices else {"type": "string", "maxLength": 200}
            for found in asked
        },
        "additionalProperties": False,
    }


def _tools(schema: dict[str, Any]) -> None:
    """Name every tool with the arguments that it takes."""
    from assistant.faces.schemas import compact
    from tools import registry

    actions = registry.actions()
    schema["properties"]["tool"] = {"enum": [action.name for action in actions]}
    schema["oneOf"] = []
    for action in actions:
        arguments = {**compact(action.input_schema()), "additionalProperties": False}
        needed = ["tool", "arguments"] if arguments.get("required") else ["tool"]
        only = {"tool": {"const": action.name}, "arguments": arguments}
        schema["oneOf"].append({"properties": only, "required": needed})
    schema["examples"] = [{"tool": "search_knowledge", "arguments": {"query": "NCCL hangs"}}]


def _something(schema: dict[str, Any]) -> None:
    """At least words, a log or a target."""
    questions(schema)
    schema["anyOf"] = [
        {"properties": {"text": {"pattern": "\\S"}}, "required": ["text"]},
        {"properties": {"logs": {"type": "array", "minItems": 1}}, "required": ["logs"]},
        {"properties": {"target": {"type": "string", "pattern": "\\S"}}, "required": ["target"]},
    ]


Id = Annotated[str, Field(max_length=80, examples=["07bc14ab46b37888692a"])]


EXAMPLE = {
    "text": "The server stops while loading.",
    "logs": [
        {
            "name": "server.log",
            "content": "INFO 11-21 10:00:00 [core.py:93] Initializing a V1 LLM engine (v0.11.0)\n"
            "ERROR 11-21 10:00:09 [core.py:710] ValueError: No available memory for the cache blocks.\n",
        }
    ],
    "language": "en",
}


class DiagnosisRequest(BaseModel):
    """One incident: words, logs, or the name of a configured target, together."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_something)

    text: Annotated[str, Field(max_length=4_000_000, description="question, symptom, or pasted log lines")] = ""
    logs: Annotated[list[NamedLog], Field(max_length=50, description="contents of logs of this one incident")] = []
    target: Annotated[str | None, Field(max_length=400, description="name of a configured target")] = None
    vllm_version: Annotated[str | None, Field(max_length=80)] = None
    language: Literal["en", "zh"] | None = None
    answers: Annotated[dict[str, str], Field(max_length=100, description="question id to one of its choices")] = {}
    save: Annotated[bool, Field(description="whether the incident is kept and can be continued")] = True


class AnswersRequest(BaseModel):
    """Answers to questions of a diagnosis, and the revision that the person saw."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=questions)

    revision: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(_whole)]
    answers: Annotated[dict[str, str], Field(min_length=1, max_length=100)]


class FeedbackRequest(BaseModel):
    """Whether the diagnosis was right."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"helped": "yes", "comment": "that was it"}]}
    )

    helped: Literal["yes", "partly", "no"]
    comment: Annotated[str, Field(max_length=20_000)] = ""


class JobRequest(BaseModel):
    """A tool to run as a job. What touches a machine needs ``confirm``, the ticket of a first request without it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_tools)

    tool: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,47}$")]
    arguments: dict[str, Any] = {}
    confirm: Annotated[str | None, Field(max_length=2000)] = None
    incident: Id | None = None


class _Open(BaseModel):
    """Readers ignore what they do not know: more may come."""

    model_config = ConfigDict(extra="allow")


class QuoteOut(_Open):
    source: str
    line: int | None
    process: str | None
    time: str | None
    text: str


class FixOut(_Open):
    title: str
    why: str
    command: str | None
    flags: list[str]
    expected: str
    trade_off: str | None
    impact: str
    undo: str | None
    work_around: bool


class CauseOut(_Open):
    id: str
    title: str
    confidence: Annotated[float, Field(ge=0, le=1)]
    severity: str
    relation: str
    because: list[QuoteOut]
    fixes: list[FixOut]
    check: str


class DiagnosisOut(_Open):
    """A diagnosis, as docs/json.md describes it."""

    schema_: Annotated[int, Field(alias="schema")]
    engine: str
    knowledge: str
    created: str
    incident: str | None
    revision: int
    verdict: Literal["cause", "healthy", "unknown"]
    summary: str
    language: Literal["en", "zh"]
    vllm_version: str | None
    target: str | None
    stage: str | None
    causes: list[CauseOut]
    collect_first: list[dict[str, Any]]
    ruled_out: list[dict[str, Any]]
    path: list[dict[str, Any]]
    next_steps: list[dict[str, Any]]
    not_measured: list[dict[str, Any]]


class JudgedOut(BaseModel):
    """What people said of the diagnoses of one cause; "healthy" and "unknown" stand for those verdicts."""

    cause: str
    incidents: int
    yes: int
    partly: int
    no: int


class FeedbackOut(BaseModel):
    items: list[JudgedOut]


class IncidentOut(_Open):
    """One line of the list of incidents."""

    id: str
    created_at: str
    target: str | None
    verdict: str
    cause: str | None


class IncidentsOut(BaseModel):
    """A page of incidents, newest first; ``next`` is the cursor of the page after it."""

    items: list[IncidentOut]
    next: str | None


class ToolOut(BaseModel):
    """One tool: what it does to the machine (``effect``) and what it takes."""

    name: str
    title: str
    description: str
    effect: Literal["reads", "loads", "runs"]
    deadline_s: float
    input_schema: dict[str, Any]


class ToolsOut(BaseModel):
    items: list[ToolOut]


class ConfirmationOut(BaseModel):
    """Asked back by a tool that touches a machine: repeat the request with ``confirm`` once a person has agreed."""

    needs_confirmation: Literal[True] = True
    tool: str
    effect: Literal["loads", "runs"]
    title: str
    confirm: str


class JobOut(BaseModel):
    """A job. ``state`` is queued, running, done, failed, cancelled or interrupted; times are RFC 3339."""

    id: str
    tool: str
    effect: str
    state: str
    incident: str | None
    created: str
    started: str | None
    finished: str | None
    progress: float | None
    doing: str
    result: Any
    error: str | None


class FoundOut(BaseModel):
    kind: Literal["cause", "section", "site"]
    id: str
    title: str
    excerpt: str
    uri: str | None = None


class SearchOut(BaseModel):
    hits: list[FoundOut]


class RunbookLine(BaseModel):
    id: str
    title: str
    severity: str
    begins: str
    url: str


class RunbooksOut(BaseModel):
    items: list[RunbookLine]


class RunbookStep(BaseModel):
    """One step: what to do, the command for the version asked for, and what it interrupts."""

    number: int
    kind: Literal["collect", "fix"]
    title: str
    why: str
    command: str | None
    impact: str
    undo: str | None
    expected: str
    trade_off: str | None
    work_around: bool


class RunbookOut(BaseModel):
    """A cause as ordered steps: what to save, then the fixes, the least invasive first, then how to check."""

    id: str
    title: str
    language: Literal["en", "zh"]
    vllm_version: str | None
    severity: str
    begins: str
    explanation: str
    signs: list[str]
    steps: list[RunbookStep]
    check: str
    sources: list[dict[str, Any]]
    url: str
