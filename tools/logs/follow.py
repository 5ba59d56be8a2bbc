"""Follows a growing log and tells of every new failure as it is written (``tail -F``: survives rotation)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from knowledge.shapes import Message
from tools.evidence import Reading
from tools.logs.reader import SourceReader
from tools.logs.reading import scanner_for
from tools.logs.report import Reporter, redactor
from tools.logs.shapes import LogReading, ReadOptions
from tools.logs.source import CHUNK_BYTES, Chunk

_POLL_SECONDS = 0.25
#: A traceback that is still being written gets so long to come to its end.
_SETTLE_SECONDS = 1.0


def follow(
    path: Path,
    messages: Sequence[Message],
    on_failure: Callable[[LogReading], None],
    stop: Event,
    deadline_s: float | None = None,
) -> None:
    """Call ``on_failure`` with a reading of the current run whenever its count of failures has grown.

    Returns when ``stop`` is set or ``deadline_s`` seconds have passed. A file that is truncated or replaced is read
    from its beginning; one that is not there yet is waited for.
    """
    follower = _Follower(path, messages, on_failure)
    until = None if deadline_s is None else time.monotonic() + deadline_s
    try:
        while not stop.is_set() and (until is None or time.monotonic() < until):
            if not follower.advance():
                stop.wait(_POLL_SECONDS)
    finally:
        follower.close()


class _Follower:
    def __init__(self, path: Path, messages: Sequence[Message], on_failure: Callable[[LogReading], None]) -> None:
        self._path = path
        self._messages = messages
        self._on_failure = on_failure
        self._file: int | None = None
        self._identity: tuple[int, int] = (0, 0)
        self._offset = 0
        self._buffer = bytearray(CHUNK_BYTES)
        self._held = 0
        self._told: tuple[int, int] = (0, 0)
        self._quiet_since = time.monotonic()
        self._reader = self._fresh()

    def _fresh(self) -> SourceReader:
        scanner = scanner_for(self._messages, thrifty=False)
        year = time.localtime().tm_year
        return SourceReader(str(self._path), scanner, ReadOptions(), year, redactor())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _reopen(self) -> None:
        """Open the file, or the one that has taken its place."""
        try:
            state = self._path.stat()
        except OSError:
            return
        identity = (state.st_dev, state.st_ino)
        if self._file is not None and identity == self._identity and state.st_size >= self._offset:
            return
        rotated = self._file is not None
        if rotated and identity != self._identity and self._read():
            return  # the old file first, to its end
        self.close()
        self._file = os.open(self._path, os.O_RDONLY)
        self._identity, self._offset, self._held = identity, 0, 0
        if rotated and identity == self._identity:
            self._told = (0, 0)

    def advance(self) -> bool:
        """Read what is new; false when nothing was."""
        self._reopen()
        read = self._file is not None and self._read()
        now = time.monotonic()
        if read:
            self._quiet_since = now
        settled = now - self._quiet_since > _SETTLE_SECONDS
        if settled:
            self._reader.settle()
        self._tell()
        return read

    def _read(self) -> bool:
        if self._file is None:
            return False
        count = os.preadv(self._file, [memoryview(self._buffer)[self._held :]], self._offset)
        if count <= 0:
            return False
        self._offset += count
        self._held += count
        cut = self._buffer.rfind(b"\n", 0, self._held) + 1
        if cut == 0 and self._held == len(self._buffer):
            cut = self._held
        if cut:
            self._reader.feed(Chunk(self._buffer, cut))
            rest = self._held - cut
            self._buffer[:rest] = self._buffer[cut : self._held]
            self._held = rest
        return True

    def _tell(self) -> None:
        run = self._reader.run
        state = (run.number, run.failures)
        if run.failures and state > self._told:
            self._told = state
            reporter = Reporter(self._reader.year, run.number, None)
            evidence = tuple(reporter.evidence(run))
            reading = Reading(evidence, (run.coverage(run.number, False),))
            self._on_failure(LogReading(reading, (run.summary(),), tuple(run.blocks.values())))
