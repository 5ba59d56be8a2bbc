"""The server's own log on standard error: one JSON object a line, or plain text where a person looks at a terminal.

It never holds what somebody sent. A request is named by its id and its route's template, an error by its type and the
places it passed, because an exception's words can carry a piece of a user's log; what remains is redacted all the same.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import stat
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any

from tools.redaction import clean, redact

#: Characters of a message, and of any other text value.
_MOST = 2000
#: Lines that wait for a reader at most; about a megabyte.
MOST_QUEUED = 4000
#: A text up to this long may come again.
_SHORT = 80
_MOST_FRAMES = 30
_ROOT = Path(__file__).resolve().parents[1]
REQUESTS = logging.getLogger("assistant.requests")


def begin(form: str = "", stream: IO[str] | None = None) -> None:
    """Send every library's log there. ``form`` is ``json``, ``text``, or empty for what fits the stream."""
    out = stream or sys.stderr
    json_wanted = form == "json" or (not form and not out.isatty())
    handler = Piped(out.fileno()) if _is_pipe(out) else logging.StreamHandler(out)
    handler.setFormatter(Json() if json_wanted else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("assistant").setLevel(logging.INFO)
    # A person at a terminal sees the server's troubles; a line for each request is for machines.
    REQUESTS.setLevel(logging.INFO if json_wanted else logging.WARNING)


def end() -> None:
    """Wait a moment until all that was logged is written; what ends by a signal ends without Python's own farewell."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Piped):
            handler.drain()


class Piped(logging.Handler):
    """Writes lines into a pipe from a thread of its own: a reader that is late or gone keeps no request waiting.

    What does not fit into the queue is lost and counted; the count stands in the log where reading went on.
    """

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._lost = 0
        self._queued = self._written = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line; called with the handler's lock held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="own-log", daemon=True)
            self._thread.start()
            atexit.register(self.drain)
        if self._queued - self._written >= MOST_QUEUED:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            said = logging.LogRecord(__name__, logging.WARNING, "", 0, "%d lines of this log were lost", (lost,), None)
            self._put(said)
        self._put(record)

    def drain(self, seconds: float = 1.0) -> None:
        """Wait until all is written, no longer than ``seconds``."""
        until = time.monotonic() + seconds
        while self._written < self._queued and time.monotonic() < until:
            time.sleep(0.005)

    def _put(self, record: logging.LogRecord) -> None:
        self._lines.put((self.format(record) + "\n").encode("utf-8", "replace"))
        self._queued += 1

    def _write(self) -> None:
        while True:
            rest = memoryview(self._lines.get())
            try:
                # Past Python's own buffer: its lock, held by a thread that waits for ever, would keep the process from ending.
                while rest:
                    rest = rest[os.write(self._pipe, rest) :]
            except OSError:
                pass  # nobody reads any more, and nobody could be told
            self._written += 1


def _is_pipe(stream: IO[str]) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, fit to be kept: times in UTC, no secret, no control character, no words of an exception."""
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _safe(record.getMessage()),
    }
    for name, value in getattr(record, "fields", {}).items():
        found[name] = value if isinstance(value, (int, float, bool, type(None))) else _safe(str(value))
    if record.exc_info and record.exc_info[0] is not None:
        found["error"] = record.exc_info[0].__name__
        found["at"] = _places(record.exc_info[2])
    return found


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII."""
        return json.dumps(fields_of(record))


class Text(logging.Formatter):
    """Time, level, message, and the rest as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        found = fields_of(record)
        head = f"{found.pop('time')[11:19]} {found.pop('level')} {found.pop('message')}"
        found.pop("logger")
        at = found.pop("at", [])
        return "\n    ".join([" ".join([head, *(f"{name}={value}" for name, value in found.items())]), *at])


def _safe(text: str) -> str:
    """``text`` in one line without secrets; methods, routes and names come again with every request."""
    return _short(text) if len(text) <= _SHORT else _cleaned(text)


@lru_cache(maxsize=512)
def _short(text: str) -> str:
    return _cleaned(text)


def _cleaned(text: str) -> str:
    return " ".join(redact(clean(text[: _MOST * 2])).split())[:_MOST]


def _places(trace: TracebackType | None) -> list[str]:
    """File, line and function of the last frames; files of this program are named from its root."""
    places: list[str] = []
    for frame in traceback.extract_tb(trace)[-_MOST_FRAMES:]:
        path = Path(frame.filename)
        name = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name
        places.append(f"{name}:{frame.lineno} {frame.name}")
    return places
