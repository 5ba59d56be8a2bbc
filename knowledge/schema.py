"""The shapes of the knowledge files, for the checker. The running program never imports this (Pydantic is slow to load)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Sentence = Annotated[str, StringConstraints(min_length=2, max_length=2000)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Version = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+(\.\d+)?(\.post\d+)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Words(Strict):
    """One sentence in both languages."""

    en: Sentence
    zh: Sentence


class Symptoms(Strict):
    en: list[Sentence] = Field(min_length=1)
    zh: list[Sentence] = Field(min_length=1)


class SignalEntry(Strict):
    message: Slug | None = None
    prints: list[Annotated[str, StringConstraints(min_length=6)]] | None = Field(default=None, min_length=1)
    when: dict[str, Any] | None = None
    said: list[Slug] | None = Field(default=None, min_length=1)
    symptoms: Symptoms | None = None
    weight: Literal["decisive", "strong", "weak"] | None = None
    group: Slug | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> SignalEntry:
        kinds = [k for k in ("message", "prints", "when", "said", "symptoms") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError("a signal has exactly one of message, prints, when, said, symptoms")
        if (self.weight is None) != (kinds[0] == "symptoms"):
            raise ValueError("every signal but symptoms has a weight (decisive, strong or weak); symptoms have none")
        return self


class ExclusionEntry(Strict):
    when: dict[str, Any]
    because: Words


class FixEntry(Strict):
    intent: Slug
    value: str | None = None
    only_if: dict[str, Any] | None = None
    why: Words
    price: Words | None = None
    impact: Literal["none", "new-requests", "restart", "node"]


class SourceEntry(Strict):
    document: str | None = None
    section: str | None = None
    file: str | None = None
    version: Version | None = None
    title: str | None = None
    url: Annotated[str, StringConstraints(pattern=r"^https://")] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> SourceEntry:
        if not (self.document or self.file or self.title):
            raise ValueError("a source names a document (and section), a file (and version), or a title (and url)")
        return self


class ExampleEntry(Strict):
    log: str | None = None
    text: str | None = None
    facts: dict[str, str | int | float | bool] | None = None
    belongs_to: str | None = None

    @model_validator(mode="after")
    def _has_material(self) -> ExampleEntry:
        if not (self.log or self.text or self.facts):
            raise ValueError("an example gives a log, a text, or facts that a tool would bring (or several of them)")
        return self


class Examples(Strict):
    match: list[ExampleEntry] = Field(min_length=2)
    near_miss: list[ExampleEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _near_misses_belong(self) -> Examples:
        if any(e.belongs_to is None for e in self.near_miss):
            raise ValueError("every near miss says where it belongs_to: a cause id, unknown, or healthy")
        return self


class CauseFile(Strict):
    """One cause, keys in this order."""

    title: Words
    severity: Literal["critical", "warning", "info"]
    begins: Literal["startup", "serving", "any"]
    explanation: Words
    signals: list[SignalEntry] = Field(min_length=1)
    ruled_out: list[ExclusionEntry] = []
    explains: list[Slug] = []
    near: list[str] = []
    fixes: list[FixEntry] = []
    check: Words
    collect: list[Slug] = []
    draft: bool = False
    sources: list[SourceEntry] = Field(min_length=1)
    examples: Examples


class MessageEntry(Strict):
    kind: (
        Literal["failure", "consequence", "wrapper", "warning", "request", "state", "frame", "harmless", "foreign"]
        | None
    ) = None
    says: list[Annotated[str, StringConstraints(min_length=4)]] = []
    captures: dict[str, str] = {}
    source: str | None = None


class ConceptEntry(Strict):
    en: list[str] = []
    zh: list[str] = []
    means: dict[str, str] | None = None
    denial: bool = False  # heard of what is said to be in order or not there: see knowledge/excluded.py

    @model_validator(mode="after")
    def _says_something(self) -> ConceptEntry:
        if not (self.en or self.zh):
            raise ValueError("a concept needs at least one pattern")
        return self


class SpellingEntry(Strict):
    since: Version
    flag: Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z0-9-.]*$")]
    until: Version | None = None


class ByDefaultEntry(Strict):
    since: Version
    value: str
    until: Version | None = None


class IntentEntry(Strict):
    title: Words
    argument: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    spelled: list[SpellingEntry] = []
    variable: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    value: str | None = None
    command: str | None = None
    command_since: Version | None = None
    command_before: str | None = None
    action: Words | None = None
    undo: Words | None = None
    price: Words | None = None
    work_around: bool = False
    removes: list[str] = []
    conflicts: list[str] = []
    needs: list[Slug] = []
    direction: Literal["raise", "lower"] | None = None
    by_default: list[ByDefaultEntry] = []
    resets: bool = False
    server_only: bool = False
    rewrites: bool = False

    @model_validator(mode="after")
    def _does_something(self) -> IntentEntry:
        if not (self.spelled or self.variable or self.command or self.action or self.removes):
            raise ValueError("an intent is spelled as an argument, or has a variable, a command, an action or removes")
        return self


class ObservableEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["number", "count", "choice", "text", "flag"]
    suppliers: list[str] = Field(alias="from", min_length=1)
    unit: str = ""
    ask: Words | None = None
    choices: dict[str, Words] = {}


class DefectEntry(Strict):
    title: Words
    kind: Literal["engine", "security", "wrong-output", "startup"]
    since: Version
    fixed: Version
    cause: str | None = None
    when: dict[str, Any] | None = None
    work_around: Words
    sources: list[SourceEntry] = Field(min_length=1)


class LineStyleEntry(Strict):
    line: str | None = None
    process: str | None = None
    since: Version
    until: Version | None = None


class NodeEntry(Strict):
    question: Words
    observe: str
    next: dict[str, str]


class TreeFile(Strict):
    start: str
    healthy: dict[str, Any]
    nodes: dict[str, NodeEntry]


class EventEntry(Strict):
    """One event that the NVIDIA driver prints into the kernel log."""

    xid: int | None = None
    sxid: int | None = None
    name: Sentence
    en: Sentence
    zh: Sentence
    action: Words
    cause: str | None = None

    @model_validator(mode="after")
    def _one_code(self) -> EventEntry:
        if (self.xid is None) == (self.sxid is None):
            raise ValueError("an event has either an xid or an sxid")
        return self


#: The order of keys in a cause file.
CAUSE_ORDER = tuple(CauseFile.model_fields)
