"""From inputs to one reading: opens every source, reads it within the deadline, and reports the runs asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from knowledge.shapes import Message
from tools.evidence import Coverage, Evidence, LookedAt, Reading
from tools.logs.commands import read_text
from tools.logs.facts import Facts
from tools.logs.garbage import rarely_searched
from tools.logs.prose import prose_of
from tools.logs.reader import SourceReader
from tools.logs.report import Reporter, redactor
from tools.logs.responses import read_config, read_responses
from tools.logs.runs import Run
from tools.logs.scan import Scanner
from tools.logs.shapes import FailureBlock, LogInput, LogReading, ReadOptions, RunSummary
from tools.logs.source import Chunk, SourceError, chunks, opened, read_up_to

#: Logs up to this size are read hit by hit; in larger ones routine lines are sampled once a chunk.
EXACT_BYTES = 4 << 20
#: Commands and environment are looked for in so much of a source's beginning.
_COMMANDS_BYTES = 256 << 10
#: A log that was written to within so many seconds of its last stated time runs on this machine's clock.
_SAME_CLOCK_SECONDS = 120.0

_made = threading.local()


def scanner_for(messages: Sequence[Message], thrifty: bool) -> Scanner:
    """The scanner for ``messages``, made once a thread (a scanner holds scratch memory)."""
    known: list[tuple[Sequence[Message], bool, Scanner]] = getattr(_made, "known", [])
    for kept, kept_thrifty, scanner in known:
        if kept_thrifty == thrifty and (
            kept is messages or (len(kept) == len(messages) and list(kept) == list(messages))
        ):
            return scanner
    made = Scanner(messages, thrifty)
    _made.known = [*known[-3:], (messages, thrifty, made)]
    return made


def read_logs(
    inputs: Sequence[LogInput], messages: Sequence[Message], options: ReadOptions | None = None
) -> LogReading:
    """Read ``inputs`` as one incident.

    A source that cannot be opened or is damaged is reported in ``reading.not_measured``; raises :class:`SourceError`
    only when no source at all could be opened.
    """
    options = options or ReadOptions()
    collector = _Collector(messages, options)
    with rarely_searched():
        failed = [error for source in inputs if (error := collector.read(source)) is not None]
    if inputs and len(failed) == len(inputs):
        raise SourceError("; ".join(str(error) for error in failed))
    return collector.result()


class _Collector:
    def __init__(self, messages: Sequence[Message], options: ReadOptions) -> None:
        self._messages = messages
        self._options = options
        self._redact = redactor()
        self._until = time.monotonic() + options.deadline_s
        self._evidence: list[Evidence] = []
        self._coverage: list[Coverage] = []
        self._looked: list[LookedAt] = []
        self._missed: list[tuple[str, str]] = []
        self._runs: list[RunSummary] = []
        self._failures: list[FailureBlock] = []
        self._tracebacks: dict[str, int] = {}
        self._prose: list[str] = []
        self._done = 0

    def result(self) -> LogReading:
        evidence = tuple(self._safe(fact) for fact in self._evidence)
        reading = Reading(evidence, tuple(self._coverage), tuple(self._looked), tuple(self._missed))
        failures = tuple(sorted(self._failures, key=lambda block: (block.source, block.run, block.order)))
        return LogReading(reading, tuple(self._runs), failures, "\n\n".join(self._prose), self._tracebacks)

    def _safe(self, fact: Evidence) -> Evidence:
        quote = self._redact(fact.quote) if fact.quote else ""
        value = self._redact(fact.value) if isinstance(fact.value, str) else fact.value
        return fact if quote == fact.quote and value == fact.value else replace(fact, quote=quote, value=value)

    def _quote(self, text: str) -> str:
        return self._redact(text)[:500]

    def read(self, source: LogInput) -> SourceError | None:
        """Read one source; what it could not give is noted, an unreadable source is returned as its error."""
        try:
            if source.kind == "responses":
                self._evidence.extend(read_responses(source, scanner_for(self._messages, False), self._quote))
                self._looked.append(LookedAt(source.name, bytes=_size(source)))
            elif source.kind == "config":
                self._evidence.extend(read_config(source))
                self._looked.append(LookedAt(source.name, bytes=_size(source)))
            elif source.kind in ("metrics", "ignored"):
                why = "a metrics page; two of them from a live server are read by the metrics command"
                self._missed.append(
                    (source.name, why if source.kind == "metrics" else "not a log, responses or a config")
                )
            else:
                self._read_log(source)
        except SourceError as error:
            self._missed.append((source.name, str(error)))
            return error
        return None

    def _read_log(self, source: LogInput) -> None:
        moment = _modified(source)
        with opened(source) as (stream, size):
            head = read_up_to(stream, EXACT_BYTES + 1)
            thrifty = len(head) > EXACT_BYTES
            scanner = scanner_for(self._messages, thrifty)
            reader = SourceReader(
                source.name, scanner, self._options, (moment or datetime.now()).year, self._quote, source.pasted
            )
            damaged = self._feed(reader, head, stream, size, source)
        reader.finish()
        self._report(reader, source, moment, damaged)
        facts = Facts()
        text = head[:_COMMANDS_BYTES].decode("utf-8", "replace")
        read_text(facts, text, source.name)
        stated = {fact.name for fact in self._evidence if fact.origin.source == source.name}
        self._evidence.extend(fact for fact in facts.evidence() if fact.name not in stated)
        if source.pasted:
            self._prose.append(prose_of(text))

    def _feed(self, reader: SourceReader, head: bytes, stream: object, size: int | None, source: LogInput) -> bool:
        """Hand the chunks on; true when the source broke off or time ran out."""
        progress: Callable[[int, int | None], None] | None = self._options.progress
        total = 0
        chunk: Chunk
        try:
            for chunk in chunks(_Rest(head, stream)):  # type: ignore[arg-type]
                reader.feed(chunk)
                total += chunk.size
                if progress is not None:
                    progress(total, size)
                if time.monotonic() > self._until:
                    self._missed.append(
                        (source.name, f"the deadline of {self._options.deadline_s:g} s passed; read to byte {total}")
                    )
                    reader.run.truncated = True
                    return True
            if source.broke_off:
                raise SourceError(source.broke_off)
        except SourceError as error:
            self._missed.append((source.name, str(error)))
            reader.run.truncated = True
            return True
        return False

    def _report(self, reader: SourceReader, source: LogInput, moment: datetime | None, damaged: bool) -> None:
        count = len(reader.runs) + reader.skipped_runs
        wanted = self._options.run
        if wanted == "all":
            chosen = reader.runs
        elif wanted == "last":
            chosen = reader.runs[-1:]
        else:
            chosen = [run for run in reader.runs if run.number == wanted]
            if not chosen:
                self._missed.append((source.name, f"there is no run {wanted}; the log holds {count}"))
        last = reader.runs[-1]
        reporter = Reporter(reader.year, count, _silence(last, moment, damaged), broken_off=damaged)
        for run in chosen:
            self._evidence.extend(reporter.evidence(run))
            self._coverage.append(run.coverage(count, source.pasted))
            self._failures.extend(run.blocks.values())
            for process, tracebacks in run.tracebacks.items():
                self._tracebacks[process] = self._tracebacks.get(process, 0) + tracebacks
        self._runs.extend(run.summary() for run in reader.runs)
        first = next((run.first_at for run in reader.runs if run.first_at), None)
        self._looked.append(LookedAt(source.name, first, last.last_at, reader.bytes))


class _Rest:
    """The bytes read ahead, then the rest of the stream."""

    def __init__(self, head: bytes, stream: object) -> None:
        self._head = memoryview(head)
        self._stream = stream

    def readinto(self, buffer: memoryview) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        return self._stream.readinto(buffer) or 0  # type: ignore[attr-defined]


def _size(source: LogInput) -> int:
    if source.data is not None:
        return len(source.data)
    return source.path.stat().st_size if source.path is not None and source.path.is_file() else 0


def _modified(source: LogInput) -> datetime | None:
    """When the file was last written, in this machine's time: the year that short stamps leave out."""
    if source.path is None or not source.path.is_file():
        return None
    return datetime.fromtimestamp(source.path.stat().st_mtime)


def _silence(run: Run, moment: datetime | None, damaged: bool) -> float | None:
    """Age of the last line of a log that this machine still writes; ``None`` for copies and other clocks."""
    if moment is None or damaged or run.last_at is None:
        return None
    last = run.last_at.astimezone().replace(tzinfo=None) if run.last_at.tzinfo else run.last_at
    if abs((moment - last).total_seconds()) > _SAME_CLOCK_SECONDS:
        return None
    return max(0.0, (datetime.now() - last).total_seconds())
