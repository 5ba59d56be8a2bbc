"""The server's own log on standard error: one JSON object a line, or plain text where a person looks at a terminal.

It never holds what somebody sent. A request is named by its id and its route's template, an error by its type and the
places it passed, because an exception's words can carry a piece of a user's log; what remains is redacted all the same.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tools.redaction import clean, redact

#: Characters of a message, and of any other text value.
_MOST = 2000
#: A text up to this long may come again.
_SHORT = 80
_MOST_FRAMES = 30
_ROOT = Path(__file__).resolve().parents[1]
REQUESTS = logging.getLogger("assistant.requests")


def begin(form: str = "", stream: IO[str] | None = None) -> None:
    """Send every library's log there. ``form`` is ``json``, ``text``, or empty for what fits the stream."""
    out = stream or sys.stderr
    json_wanted = form == "json" or (not form and not out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(Json() if json_wanted else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("assistant").setLevel(logging.INFO)
    # A person at a terminal sees the server's troubles; a line for each request is for machines.
    REQUESTS.setLevel(logging.INFO if json_wanted else logging.WARNING)


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
