"""Requests as the server's access log and saved responses show them: how many, how many refused, how many failed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: ``INFO:     127.0.0.1:44996 - "POST /v1/completions HTTP/1.1" 400 Bad Request``
_LINE = re.compile(r'"([A-Z]{3,7}) (\S{1,2000}) HTTP/[\d.]{1,3}" (\d{3})')
#: Paths that probes, dashboards and browsers ask for; refusing them concerns no client of the model.
_ASIDE = ("/health", "/metrics", "/ping", "/version", "/load", "/favicon.ico", "/robots.txt", "/docs", "/openapi.json")
_MOST_PARSED = 400  # refused lines that are looked at one by one in one chunk; beyond it the share is scaled


@dataclass(slots=True)
class Access:
    """Counts of one run. ``answered`` are POST requests, whatever their status."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    first_refused: tuple[int, str] | None = None  # (line, text)
    first_failed: tuple[int, str] | None = None

    def take(self, method: str, path: str, status: int, line: int, text: str, times: int = 1) -> None:
        if (
            status < 400
            or path.split("?", 1)[0] in _ASIDE
            or (status == 404 and method in ("GET", "HEAD", "OPTIONS") and path == "/")
        ):
            return
        self.statuses[status] = self.statuses.get(status, 0) + times
        if status >= 500:
            self.failed += times
            self.first_failed = self.first_failed or (line, text)
        else:
            self.refused += times
            self.first_refused = self.first_refused or (line, text)


def read_access(text: str) -> tuple[str, str, int] | None:
    """(method, path, status) of one access line."""
    found = _LINE.search(text)
    return (found.group(1), found.group(2), int(found.group(3))) if found else None


def count_answered(data: bytearray, start: int, end: int) -> int:
    """POST requests in ``data[start:end]``."""
    return data.count(b'"POST /', start, end)


def refused_lines(data: bytearray, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
    """(start, end) of access lines with status 4xx or 5xx, and by how much to multiply them."""
    found: list[tuple[int, int]] = []
    for needle in (b'HTTP/1.1" 4', b'HTTP/1.1" 5', b'HTTP/1.0" 4', b'HTTP/1.0" 5'):
        at, taken = data.find(needle, start, end), 0
        while at >= 0 and taken < _MOST_PARSED:
            line_end = data.find(b"\n", at, end)
            line_end = end if line_end < 0 else line_end
            found.append((max(start, data.rfind(b"\n", start, at) + 1), line_end))
            taken += 1
            at = data.find(needle, line_end, end)
        if at >= 0:
            rest = data.count(needle, start, end)
            return found, max(1, round(rest / taken))
    return found, 1
