"""What ``tools/outbound.py`` writes before a body and undoes after one: headers, forms, gzip. Nothing here connects."""

from __future__ import annotations

import json as jsonlib
import zlib
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

from tools.addresses import Url
from tools.pinned import OutboundError


class Form(dict[str, str]):
    """A body that is sent as a form instead of JSON (``application/x-www-form-urlencoded``)."""


def without_credentials(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}


def request_headers(
    where: Url, body: object, headers: Mapping[str, str]
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    content = None if body is None else (urlencode(body) if isinstance(body, Form) else jsonlib.dumps(body)).encode()
    kind = "application/x-www-form-urlencoded" if isinstance(body, Form) else "application/json"
    merged = {"Host": where.authority, "Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "vllm-diagnose"}
    if content is not None:
        merged |= {"Content-Type": kind, "Content-Length": str(len(content))}
    for name, value in headers.items():
        if name.lower() in ("host", "content-length", "transfer-encoding", "connection", "accept-encoding"):
            raise OutboundError("refused", f"The header {name} cannot be set by a caller.")
        if not value.isprintable() or not name.replace("-", "").isalnum():
            raise OutboundError("refused", f"The header {name!r} contains a character that headers cannot carry.")
        merged[name] = value
    return [(name.encode("ascii"), value.encode("utf-8")) for name, value in merged.items()], content


#: A compressed body is unpacked in pieces of at most this size.
PIECE_BYTES = 256 * 1024


class Decoder:
    """Undoes one body's ``encoding``, in pieces: a small chunk may unpack to a thousand times its size."""

    def __init__(self, where: str, encoding: str) -> None:
        self._where = where
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise OutboundError(
                "protocol", f"{where} answered with the encoding {encoding[:40]!r}; only gzip is taken."
            )
        self._inflate = zlib.decompressobj(wbits=31) if encoding.endswith("gzip") else None

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        """What ``chunk`` adds, in pieces of at most :data:`PIECE_BYTES` where it was compressed."""
        inflate = self._inflate
        if inflate is None:
            yield chunk
            return
        try:
            while chunk:
                piece = inflate.decompress(chunk, PIECE_BYTES)
                chunk = inflate.unconsumed_tail
                yield piece
                if not piece and not chunk:
                    return
            while not inflate.eof and (piece := inflate.decompress(b"", PIECE_BYTES)):
                yield piece  # what zlib still held back because the last piece was full
        except zlib.error as error:
            raise OutboundError("protocol", f"{self._where} answered with broken gzip: {error}.") from None

    def finish(self) -> None:
        """The body is over: raises :class:`OutboundError` where what was compressed is not."""
        if self._inflate is not None and not self._inflate.eof:
            raise OutboundError("protocol", f"{self._where} answered with broken gzip: it ends too early.")
