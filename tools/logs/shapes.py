"""What goes into the log reader and what comes out: plain, typed, bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from tools.evidence import Reading

#: What a file was recognised as.
InputKind = Literal["log", "metrics", "responses", "config", "ignored"]


@dataclass(frozen=True, slots=True)
class LogInput:
    """One source of lines: a file (``path``; "-" is standard input), bytes already in memory, or an open ``stream``.

    ``pasted`` says that the bytes are a person's message, which may hold prose beside log lines and is an excerpt.
    ``broke_off`` says why there was more than ``data``, where whoever fetched it did not get to its end.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    pasted: bool = False
    kind: InputKind = "log"
    stream: Callable[[], IO[bytes]] | None = None
    broke_off: str = ""

    def __post_init__(self) -> None:
        if [self.path, self.data, self.stream].count(None) != 2:
            raise ValueError(f"log input {self.name!r} needs a path, data or a stream: exactly one of them")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Which part is read: ``run`` counts from 1, ``since`` and ``until`` bound the times stated in the log.

    ``deadline_s`` bounds the whole reading in seconds; ``progress`` is told the bytes read and the total, if known.
    """

    run: int | Literal["all", "last"] = "last"
    since: datetime | None = None
    until: datetime | None = None
    deadline_s: float = 60.0
    progress: Callable[[int, int | None], None] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a traceback, outermost first."""

    file: str
    line: int
    function: str


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception of a chain: its dotted type, its message (first lines), where it stands, its own frames."""

    type: str
    message: str
    line: int
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class FailureBlock:
    """One rebuilt traceback; the last of ``exceptions`` is what was raised in the end, the first what began it.

    ``count`` says how many tracebacks of this process ended in the same exception; the first is shown.
    ``counted`` is false for what is no failure: a client that went away, a refused request, a normal shutdown.
    """

    source: str
    run: int
    process: str | None
    first_line: int
    last_line: int
    order: int
    at: datetime | None
    exceptions: tuple[Raised, ...]
    quotes: tuple[tuple[int, str], ...]
    messages: tuple[str, ...] = ()
    complete: bool = True
    counted: bool = True
    count: int = 1

    @property
    def frames(self) -> tuple[Frame, ...]:
        """All frames of the chain in printed order."""
        return tuple(frame for raised in self.exceptions for frame in raised.frames)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of one source, read or skipped: where it lies, how it ended, how often it failed."""

    source: str
    number: int
    first_line: int
    last_line: int
    first_at: datetime | None
    last_at: datetime | None
    ready: bool
    ended: Literal["open", "clean-shutdown", "failed"]
    failures: int
    version: str | None = None
    first_failure: str = ""


@dataclass(frozen=True, slots=True)
class LogReading:
    """Everything one reading brought back; ``prose`` is what a person wrote around pasted log lines.

    ``Origin.order`` is the line within its source: comparable inside one source, not across sources.
    """

    reading: Reading
    runs: tuple[RunSummary, ...] = ()
    failures: tuple[FailureBlock, ...] = ()
    prose: str = ""
    tracebacks: dict[str, int] = field(default_factory=dict)  # process -> tracebacks rebuilt, all runs that were read
