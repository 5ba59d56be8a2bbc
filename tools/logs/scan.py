"""One pass over a chunk for everything that matters: the longest literal of every template, and the structure.

Hyperscan looks for plain literals only (about 1.3 GB/s with 1,500 of them, made in some 30 ms); RE2 confirms and
captures on the lines that were hit, and its patterns are made when their literal is first seen. Literals whose
messages are routine are reported once a chunk when the log is large: the last one is found from the chunk's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from knowledge.shapes import Message
from knowledge.templates import SHORTEST_LITERAL, Converter, Value, compile_template, literal_of
from tools.logs.database import Database, Literal
from tools.logs.markers import MARKERS, is_covered, marked_lines, rarest_pieces

#: Kinds that a healthy server may print all day.
ROUTINE = frozenset({"state", "request", "warning", "harmless"})

TRACEBACK, LEVEL, EXCEPTION, DEATH, BANNER, READY, SHUTDOWN, STATS, REFUSED, PROGRESS, KERNEL, ACCESS, PROCESS = range(
    13
)

#: Structural literals: (kind, text, reported once a chunk in large logs).
_STRUCTURE: tuple[tuple[int, str, bool], ...] = (
    (TRACEBACK, "Traceback (most recent call last)", False),
    (LEVEL, "ERROR", False),
    (LEVEL, "CRITICAL", False),
    (LEVEL, "FATAL", False),
    (LEVEL, "NCCL WARN", False),
    (EXCEPTION, "Error: ", False),
    (EXCEPTION, "Error:\n", False),
    (EXCEPTION, "Error\n", False),
    (EXCEPTION, "Exception: ", False),
    (EXCEPTION, "Exception\n", False),
    (EXCEPTION, "Interrupt\n", False),
    (EXCEPTION, ": error: ", False),
    (DEATH, "Killed", False),
    (DEATH, "egmentation fault", False),
    (DEATH, "core dumped", False),
    (DEATH, "Segfault encountered", False),
    (DEATH, "Bus error", False),
    (DEATH, "Fatal Python error", False),
    (DEATH, "terminate called", False),
    (DEATH, "SIGKILL", False),
    (DEATH, "SIGSEGV", False),
    (DEATH, "SIGABRT", False),
    (DEATH, "SIGBUS", False),
    (DEATH, "SIGTERM", False),
    (DEATH, "SIGINT", False),
    (DEATH, "xit code", False),
    (DEATH, "exitcode", False),
    (DEATH, "xited with code", False),
    (DEATH, "oom-kill", False),
    (BANNER, "vLLM API server version", False),
    (BANNER, "non-default args: ", False),
    (BANNER, "args: Namespace(", False),
    (BANNER, "LLM engine (v", False),
    (BANNER, "  version ", False),
    (BANNER, "usage: vllm", False),
    (BANNER, "usage: api_server.py", False),
    (READY, "Application startup complete", False),
    (READY, "Uvicorn running on", False),
    (SHUTDOWN, "Shutting down", False),
    (SHUTDOWN, "Application shutdown complete", False),
    (SHUTDOWN, "Finished server process", False),
    (SHUTDOWN, "[shutdown] ", False),
    (SHUTDOWN, "shutting down.", False),
    (SHUTDOWN, "KeyboardInterrupt: terminated", False),
    (STATS, "Avg generation throughput: ", True),
    (STATS, "SpecDecoding metrics: ", True),
    (REFUSED, 'HTTP/1.1" 4', True),
    (REFUSED, 'HTTP/1.1" 5', True),
    (REFUSED, 'HTTP/1.0" 4', True),
    (REFUSED, 'HTTP/1.0" 5', True),
    (ACCESS, '"POST /', True),
    (PROGRESS, "% Completed | ", True),
    (PROGRESS, "it/s]", True),
    (PROGRESS, "s/it]", True),
    (PROGRESS, "B/s]", True),
    (KERNEL, "NVRM: Xid", False),
    (KERNEL, "Memory cgroup out of memory", False),
    (KERNEL, "Out of memory: Killed process", False),
    (PROCESS, "\nProcess ", False),
)
#: Ids of markers begin here.
_MARKED = 1 << 24
#: Traffic prints these all the time. Where a chunk's beginning holds them all, nothing needs to look for them.
_USUAL = ('"POST /', "Avg generation throughput: ")
_BEGINNING_BYTES = 32 << 10
#: So many chunks after one that was full of marked lines are scanned for everything at once.
_DENSE_CHUNKS = 15
#: After a run began so many chunks, and later every so-manieth, are searched for routine literals everywhere.
_EARLY_CHUNKS = 4
_SAMPLED_CHUNK = 32
#: A text up to this size, for the first few of them, is searched literal by literal.
_SMALL_BYTES = 64 << 10
_SMALL_SCANS = 3
#: What was found on so many lines of up to so many characters is remembered: logs repeat themselves.
_MOST_REMEMBERED = 4096
_LONGEST_REMEMBERED = 1000
#: The structural kinds that are looked for from the end of a large chunk too.
LAST_WANTED = frozenset({STATS, PROGRESS})


def as_written(template: str, literal: bytes) -> bytes:
    """The literal with the capitals of its template: ``b"gpu kv cache size:"`` -> ``b"GPU KV cache size:"``."""
    raw = template.encode()
    at = raw.lower().find(literal)
    return raw[at : at + len(literal)] if at >= 0 else literal


def _is_whole(template: str, literal: bytes) -> bool:
    return "{" not in template and len(template) == len(literal)


@dataclass(slots=True)
class _Spelling:
    """One template of one message; ``search`` is its RE2 pattern, made at its first hit."""

    message: int
    template: str
    literal: bytes
    whole: bool  # the literal is all of the template: no pattern is needed
    search: Any = None
    captures: dict[str, Converter] | None = None


def is_failing(scanner: Scanner, place: int) -> bool:
    """Whether a literal belongs to a message that may be a failure: those are never missed."""
    kinds = {scanner.messages[spelling.message].kind for spelling in scanner.spellings[place]}
    return not kinds.isdisjoint(("failure", "consequence", "wrapper", "foreign"))


@dataclass(frozen=True, slots=True)
class Match:
    """A confirmed message on a line: where in the line it begins (in bytes of UTF-8), and what it captured (by capture name)."""

    message: Message
    start: int
    captures: tuple[tuple[str, Value], ...]


class Scanner:
    """Holds the literals of ``messages``; one scanner serves any number of logs, one after another, in one thread.

    ``thrifty`` is for large logs: routine literals are reported once a chunk, and most literals are looked for only on
    lines that hold a marker (see :mod:`tools.logs.markers`). That finds every message of a failing kind; routine ones (INFO lines,
    values) are found where a run begins and in every thirty-second chunk of a server's steady traffic.
    """

    def __init__(self, messages: Sequence[Message], thrifty: bool) -> None:
        self.messages = tuple(messages)
        self.thrifty = thrifty
        by_literal: dict[bytes, list[_Spelling]] = {}
        for place, message in enumerate(self.messages):
            for says in message.says:
                try:
                    literal = literal_of(says)
                except ValueError:
                    continue  # the knowledge checker refuses it; a reader must still work
                by_literal.setdefault(literal, []).append(_Spelling(place, says, literal, _is_whole(says, literal)))
        self.literals = list(by_literal)
        self.spellings: list[list[_Spelling]] = list(by_literal.values())
        self._offset = len(_STRUCTURE)
        self.structure_kinds = [kind for kind, _, _ in _STRUCTURE]
        self._structure = [
            Literal(place, text.encode(), False, single) for place, (_, text, single) in enumerate(_STRUCTURE)
        ]
        self._usual = [(place, text.encode()) for place, (_, text, _) in enumerate(_STRUCTURE) if text in _USUAL]
        self._banners = frozenset(place for place, (kind, _, _) in enumerate(_STRUCTURE) if kind == BANNER)
        self._routine: set[int] = set()
        #: Routine literals whose last occurrence in a chunk is looked up, as they are written in the template.
        self._last = {
            place: text.encode()
            for place, (kind, text, single) in enumerate(_STRUCTURE)
            if single and kind in LAST_WANTED
        }
        for place, spellings in enumerate(self.spellings):
            if all(self.messages[spelling.message].kind in ROUTINE for spelling in spellings):
                self._routine.add(place)
                if any(self.messages[spelling.message].captures for spelling in spellings):
                    self._last[place + self._offset] = as_written(spellings[0].template, spellings[0].literal)
        #: What a thrifty scan reports once a chunk. (A harmless message on a marked line is reported every time: it takes
        #: away what the same line would otherwise count as.)
        self._once = frozenset(
            [place for place, (_, _, single) in enumerate(_STRUCTURE) if single]
            + [
                place + self._offset
                for place in self._routine
                if all(self.messages[spelling.message].kind != "harmless" for spelling in self.spellings[place])
            ]
        )
        self._full: Database | None = None
        self._gates: dict[bool, Database] = {}
        self._whole: Database | None = None
        self._dense = 0
        self._chunks = 0  # since a run began
        self._small_scans = 0
        self._options: Any = None
        self._confirmed: dict[tuple[tuple[int, ...], str], tuple[Match, ...]] = {}
        self._held: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[tuple[int, ...], frozenset[int]] = {}

    def _wanted(self, places: Iterable[int]) -> list[Literal]:
        return [Literal(place + self._offset, self.literals[place], True, place in self._routine) for place in places]

    def begin(self) -> None:
        """A new source follows."""
        self._chunks = self._dense = 0

    def scan(self, data: bytearray, size: int) -> list[tuple[int, int]]:
        """(end offset, id) of every hit in ``data[:size]``, in order of offset; ids below ``structural`` are structure."""
        if self.thrifty:
            return self._scan_gated(data, size)
        if self._full is None and size <= _SMALL_BYTES and self._small_scans < _SMALL_SCANS:
            # A database of everything costs 0.2 s to make; for one small text the literals it holds are found faster.
            self._small_scans += 1
            low = bytes(memoryview(data)[:size]).lower()
            heads = {low[at : at + SHORTEST_LITERAL] for at in range(len(low))}
            present = [
                place
                for place, literal in enumerate(self.literals)
                if literal[:SHORTEST_LITERAL] in heads and literal in low
            ]
            return Database(self._structure + self._wanted(present), False).scan(memoryview(data)[:size], 0)
        return self._everything().scan(memoryview(data)[:size], 0)

    def _everything(self) -> Database:
        if self._full is None:
            self._full = Database(self._structure + self._wanted(range(len(self.literals))), False)
        return self._full

    def _scan_gated(self, data: bytearray, size: int) -> list[tuple[int, int]]:
        self._chunks += 1
        steady = self._chunks > _EARLY_CHUNKS and self._chunks % _SAMPLED_CHUNK
        if self._dense > 0 or not steady:
            # The last chunk was full of marked lines (tracebacks), or routine lines are due: one scan for everything.
            self._dense -= 1
            if self._whole is None:
                self._whole = Database(self._structure + self._wanted(range(len(self.literals))), True)
            found = self._whole.scan(memoryview(data)[:size], 0)
            if self._banners.isdisjoint([identity for _, identity in found]):
                return found
            self._chunks = 0
            return self._everything().scan(memoryview(data)[:size], 0)
        found = self._marked(data, size)
        if not self._banners.isdisjoint([identity for _, identity in found]):
            # A run may begin here, and what the last one printed says nothing about it: every hit counts.
            self._chunks = 0
            return self._everything().scan(memoryview(data)[:size], 0)
        regions = marked_lines([offset for offset, identity in found if identity >= _MARKED], data, size)
        if sum(end - start for start, end in regions) * 8 > size:
            self._dense = _DENSE_CHUNKS
        hits = {hit for hit in found if hit[1] < _MARKED}
        if regions:
            everything = self._everything()
            view = memoryview(data)
            seen = {identity for _, identity in hits}
            for start, end in regions:
                for hit in everything.scan(view[start:end], start):
                    if hit[1] in self._once:
                        if hit[1] in seen:
                            continue
                        seen.add(hit[1])
                    hits.add(hit)
        return sorted(hits)

    def kinds_of(self, ids: tuple[int, ...]) -> frozenset[int]:
        """The structural kinds among ``ids``."""
        known = self._kinds.get(ids)
        if known is None:
            known = frozenset(self.structure_kinds[identity] for identity in ids if identity < self._offset)
            if len(self._kinds) > _MOST_REMEMBERED:
                self._kinds.clear()
            self._kinds[ids] = known
        return known

    def _marked(self, data: bytearray, size: int) -> list[tuple[int, int]]:
        """The hits of the structure and of the markers."""
        usual: list[tuple[int, int]] = []
        for place, text in self._usual:
            at = data.find(text, 0, min(size, _BEGINNING_BYTES))
            if at >= 0:
                usual.append((at + len(text), place))
        brisk = len(usual) == len(self._usual)
        gate = self._gates.get(brisk)
        if gate is None:
            pieces = rarest_pieces(
                literal
                for place, literal in enumerate(self.literals)
                if is_failing(self, place) and not is_covered(literal)
            )
            left_out = {place for place, _ in self._usual} if brisk else set()
            gate = self._gates[brisk] = Database(
                [literal for literal in self._structure if literal.identity not in left_out]
                + [Literal(_MARKED + place, piece, True, False) for place, piece in enumerate((*MARKERS, *pieces))],
                True,
            )
        found = gate.scan(memoryview(data)[:size], 0)
        return sorted(found + usual) if brisk else found

    def complete(self, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        """``ids`` with the routine literals of ``text`` that a thrifty scan reported elsewhere in the chunk."""
        if not self.thrifty:
            return ids
        known = self._held.get(text)
        if known is None:
            raw = text.encode("utf-8", "replace")
            known = tuple(dict.fromkeys(identity for _, identity in self._everything().scan(raw, 0)))
            if len(self._held) > _MOST_REMEMBERED:
                self._held.clear()
            if len(text) < _LONGEST_REMEMBERED:
                self._held[text] = known
        return tuple(dict.fromkeys((*ids, *known)))

    def scan_piece(self, data: bytearray, start: int, end: int) -> list[tuple[int, int]]:
        """The hits inside one long line, as (offset in ``data``, id)."""
        return self._everything().scan(memoryview(data)[start:end], start)[:2000]

    def is_plain_routine(self, identity: int) -> bool:
        """Whether a literal stands for routine messages without values only: seen often enough, it tells no more."""
        place = identity - self._offset
        return place in self._routine and identity not in self._last

    @property
    def structural(self) -> int:
        return self._offset

    def last_wanted(self, seen: set[int]) -> list[tuple[int, bytes]]:
        """(id, text) of what a thrifty scan reported once though its last line matters too: values and statistics."""
        wanted = [(identity, self._last[identity]) for identity in seen if identity in self._last]
        wanted.sort()
        return wanted

    def confirm(self, ids: tuple[int, ...], text: str) -> tuple[Match, ...]:
        """The messages behind the literals ``ids`` that ``text`` (a line without its prefix) really holds."""
        if not ids or max(ids) < self._offset:
            return ()
        key = (ids, text)
        known = self._confirmed.get(key)
        if known is None:
            raw = text.encode("utf-8", "replace")
            low = raw.lower()
            known = tuple(
                match
                for identity in ids
                if identity >= self._offset
                for spelling in self.spellings[identity - self._offset]
                if (match := self._match(spelling, raw, low)) is not None
            )
            if len(self._confirmed) > _MOST_REMEMBERED:
                self._confirmed.clear()
            if len(text) < _LONGEST_REMEMBERED:
                self._confirmed[key] = known
        return known

    def _match(self, spelling: _Spelling, raw: bytes, low: bytes) -> Match | None:
        if spelling.whole:
            start = low.find(spelling.literal)
            return Match(self.messages[spelling.message], start, ()) if start >= 0 else None
        if spelling.search is None:
            self._prepare(spelling)
        found = spelling.search(raw)  # bytes: the binding converts no offsets
        if found is None:
            return None
        values: list[tuple[str, Value]] = []
        for name, converter in (spelling.captures or {}).items():
            group = found.group(f"p_{name}")
            value = None if group is None else converter(group.decode("utf-8", "replace"))
            if value is not None:
                values.append((name, value))
        return Match(self.messages[spelling.message], found.start(), tuple(values))

    def _prepare(self, spelling: _Spelling) -> None:
        import re2

        if self._options is None:
            self._options = re2.Options()
            self._options.case_sensitive = False
            self._options.log_errors = False
        compiled = compile_template(spelling.template)
        wanted = self.messages[spelling.message].captures
        spelling.captures = {name: convert for name, convert in compiled.captures.items() if name in wanted}
        spelling.search = re2.compile(compiled.pattern, self._options).search
