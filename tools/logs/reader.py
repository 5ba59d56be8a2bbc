"""Reads one source: hits of the scanner become lines, lines become messages, tracebacks, runs and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from tools.evidence import Origin
from tools.logs import scan
from tools.logs.access import count_answered, read_access, refused_lines
from tools.logs.blocks import HEADER, Block
from tools.logs.commands import read_banner
from tools.logs.cursor import ACCESS_HEAD, HEAD_BYTES, Cursor, decoded, line_end, plain
from tools.logs.hits import ChunkHits, HitLines, Line
from tools.logs.judge import FAILING, Judge
from tools.logs.kernel import read_kernel
from tools.logs.prefix import Prefix, Prefixes, parse_prefix, strip_ansi
from tools.logs.runs import HEADS, Run
from tools.logs.scan import Match, Scanner
from tools.logs.shapes import ReadOptions
from tools.logs.source import Chunk
from tools.logs.stages import STAGE_OF_MESSAGE, read_progress
from tools.logs.tracebacks import Tracebacks

#: How much of a very long line is looked at: its head, and the surroundings of every hit.
_LONG_LINE = 16_384
_AROUND = 2_048
#: So much is made text at once where lines are walked over one by one.
_AHEAD_BYTES = 4_096
#: Lines that are looked at for times and process names where a run begins.
_SURVEY_LINES = 400
_SURVEY_BYTES = 20_000
#: Requests are counted exactly in so many chunks, in every fourth one after that.
_COUNTED_CHUNKS = 32
#: Statistics lines of a chunk's end that are kept to be read when the run ends.
_LAST_STATS = 24
#: A routine message without values is counted so often in a run.
_ROUTINE_ENOUGH = 100
_MOST_RUNS = 300
#: What stands on a line that may be a failure: whether it is one must not depend on what else the chunk holds.
_ALARMING = frozenset({scan.LEVEL, scan.EXCEPTION, scan.DEATH})
#: What says how the run fares.
_STRUCTURED = frozenset({scan.READY, scan.STATS, scan.PROGRESS, scan.KERNEL})


class SourceReader:
    """Reads the chunks of one source in order; ``run`` is the run being read, ``runs`` those before it.

    Call :meth:`feed` for every chunk and :meth:`finish` once. ``year`` completes stamps that state none.
    """

    def __init__(
        self,
        name: str,
        scanner: Scanner,
        options: ReadOptions,
        year: int,
        redact: Callable[[str], str],
        pasted: bool = False,
    ) -> None:
        self.name = name
        self.year = year
        self.runs: list[Run] = []
        self.skipped_runs = 0
        self._scanner = scanner
        self._options = options
        self._redact = redact
        self._pasted = pasted
        scanner.begin()
        self._cursor = Cursor(year)
        self._hit_lines = HitLines(scanner)
        self.run = Run(name, 1, 1)
        self._judge = Judge(self.run, self._cursor.at, redact)
        self._prefixes = Prefixes()
        self._tracebacks = Tracebacks(lambda: self._judge, self._prefixes, strict=pasted)
        self._fresh = True  # the run's beginning was not surveyed yet
        self._past_until = False
        self._accessed = 0
        self._segment = 0  # where the current run begins in the chunk
        self._high = 0  # where the chunk ends
        self._chunk_kinds: set[int] = set()
        self._last_stats: list[tuple[int, bytes]] = []
        self._routine_seen: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """How much was read, in bytes of plain text."""
        return self._cursor.bytes

    def feed(self, chunk: Chunk) -> None:
        """Read the next chunk."""
        data, size = chunk.data, chunk.size
        self._cursor.enter(chunk)
        low, high = self._window(data, size)
        if low < high:
            self._read(data, low, high, self._scanner.scan(data, size))
        self._cursor.leave(data, size)

    def settle(self) -> None:
        """Nothing more came for a while: judge what is still open (used while following a log)."""
        self._tracebacks.close_all()
        self._judge.flush_all()

    def finish(self) -> None:
        """The source is read to its end, or as far as time allowed."""
        self.settle()
        self._end_stats()
        self.runs.append(self.run)

    def _read(self, data: bytearray, low: int, high: int, hits: list[tuple[int, int]]) -> None:
        self._segment, self._high = low, high
        structural, kinds = self._scanner.structural, self._scanner.structure_kinds
        ids = {identity for _, identity in hits}
        self._chunk_kinds = {kinds[identity] for identity in ids if identity < structural}
        if self._fresh:
            self._survey(data, low, high)
        lines = self._hit_lines.of(data, low, high, hits, ids)
        position = low
        while True:
            if self._tracebacks.open_now:
                if position >= high:
                    break
                position = self._walk(data, position, high, lines)
                continue
            line = lines.following(position)
            if line is None:
                break
            self._line(data, line)
            position = line[1] + 1
        self._end_segment(data, high)

    def _end_segment(self, data: bytearray, high: int) -> None:
        """A chunk, or a run inside it, ends at ``high``."""
        run = self.run
        self._count_access(data, self._segment, high)
        if scan.STATS in self._chunk_kinds and self._scanner.thrifty:
            self._keep_stats(data, self._segment, high)
        last = self._cursor.last_clock(data, self._segment, high)
        if last is not None:
            run.last_at = self._cursor.at(last) or run.last_at
        run.last_line = max(run.first_line, self._cursor.absolute(data, max(0, high - 1)))
        run.bytes = self._cursor.bytes + high - run.first_byte

    # -- lines ---------------------------------------------------------------------------------------------------

    def _text(self, data: bytearray, start: int, end: int, ids: tuple[int, ...]) -> str:
        if end - start <= _LONG_LINE:
            return plain(data[start:end])
        pieces = [decoded(data[start : start + HEAD_BYTES])]
        for offset, identity in self._scanner.scan_piece(data, start, end):
            if identity in ids and len(pieces) < 8:
                pieces.append(decoded(data[max(start, offset - _AROUND) : min(end, offset + _AROUND)]))
        return strip_ansi(" ... ".join(pieces))

    def _line(self, data: bytearray, line: Line) -> None:
        """A line with hits that is part of no open traceback."""
        start, end, ids = line
        for segment in _segments(self._text(data, start, end, ids)):
            self._segment_of_line(data, start, end, segment, ids)

    def _segment_of_line(self, data: bytearray, start: int, end: int, text: str, ids: tuple[int, ...]) -> None:
        prefix = self._prefixes.read(text)
        body = text[prefix.body :]
        kinds = self._scanner.kinds_of(ids)
        alarming = not kinds.isdisjoint(_ALARMING)
        if not alarming:
            ids = self._unspent(ids)
        if scan.BANNER in kinds:
            self._banner(data, start, end, text, prefix)
        if prefix.process is not None:
            self._identify(prefix)
        number = self._cursor.number(data, start)
        if scan.PROCESS in kinds and text.startswith("Process ") and text.rstrip().endswith(":"):
            self._tracebacks.name_next(number, text.rstrip()[8:-1])
        matches = self._matches(ids, prefix, text, body)
        if alarming and not matches and len(text) < _LONG_LINE:
            whole = text if _read_whole(prefix) else body
            matches = self._matches(self._scanner.complete(ids, whole), prefix, text, body)
        if prefix.origin == "kernel" or not kinds.isdisjoint(_STRUCTURED):
            self._structure(kinds, prefix, text, body, number, data, start)
        header = body.find(HEADER) if scan.TRACEBACK in kinds else -1
        if header == 0 or header > 0 and prefix.level not in ("INFO", "DEBUG"):
            clock = self._cursor.clock_at(data, start, prefix)
            self._tracebacks.open(prefix, body, text, number, clock, matches)
            return
        if matches:
            clock = prefix.clock
            if clock is None and any(self._judge.is_new(match, prefix.process) for match in matches):
                clock = self._cursor.clock_at(data, start, prefix)
            for match in matches:
                self._judge.occurs(match, number, clock, prefix.process, text)
                self.run.stages.enter(STAGE_OF_MESSAGE.get(match.message.id, ""), clock, number)
        if scan.SHUTDOWN in kinds or scan.DEATH in kinds:
            # Whether a stop was asked for or followed from a failure is decided here: judge what came before first.
            self._tracebacks.close_complete()
            self._judge.flush_all()
            self.run.failing_now = bool(self._tracebacks.open_now)
        self._judge.line(prefix, body, text, number, matches, self._pasted)

    def _walk(self, data: bytearray, position: int, high: int, lines: ChunkHits) -> int:
        """Line after line from ``position`` on while at least one traceback is open; where the first line after stands.

        Most lines here are frames: what they cost decides how fast a log full of tracebacks is read.
        """
        tracebacks, cursor = self._tracebacks, self._cursor
        open_now, structural = tracebacks.open_now, self._scanner.structural
        while position < high and open_now:
            ahead = _lines_ahead(data, position, high) if cursor.consecutive else []
            number = cursor.number(data, position)
            for text in ahead or ("",):
                end = position + len(text) if ahead else line_end(data, position, high)
                ids = lines.on(position, end) if lines.until <= end + 1 else ()
                tracebacks.walked += 1
                if not tracebacks.walked & 31:
                    tracebacks.expire()
                if ids or not data.startswith(ACCESS_HEAD, position):
                    if not ahead:
                        text = self._text(data, position, end, ids).removesuffix("\r")
                    taken = tracebacks.take(text, number)
                    if taken is None:
                        if ids:
                            cursor.reach(position, number)
                            if ahead:
                                self._segment_of_line(data, position, end, text, ids)
                            else:
                                self._line(data, (position, end, ids))
                    elif ids and (taken[0].stage == "tail" or max(ids) >= structural):
                        self._attach(taken[0], taken[1], text, number, ids)
                number += 1
                position = end + 1
                if not open_now:
                    break
            if cursor.consecutive:
                cursor.reach(position, number)
        return position

    def _attach(self, block: Block, body: str, text: str, number: int, ids: tuple[int, ...]) -> None:
        """A line of an open traceback may hold messages."""
        found = self._scanner.confirm(ids, body)
        if not found and block.complete and len(text) < _LONG_LINE:
            found = self._scanner.confirm(self._scanner.complete(ids, body), body)
        if len(found) > 1 and any(match.message.kind == "harmless" for match in found):
            found = tuple(match for match in found if match.message.kind not in FAILING)
        if found:
            self._tracebacks.attach(block, found, number, text, block.complete)

    def _unspent(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """``ids`` without routine messages that this run has shown often enough."""
        structural, seen = self._scanner.structural, self._routine_seen
        left: list[int] = []
        for identity in ids:
            if identity >= structural and self._scanner.is_plain_routine(identity):
                seen[identity] = seen.get(identity, 0) + 1
                if seen[identity] > _ROUTINE_ENOUGH:
                    continue
            left.append(identity)
        return tuple(left)

    def _matches(self, ids: tuple[int, ...], prefix: Prefix, text: str, body: str) -> tuple[Match, ...]:
        """The messages of a line, each once with the captures of all its spellings."""
        whole = _read_whole(prefix)
        found = self._scanner.confirm(ids, text if whole else body)
        if not found:
            return ()
        if len(found) > 1:
            merged: dict[str, Match] = {}
            for match in found:
                known = merged.get(match.message.id)
                if known is not None:
                    captures = tuple(dict(known.captures + match.captures).items())
                    match = Match(match.message, min(match.start, known.start), captures)
                merged[match.message.id] = match
            found = tuple(merged.values())
        return self._judge.admit(found, prefix, body, prefix.body if whole else 0)

    def _identify(self, prefix: Prefix) -> None:
        """Replace a bare pid by the label that its process has elsewhere in the run."""
        process = prefix.process or ""
        if process.startswith("pid="):
            prefix.process = self.run.pids.get(process[4:], process)
        self.run.note_process(prefix.process or process)

    def _structure(
        self, kinds: frozenset[int], prefix: Prefix, text: str, body: str, number: int, data: bytearray, start: int
    ) -> None:
        run = self.run
        if prefix.level in (None, "INFO"):
            if scan.READY in kinds and not run.ready:
                run.ready, run.ready_line = True, number
                run.stages.enter("ready", self._cursor.clock_at(data, start, prefix), number)
            if scan.STATS in kinds:
                run.stats.read(body, number)
        if scan.PROGRESS in kinds:
            progress = read_progress(text[-600:])
            if progress:
                run.stages.advance(progress, self._cursor.clock_at(data, start, prefix), number)
        if scan.KERNEL in kinds or prefix.origin == "kernel":
            run.kernel_lines = True
            origin = Origin(run.source, number, prefix.process, self._cursor.at(prefix.clock), number)
            read_kernel(run.facts, body, origin, self._judge.quote(text))

    # -- runs ----------------------------------------------------------------------------------------------------

    def _banner(self, data: bytearray, start: int, end: int, text: str, prefix: Prefix) -> None:
        head = next((head for head in HEADS if head in text), None)
        if head is None or prefix.level not in (None, "INFO") or (head == "  version " and "█" not in text):
            return
        if self.run.begins_another(head, prefix):
            self._begin_run(data, start)
        run = self.run
        run.heads.setdefault(head, prefix.process)
        if not (run.ready or run.access.answered or run.stats.samples):
            run.from_start = True
        if prefix.process:
            self._identify(prefix)
        number = self._cursor.number(data, start)
        clock = self._cursor.clock_at(data, start, prefix)
        run.stages.enter("starting", clock, number)
        origin = Origin(run.source, number, prefix.process, self._cursor.at(clock), number)
        whole = strip_ansi(decoded(data[start : min(end, start + 65_536)]))
        read_banner(run.facts, whole, origin, self._judge.quote(text))

    def _begin_run(self, data: bytearray, start: int) -> None:
        self._tracebacks.close_all()
        self._judge.flush_all()
        number = self._cursor.number(data, start)
        old = self.run
        if start > self._segment:
            self._end_segment(data, start)
        self._end_stats()
        old.last_line = max(old.first_line, number - 1)
        self._keep_run(old)
        self._segment = start
        self.run = Run(self.name, old.number + 1, number, self._cursor.bytes + start)
        self._judge = Judge(self.run, self._cursor.at, self._redact)
        self._cursor.forget_clock()
        self._routine_seen.clear()
        self._survey(data, start, self._high)

    def _keep_run(self, run: Run) -> None:
        """A run that nobody asked about keeps its summary only."""
        wanted = self._options.run
        self.runs.append(run)
        if wanted != "all" and run.number != wanted:
            run.forget_details()
        if len(self.runs) > _MOST_RUNS:
            del self.runs[20 if self.runs[20].number != wanted else 21]
            self.skipped_runs += 1

    def _survey(self, data: bytearray, low: int, high: int) -> None:
        """The first lines of a run: its first time, its processes."""
        self._fresh = False
        run = self.run
        for start, text in islice(_heads(data, low, high), _SURVEY_LINES):
            if run.first_at is not None and start - low > _SURVEY_BYTES:
                return
            prefix = self._prefixes.read(text)
            if prefix.clock and run.first_at is None:
                run.first_at = self._cursor.at(prefix.clock)
            if prefix.process and not prefix.process.startswith("pid="):
                run.note_process(prefix.process)
            run.of_vllm = run.of_vllm or prefix.origin == "vllm"

    # -- requests and statistics ---------------------------------------------------------------------------------

    def _count_access(self, data: bytearray, low: int, high: int) -> None:
        access = self.run.access
        if scan.ACCESS in self._chunk_kinds:
            # Every request costs as much to count as to scan for: in a long log every fourth chunk stands for four.
            self._accessed += 1
            if self._accessed <= _COUNTED_CHUNKS:
                access.answered += count_answered(data, low, high)
            elif self._accessed % 4 == 0:
                access.answered += 4 * count_answered(data, low, high)
        if scan.REFUSED not in self._chunk_kinds:
            return
        lines, times = refused_lines(data, low, high)
        for start, end in lines:
            text = decoded(data[start : min(end, start + 4096)])
            found = read_access(text)
            if found:
                known = access.first_failed if found[2] >= 500 else access.first_refused
                access.take(*found, 0 if known else self._cursor.absolute(data, start), text, times)

    def _keep_stats(self, data: bytearray, low: int, high: int) -> None:
        """In a large log statistics are sampled; the last lines decide whether the engine stands still."""
        kept: list[tuple[int, bytes]] = []
        at = data.rfind(b"Avg generation throughput: ", low, high)
        while at >= 0 and len(kept) < _LAST_STATS:
            start = max(low, data.rfind(b"\n", low, at) + 1)
            kept.append((start, bytes(data[start : min(line_end(data, at, high), start + 2048)])))
            at = data.rfind(b"Avg generation throughput: ", low, start)
        if kept:
            first = self._cursor.absolute(data, kept[-1][0])
            self._last_stats = [(first + place, line) for place, (_, line) in enumerate(reversed(kept))]

    def _end_stats(self) -> None:
        stats = self.run.stats
        if self._last_stats:
            stats.begin_end()
        for number, line in self._last_stats:
            text = strip_ansi(line.decode("utf-8", "replace"))
            stats.read(text[parse_prefix(text).body :], number)
        self._last_stats = []

    # -- window --------------------------------------------------------------------------------------------------

    def _window(self, data: bytearray, size: int) -> tuple[int, int]:
        """The part of a chunk between ``since`` and ``until``."""
        since, until = self._options.since, self._options.until
        if since is None and until is None:
            return 0, size
        if self._past_until:
            return 0, 0
        low = self._cursor.first_at_or_after(data, size, since, False) if since is not None else 0
        high = self._cursor.first_at_or_after(data, size, until, True) if until is not None else size
        self._past_until = high < size
        if low > 0 or high < size:
            self.run.truncated = True
        if low > 0 and self.run.last_line == 0:
            self.run.first_line = self._cursor.number(data, low)
            self.run.first_byte = self._cursor.bytes + low
        return low, max(low, high)


def _lines_ahead(data: bytearray, position: int, high: int) -> list[str]:
    """Some lines from ``position`` on, where they are ASCII without colours and returns and not long; else none."""
    stop = data.rfind(b"\n", position, min(high, position + _AHEAD_BYTES))
    raw = data[position : max(position, stop)]
    if not raw.isascii() or b"\x1b" in raw or b"\r" in raw or b"\x00" in raw:
        return []
    return raw.decode("ascii").split("\n") if raw else []


def _heads(data: bytearray, position: int, high: int) -> Iterator[tuple[int, str]]:
    """Where each line begins and its text, of a long or coloured one only as much as a prefix can take."""
    while position < high:
        for text in _lines_ahead(data, position, high):
            yield position, text
            position += len(text) + 1
        if position < high:
            end = line_end(data, position, high)
            yield position, plain(data[position : min(end, position + HEAD_BYTES)])
            position = end + 1


def _read_whole(prefix: Prefix) -> bool:
    """Whether templates may name what the prefix itself holds ("NCCL WARN")."""
    return prefix.origin not in ("vllm", "")


def _segments(text: str) -> list[str]:
    """The pieces that carriage returns separate (a progress bar draws itself again and again on one line)."""
    if "\r" not in text:
        return [text]
    pieces = [piece for piece in text.split("\r") if piece.strip()]
    return pieces if len(pieces) <= 200 else pieces[:10] + pieces[-190:]
