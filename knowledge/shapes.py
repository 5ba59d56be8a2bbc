"""The knowledge as the program holds it: frozen, slotted, made from the compiled file without any validation.

The checker (:mod:`knowledge.check`) is what refuses a wrong file; what arrives here has passed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["failure", "consequence", "wrapper", "warning", "request", "state", "frame", "harmless", "foreign"]
Weight = Literal["decisive", "strong", "weak"]
Impact = Literal["none", "new-requests", "restart", "node"]
#: A condition as written in YAML: {"message": id}, {"said": concept}, {observable: {test: value}}, {"all"|"any": [..]}, {"not": ..},
#: {"after": [what came, after what]}.
Condition = Mapping[str, Any]
#: The same sentence in both languages.
Words = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """One thing a program prints, in all spellings over its versions.

    ``captures`` maps the name of a capture in a template to the observable that it states.
    """

    id: str
    kind: Kind
    says: tuple[str, ...]
    captures: Mapping[str, str] = field(default_factory=dict)
    source: str = "vllm"


@dataclass(frozen=True, slots=True)
class Signal:
    """One reason to believe in a cause; exactly one of ``when`` and ``symptoms`` is set."""

    key: str  # what is shown in traces: "message:torch-cuda-oom", "said:oom+capture"
    weight: Weight
    when: Condition | None = None
    symptoms: Mapping[str, tuple[str, ...]] | None = None
    group: str | None = None
    needs: frozenset[str] = frozenset()  # names without which ``when`` cannot be true
    share: float = 1.0  # how particular a `said` signal is, see knowledge.conditions.particular


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A condition that, when true, rules a cause out, and the sentence that says so."""

    when: Condition
    because: Words


@dataclass(frozen=True, slots=True)
class Fix:
    """One way to act, as an intent; ``value`` is a literal or the name of a calculation."""

    intent: str
    why: Words
    impact: Impact
    value: str | None = None
    only_if: Condition | None = None
    price: Words | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where it is written: a document section, a file of a vLLM version, or a titled address."""

    document: str | None = None
    section: str | None = None
    file: str | None = None
    version: str | None = None
    title: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """One root cause (or, with an id below ``normal/``, one normal thing that people worry about)."""

    id: str
    title: Words
    severity: Literal["critical", "warning", "info"]
    begins: Literal["startup", "serving", "any"]
    explanation: Words
    signals: tuple[Signal, ...]
    check: Words
    sources: tuple[Source, ...]
    ruled_out: tuple[Exclusion, ...] = ()
    explains: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    collect: tuple[str, ...] = ()
    draft: bool = False
    #: One name of each signal's conditions: where nothing is known of any of them no signal can be true. None where a
    #: signal may be true of nothing known. What only describes in words (``when`` None) is not counted here.
    clues: frozenset[str] | None = None

    @property
    def area(self) -> str:
        return self.id.split("/", 1)[0]

    @property
    def is_normal(self) -> bool:
        return self.area == "normal"


@dataclass(frozen=True, slots=True)
class Observable:
    """One name of the closed vocabulary of evidence."""

    name: str
    type: Literal["number", "count", "choice", "text", "flag"]
    suppliers: tuple[str, ...]
    unit: str = ""
    ask: Words | None = None
    choices: Mapping[str, Words] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one range of vLLM versions spells an argument; ``until`` is exclusive."""

    since: str
    flag: str
    until: str | None = None


@dataclass(frozen=True, slots=True)
class ByDefault:
    """What a range of versions does where an argument is not given and its table leaves that open."""

    since: str
    value: str
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """What a fix wants: an argument, a variable, a command that only looks, or an action.

    ``removes`` names arguments and variables to take away; ``conflicts`` arguments that contradict this one and are
    taken away with it; ``needs`` intents without which vLLM refuses this one; ``direction`` says that only a higher or
    lower value helps; ``resets`` that the value is the default and is only advised where something else was set;
    ``server_only`` that ``LLM(...)`` has no such argument;
    ``rewrites`` that the start command is written again with only what the version takes.
    """

    id: str
    title: Words
    argument: str | None = None
    spelled: tuple[Spelling, ...] = ()
    variable: str | None = None
    since: str = "0.0"  # vLLM versions that read the variable; until is exclusive
    until: str | None = None
    value: str | None = None
    command: str | None = None
    command_since: str = "0.0"
    command_before: str | None = None
    action: Words | None = None
    undo: Words | None = None
    price: Words | None = None
    work_around: bool = False
    removes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    direction: Literal["raise", "lower"] | None = None
    by_default: tuple[ByDefault, ...] = ()
    resets: bool = False
    server_only: bool = False
    rewrites: bool = False


@dataclass(frozen=True, slots=True)
class Concept:
    """One idea, and how people say it in both languages (RE2 patterns)."""

    id: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """An Xid or SXid event of the NVIDIA driver; ``cause`` is what it means for a server, where it means one thing."""

    name: str
    meaning: Words
    action: Words
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Defect:
    """A known defect of a range of versions; ``fixed`` is the first release without it.

    With ``cause`` and ``when`` a matching symptom in an affected version counts as a strong signal for that cause.
    """

    id: str
    title: Words
    kind: Literal["engine", "security", "wrong-output", "startup"]
    since: str
    fixed: str
    work_around: Words
    sources: tuple[Source, ...]
    cause: str | None = None
    when: Condition | None = None
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One question of the decision tree: which observable answers it, and where each answer leads."""

    name: str
    question: Words
    observe: str
    next: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Tree:
    """The order of questions, and what must hold before anything may be called healthy."""

    start: str
    nodes: Mapping[str, TreeNode]
    healthy: Condition
