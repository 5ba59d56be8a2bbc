"""What every source of lines and events has in common.

A source is looked at in two steps. :meth:`Source.survey` asks what is there: it brings back facts (restarts, limits,
who ended the container) and the streams of lines that belong to the incident. Each :class:`Stream` is read afterwards,
line by line, so that a log of any size passes through in bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tools.evidence import QUOTE_LIMIT, Evidence, Origin, Reading, Value
from tools.outbound import Limits, Outbound, OutboundError, Streamed

#: Lines longer than this are cut; vLLM's longest (its arguments) stay below 64 KiB.
LONGEST_LINE = 1 << 18
#: An error's body is read so far, for its reason.
_ERROR_BYTES = 64 * 1024


class SourceFailedError(Exception):
    """A source could not be read, or not to its end. The message is a sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a source is read: times (aware, UTC), bytes and lines of each stream, seconds of each request."""

    since: datetime | None = None
    until: datetime | None = None
    max_bytes: int = 256 * 1024 * 1024
    max_lines: int = 2_000_000
    deadline_s: float = 30.0

    @property
    def limits(self) -> Limits:
        """The same as limits of a request that is streamed."""
        return Limits(self.deadline_s, max_bytes=self.max_bytes, max_decompressed_bytes=self.max_bytes)


@dataclass(frozen=True, slots=True)
class Line:
    """One line as a source hands it on: when it was written (UTC), what wrote it (a container, a unit), its text."""

    at: datetime | None
    origin: str
    text: str

    def stamped(self) -> bytes:
        """The line as the log reader takes it, with its time in front and a line break at its end.

        What was collected as one entry (a traceback) becomes several lines of one time.
        """
        stamp = f"{self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} " if self.at is not None else ""
        text = self.text.replace("\n", f"\n{stamp}") if "\n" in self.text else self.text
        return f"{stamp}{text}\n".encode("utf-8", "replace")


Lines = AsyncGenerator[list[Line], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """The lines of one container, unit or pod in the order they were written.

    ``lines(outbound, bounds)`` yields them in batches. It raises :class:`SourceFailedError` or ``OutboundError`` where they
    break off, so that a cut log is never taken for a whole one.
    """

    name: str
    lines: Callable[[Outbound, Bounds], Lines]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source shows: facts, and the streams that are worth reading, in the order they should be read."""

    reading: Reading = field(default_factory=Reading)
    streams: tuple[Stream, ...] = ()


class Source(Protocol):
    """A place that keeps lines and events of a target."""

    @property
    def name(self) -> str:
        """Which place it is, for people."""
        ...

    async def survey(self, outbound: Outbound, bounds: Bounds) -> Survey:
        """What is there. Raises :class:`SourceFailedError` or ``OutboundError`` where nothing could be asked."""
        ...


def fact(name: str, value: Value, source: str, quote: str = "", at: datetime | None = None) -> Evidence:
    """Evidence that an API stated. What it quotes is cleaned and redacted here."""
    from tools.redaction import clean, redact

    if isinstance(value, str):
        value = redact(clean(value))[:QUOTE_LIMIT]
    return Evidence(name, "present", value, Origin(source, at=at), redact(clean(quote))[:QUOTE_LIMIT])


def moment(text: object) -> datetime | None:
    """An RFC 3339 time ("2026-11-21T10:00:00.123456789Z") in UTC; None for anything else, and for the year 1."""
    if not isinstance(text, str) or not 20 <= len(text) <= 40:
        return None
    try:
        head, dot, rest = text.partition(".")
        if dot:
            digits = rest.rstrip("Zz+-:0123456789")
            zone = rest.lstrip("0123456789")
            number = rest[: len(rest) - len(zone)][:6]
            if digits:
                return None
            text = f"{head}.{number.ljust(6, '0')}{zone}"
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if found.tzinfo is None or found.year < 1971:
        return None  # Go's zero time: it did not happen
    return found.astimezone(UTC)


def as_json(body: bytes, where: str) -> Any:
    """The body as JSON; raises :class:`SourceFailedError` that says what came instead."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        head = body[:200].lstrip().lower()
        if head.startswith((b"<!doctype", b"<html")):
            what = "with an HTML page, perhaps of a login in front of it"
        elif not body:
            what = "with an empty body"
        else:
            what = "with something that is no complete JSON"
        raise SourceFailedError(f"{where} answered {what}.") from None


def table(value: object) -> dict[str, Any]:
    """``value`` if it is a JSON object, else an empty one: an answer may lack what its reference promises."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON list; anything else in it is passed over."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def text(value: object, most: int = 300) -> str:
    """``value`` if it is a text, cut; else an empty one."""
    return value[:most] if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """``value`` if it is a whole number that a JSON API may state."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 60 else None


async def error_text(answer: Streamed) -> bytes:
    """The beginning of an error's body."""
    parts = b""
    try:
        async for chunk in answer.chunks:
            parts += chunk
            if len(parts) > _ERROR_BYTES:
                break
    except OutboundError:
        pass
    return parts[:_ERROR_BYTES]


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines of a body that comes in chunks; a line beyond :data:`LONGEST_LINE` is handed on in pieces."""
    held = b""
    async for chunk in chunks:
        pieces = (held + chunk).split(b"\n")
        held = pieces.pop()
        while len(held) > LONGEST_LINE:
            pieces.append(held[:LONGEST_LINE])
            held = held[LONGEST_LINE:]
        if pieces:
            yield pieces
    if held:
        yield [held]
