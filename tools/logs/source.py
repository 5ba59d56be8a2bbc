"""Bytes of a log in one reused buffer: plain, gzip, zstandard, UTF-16 or JSON lines, from a file, memory or a pipe.

A chunk ends at a line's end, so nothing that is searched for is cut in two; a line longer than the buffer is handed on
in pieces that count as one line. Memory is the buffer and what the decompressor needs, whatever the size of the log.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from tools.logs.shapes import LogInput

#: Large enough that Python's cost per chunk vanishes, small enough to stay in a processor's cache while it is scanned.
CHUNK_BYTES = 1 << 20
#: How much is looked at to recognise the encoding and JSON lines.
_HEAD_BYTES = 1 << 16
_MAGIC_GZIP = b"\x1f\x8b"
_MAGIC_ZSTD = b"\x28\xb5\x2f\xfd"
_TEXT_KEYS = ("log", "message", "msg", "MESSAGE", "line", "body", "textPayload")
_TIME_KEYS = ("time", "timestamp", "@timestamp", "ts", "asctime", "_SOURCE_REALTIME_TIMESTAMP")
_LEVEL_KEYS = ("level", "levelname", "severity")


@dataclass(slots=True)
class Chunk:
    """``data[:size]`` holds whole lines (or one piece of an endless one, then ``torn``).

    ``lines`` gives the original number of each line where lines were rewritten (JSON logs), else ``None``.
    """

    data: bytearray
    size: int
    torn: bool = False
    lines: list[int] | None = None


class SourceError(OSError):
    """The source cannot be opened or read; the text says which and why."""


def read_up_to(stream: Any, size: int) -> bytes:
    """Up to ``size`` bytes; what a damaged stream gives before it breaks is not lost (the break shows when read on)."""
    pieces: list[bytes] = []
    held = 0
    while held < size:
        try:
            piece = stream.read(min(1 << 20, size - held))
        except Exception:  # noqa: BLE001 - a codec's own error classes share no base
            break
        if not piece:
            break
        pieces.append(piece)
        held += len(piece)
    return b"".join(pieces)


class _Utf16(io.RawIOBase):
    """UTF-16 with a byte order mark (PowerShell's ``>``) as UTF-8."""

    def __init__(self, raw: IO[bytes], encoding: str) -> None:
        import codecs

        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._raw.read(_HEAD_BYTES)
            self._left = self._decoder.decode(block, final=not block).encode()
            if not block and not self._left:
                return 0
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


@contextmanager
def opened(source: LogInput) -> Iterator[tuple[IO[bytes], int | None]]:
    """The source's plain bytes and its size in bytes on disk, where known. Raises :class:`SourceError`."""
    raw: IO[bytes]
    size: int | None = None
    try:
        if source.data is not None:
            raw, size = io.BytesIO(source.data), len(source.data)
        elif source.stream is not None:
            raw = source.stream()
        elif source.path is None or str(source.path) == "-":
            raw = sys.stdin.buffer
        else:
            raw = source.path.open("rb", buffering=0)
            size = source.path.stat().st_size if source.path.is_file() else None
    except OSError as error:
        raise SourceError(f"{source.name} cannot be opened: {error.strerror or error}") from error
    try:
        try:
            decoded = _decoded(raw)
        except OSError as error:
            raise SourceError(f"{source.name} cannot be read: {error.strerror or error}") from error
        yield decoded, size
    finally:
        if raw is not sys.stdin.buffer:
            raw.close()


class _Pushed(io.RawIOBase):
    """A stream whose first bytes were already taken to recognise it."""

    def __init__(self, head: bytes, raw: IO[bytes]) -> None:
        self._head = head
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        return self._raw.readinto(buffer) or 0  # type: ignore[attr-defined]


def _decoded(raw: IO[bytes]) -> IO[bytes]:
    head = raw.read(4)
    plain: Any = _Pushed(head, raw)
    if head.startswith(_MAGIC_GZIP):
        import gzip

        return gzip.GzipFile(fileobj=io.BufferedReader(plain, 1 << 18))  # type: ignore[return-value]
    if head == _MAGIC_ZSTD:
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(plain, read_across_frames=True)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _Utf16(plain, "utf-16")  # type: ignore[return-value]
    return plain  # type: ignore[no-any-return]


def chunks(stream: IO[bytes], size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut ``stream`` into chunks; the same buffer is reused, so a chunk is valid only until the next is asked for.

    A damaged compressed file yields what could be read and then raises :class:`SourceError`.
    """
    buffer = bytearray(size)
    view = memoryview(buffer)
    held = 0
    rewriter: _JsonLines | None = None
    first = True
    while True:
        trouble: Exception | None = None
        try:
            count = stream.readinto(view[held:])  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - a codec's own error classes share no base
            count, trouble = 0, error
        held += count or 0
        if first and held:
            if held < min(4096, size) and count:
                continue
            rewriter = _JsonLines() if _looks_like_json(bytes(view[:_HEAD_BYTES][:held])) else None
            first = False
        ended = not count and held < size
        if held and (ended or held == size or held >= size // 2):
            cut = held if ended else buffer.rfind(b"\n", 0, held) + 1
            torn = cut == 0
            if torn and held == size:
                cut = held
            if cut:
                chunk = Chunk(buffer, cut, torn)
                yield rewriter.rewrite(chunk) if rewriter else chunk
                rest = held - cut
                buffer[:rest] = buffer[cut:held]
                held = rest
        if trouble is not None:
            raise SourceError(f"cannot be read to its end: {trouble}") from trouble
        if ended:
            return


def _looks_like_json(head: bytes) -> bool:
    """Whether the first lines are JSON objects that carry a message (Docker's json-file, structured logging)."""
    seen = 0
    for line in head.splitlines()[:8]:
        if not line.strip():
            continue
        if not line.lstrip().startswith(b"{"):
            return False
        try:
            entry = json.loads(line)
        except ValueError:
            return seen > 0
        if not isinstance(entry, dict) or not any(key in entry for key in _TEXT_KEYS):
            return False
        seen += 1
    return seen > 0


class _JsonLines:
    """Rewrites ``{"log": "INFO ...\\n", "time": "2026-11-21T00:55:59Z"}`` to ``2026-11-21T00:55:59Z INFO ...``."""

    def __init__(self) -> None:
        self._number = 1

    def rewrite(self, chunk: Chunk) -> Chunk:
        text = bytearray()
        numbers: list[int] = []
        for raw in bytes(memoryview(chunk.data)[: chunk.size]).split(b"\n"):
            if raw:
                for line in self._lines(raw):
                    text += line + b"\n"
                    numbers.append(self._number)
            self._number += 1
        self._number -= 1  # the piece after the last newline is not a line
        return Chunk(text, len(text), False, numbers)

    def _lines(self, raw: bytes) -> list[bytes]:
        try:
            entry = json.loads(raw)
        except ValueError:
            return [raw]
        if not isinstance(entry, dict):
            return [raw]
        message = next((entry[key] for key in _TEXT_KEYS if isinstance(entry.get(key), str)), None)
        if message is None:
            return [raw]
        at = next((str(entry[key]) for key in _TIME_KEYS if isinstance(entry.get(key), str)), "")
        level = next((str(entry[key]).upper() for key in _LEVEL_KEYS if isinstance(entry.get(key), str)), "")
        stamp = f"{at} " if at[:4].isdigit() else ""
        if level and not message.lstrip("(").startswith((level, "INFO", "WARN", "ERROR", "Traceback", " ")):
            stamp += f"{level}: " if not stamp else f"{level} - "
        extra = entry.get("exc_info") or entry.get("exception") or entry.get("stack_trace")
        whole = f"{message}\n{extra}" if isinstance(extra, str) else message
        lines = whole.rstrip("\n").split("\n")
        return [(stamp + lines[0]).encode("utf-8", "replace")] + [
            ((f"{at} " if stamp else "") + line).encode("utf-8", "replace") for line in lines[1:]
        ]
