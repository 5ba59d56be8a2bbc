"""Where in a source a chunk's offset lies: its line number, its time, and whether it is inside the asked-for window."""

from __future__ import annotations

from datetime import datetime

from tools.logs.prefix import Prefix, parse_prefix, read_clock, strip_ansi
from tools.logs.source import Chunk

#: How many lines are looked at for a time where a line itself states none.
_LOOK_LINES = 40
_SURVEY_LINES = 400
#: No prefix is longer than this.
HEAD_BYTES = 512
#: Lines of the access log state no time and are part of no traceback.
ACCESS_HEAD = b"INFO:     "


def decoded(raw: bytearray) -> str:
    """A line as text: damaged UTF-8 becomes U+FFFD, NUL bytes vanish."""
    text = raw.decode("utf-8", "replace")
    return text.replace("\x00", "") if "\x00" in text else text


def plain(raw: bytearray) -> str:
    """A line as text without colours, too."""
    text = raw.decode("utf-8", "replace")
    return strip_ansi(text.replace("\x00", "")) if "\x1b" in text or "\x00" in text else text


def head_of(data: bytearray, start: int, end: int) -> Prefix:
    """The prefix of the line ``data[start:end]``."""
    return parse_prefix(plain(data[start : min(end, start + HEAD_BYTES)]))


def line_end(data: bytearray, start: int, limit: int) -> int:
    end = data.find(b"\n", start, limit)
    return limit if end < 0 else end


class Cursor:
    """Counts the lines and bytes of one source while its chunks pass by; ``year`` completes stamps that state none."""

    def __init__(self, year: int) -> None:
        self.year = year
        self.bytes = 0  # before the current chunk
        self._line = 1  # the number of the line at _counted
        self._counted = 0  # up to this offset of the chunk newlines were counted
        self._numbers: list[int] | None = None
        self._clock: str | None = None
        self._searched = 0  # no line before this offset needs to be searched for a time again

    def enter(self, chunk: Chunk) -> None:
        """A new chunk begins."""
        self._numbers = chunk.lines
        if chunk.lines is not None:
            self._line = 1
        self._counted = self._searched = 0

    def leave(self, data: bytearray, size: int) -> None:
        """The chunk is done."""
        self.number(data, size)
        self.bytes += size
        self._counted = 0

    def at(self, clock: str | None) -> datetime | None:
        return None if clock is None else read_clock(clock, self.year)

    def number(self, data: bytearray, offset: int) -> int:
        """The line number of ``offset``; offsets may only grow within a chunk."""
        if offset > self._counted:
            self._line += data.count(b"\n", self._counted, offset)
            self._counted = offset
        return self._line if self._numbers is None else self._original(self._line - 1)

    @property
    def consecutive(self) -> bool:
        """Whether each line of the chunk has the number after that of the line before."""
        return self._numbers is None

    def reach(self, offset: int, number: int) -> None:
        """Line ``number`` begins at ``offset``: who walked there from a known line has counted (if ``consecutive``)."""
        if offset > self._counted:
            self._counted, self._line = offset, number

    def absolute(self, data: bytearray, offset: int) -> int:
        """The line number of an offset out of order, where a segment ends: no line before it is asked for later."""
        if offset >= self._counted:
            return self.number(data, offset)
        if self._numbers is not None:
            return self._original(data.count(b"\n", 0, offset))
        return self._line - data.count(b"\n", offset, self._counted)

    def _original(self, place: int) -> int:
        numbers = self._numbers or [1]
        return numbers[min(place, len(numbers) - 1)]

    def forget_clock(self) -> None:
        """A new run begins: times of the old one say nothing about its lines."""
        self._clock = None

    def clock_at(self, data: bytearray, offset: int, prefix: Prefix) -> str | None:
        """The time that the line at ``offset`` states, or the one stated last before it."""
        if prefix.clock is not None:
            self._clock = prefix.clock
        else:
            end = offset - 1
            for _ in range(_LOOK_LINES):
                if end <= self._searched:
                    break
                start = data.rfind(b"\n", 0, end) + 1
                clock = None if data.startswith(ACCESS_HEAD, start) else head_of(data, start, end).clock
                if clock:
                    self._clock = clock
                    break
                end = start - 1
        self._searched = max(self._searched, offset)
        return self._clock

    def last_clock(self, data: bytearray, low: int, high: int) -> str | None:
        """The last time that is stated in ``data[low:high]``."""
        end = high
        for _ in range(_SURVEY_LINES):
            if end <= low:
                return None
            start = max(low, data.rfind(b"\n", low, end) + 1)
            clock = None if data.startswith(ACCESS_HEAD, start) else head_of(data, start, end).clock
            if clock:
                return clock
            end = start - 1
        return None

    def first_at_or_after(self, data: bytearray, size: int, limit: datetime, after: bool) -> int:
        """The offset of the first line that states a time at (or, with ``after``, beyond) ``limit``.

        Times are taken to grow along the log; lines without one belong to the line before them.
        """
        low, high = 0, size
        while low < high:
            middle = max(low, data.rfind(b"\n", 0, (low + high) // 2) + 1)
            position, stated = middle, None
            while position < high and stated is None:
                end = line_end(data, position, size)
                stated = self.at(head_of(data, position, end).clock)
                position = end + 1
            if stated is not None and _is_before(stated, limit, after):
                low = max(position, low + 1)
            elif middle > low:
                high = middle
            else:
                break
        return min(low, size)


def _is_before(stated: datetime, limit: datetime, after: bool) -> bool:
    if stated.tzinfo is None and limit.tzinfo is not None:
        limit = limit.replace(tzinfo=None)
    elif stated.tzinfo is not None and limit.tzinfo is None:
        stated = stated.replace(tzinfo=None)
    return stated <= limit if after else stated < limit
