"""What every tool returns: typed, dated facts with their origin, and how far the tool could see.

An :class:`Evidence` is one fact. Its state is three-valued: a tool that could not look says ``unknown`` and why,
and nothing downstream may read that as "no". :class:`Coverage` says what a log reading would have seen, so that the
silence of a message can be told apart from not having looked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

State = Literal["present", "absent", "unknown"]
Value = str | int | float | bool | None

#: A quote never grows beyond this many characters, whatever the line was.
QUOTE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a fact comes from.

    ``source`` names the file, address or tool; ``line`` counts from 1; ``process`` is the label the log gives
    ("Worker_TP1 pid=405"); ``at`` is the time the source states (UTC where its zone is known); ``order`` is the place
    inside the run and decides which of two failures came first.
    """

    source: str
    line: int | None = None
    process: str | None = None
    at: datetime | None = None
    order: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact: ``name`` is a key of ``observables.yaml`` or ``message:<id>``.

    ``value`` is in the observable's unit and ``None`` unless ``state`` is ``present``; ``quote`` is redacted, free of
    control characters and at most :data:`QUOTE_LIMIT` characters; ``why_unknown`` is required when the state is
    ``unknown``; ``count`` is how often the fact was seen by this process, and ``last`` the order of the last time where
    that is known (0 where it is not: then ``origin.order`` stands for it).
    """

    name: str
    state: State
    value: Value
    origin: Origin
    quote: str = ""
    why_unknown: str = ""
    count: int = 1
    last: int = 0

    def __post_init__(self) -> None:
        if self.state == "unknown" and not self.why_unknown:
            raise ValueError(f"evidence {self.name!r} is unknown but does not say why")
        if self.state != "present" and self.value is not None:
            raise ValueError(f"evidence {self.name!r} is {self.state} but carries the value {self.value!r}")


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of one run of one source was read.

    ``from_start``: the banner or the first start-up line was seen; ``ready``: readiness was seen; ``ended``: how the
    run ends ("open" when the text simply stops); ``pasted``: the text came inside a question rather than as a file, so
    it may be an excerpt; ``truncated``: lines of this run were not read.
    """

    source: str
    run: int = 1
    runs: int = 1
    from_start: bool = False
    ready: bool = False
    ended: Literal["open", "clean-shutdown", "failed"] = "open"
    pasted: bool = False
    truncated: bool = False
    kernel_lines: bool = False
    processes: tuple[str, ...] = ()
    lines: int = 0
    bytes: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    @property
    def would_show(self) -> bool:
        """Whether a message that this run printed would have been seen."""
        return not self.pasted and not self.truncated and self.from_start


@dataclass(frozen=True, slots=True)
class LookedAt:
    """One source that was opened, for the answer's ``looked_at``."""

    source: str
    first_at: datetime | None = None
    last_at: datetime | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the world brought back: the facts, how far it saw, and what it could not measure."""

    evidence: tuple[Evidence, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    looked_at: tuple[LookedAt, ...] = ()
    not_measured: tuple[tuple[str, str], ...] = field(default=())  # (what, why)

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.evidence + other.evidence,
            self.coverage + other.coverage,
            self.looked_at + other.looked_at,
            self.not_measured + other.not_measured,
        )
