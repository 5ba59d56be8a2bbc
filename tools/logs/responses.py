"""Saved answers of a server (``responses.jsonl``) and a model's ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tools.evidence import Evidence, Origin
from tools.logs.access import Access
from tools.logs.scan import Match, Scanner
from tools.logs.shapes import LogInput
from tools.logs.source import opened, read_up_to

_MOST_LINES = 200_000
_REASONS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


def read_responses(source: LogInput, scanner: Scanner, quote: Callable[[str], str]) -> Iterator[Evidence]:
    """``{"path": "/generate", "status": 404, "body": "{\\"detail\\":\\"Not Found\\"}"}``, one answer a line.

    Refused requests are counted and their error texts matched against the messages; a line that is no such object is
    passed over.
    """
    access = Access()
    seen: dict[str, tuple[int, str, int]] = {}  # message -> first line, text, how often
    with opened(source) as (stream, _):
        data = read_up_to(stream, 64 << 20)
    number = 0
    for number, raw in enumerate(data.splitlines()[:_MOST_LINES], 1):
        try:
            entry = json.loads(raw)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("status"), int):
            continue
        path, status, body = str(entry.get("path", "")), int(entry["status"]), entry.get("body", "")
        text = body if isinstance(body, str) else json.dumps(body)
        method = str(entry.get("method", "POST"))
        access.answered += 1
        if status < 400:
            continue
        line = f'"{method} {path} HTTP/1.1" {status} {_REASONS.get(status, "")}'.strip()
        access.take(method, path, status, number, quote(f"{line} {_error_text(text)}"))
        for match in _matches(scanner, line, _error_text(text)):
            first, shown, count = seen.get(match.message.id, (number, f"{line} {_error_text(text)}", 0))
            seen[match.message.id] = (first, shown, count + 1)
    for identity, (first, shown, count) in seen.items():
        origin = Origin(source.name, first, None, None, first)
        yield Evidence(f"message:{identity}", "present", True, origin, quote(shown), "", count)
    if access.answered:
        place, shown = access.first_refused or (number, "")
        origin = Origin(source.name, place, None, None, place)
        yield Evidence("requests.total", "present", access.answered, Origin(source.name, number, None, None, number))
        yield Evidence("requests.refused", "present", access.refused, origin, shown)
        yield Evidence("requests.refused_share", "present", round(access.refused / access.answered, 4), origin, shown)
        place, shown = access.first_failed or (number, "")
        yield Evidence(
            "requests.failed", "present", access.failed, Origin(source.name, place, None, None, place), shown
        )


def _error_text(body: str) -> str:
    """The sentence in an error body: ``{"error": {"message": ...}}``, ``{"message": ...}`` or ``{"detail": ...}``."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return body[:4000]
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed)
        found = error if isinstance(error, str) else None
        if isinstance(error, dict):
            found = error.get("message") or error.get("detail")
        if isinstance(found, str):
            return found[:4000]
        return json.dumps(parsed)[:4000]
    return str(parsed)[:4000]


def _matches(scanner: Scanner, *texts: str) -> list[Match]:
    found: dict[str, Match] = {}
    for text in texts:
        for piece in text.splitlines():
            data = bytearray(piece.encode())
            ids = tuple(identity for _, identity in scanner.scan(data, len(data))) if data else ()
            for match in scanner.confirm(ids, piece):
                found.setdefault(match.message.id, match)
    return list(found.values())


def read_config(source: LogInput) -> Iterator[Evidence]:
    """The architecture that a model's ``config.json`` declares."""
    with opened(source) as (stream, _):
        try:
            parsed = json.loads(read_up_to(stream, 8 << 20))
        except ValueError:
            return
    names = parsed.get("architectures") if isinstance(parsed, dict) else None
    if isinstance(names, list) and names and isinstance(names[0], str):
        yield Evidence(
            "server.architecture",
            "present",
            names[0][:200],
            Origin(source.name),
            f'"architectures": ["{names[0][:200]}"]',
        )
