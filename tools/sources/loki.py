"""Lines from Grafana Loki, paged through ``query_range`` by the time of the last line.

Loki answers a query with at most ``limits_config.max_entries_limit_per_query`` lines (5,000 unless configured), so
pages are asked for from the last time stated, and what that time repeats is dropped. Streams that differ only in what
is no place (stdout and stderr, the level) are read as one log; different pods are different logs. Where the window
holds several starts of the server, reading begins shortly before the last two of them.

API: https://grafana.com/docs/loki/latest/reference/loki-http-api/ (``query_range``, ``series``, ``X-Scope-OrgID``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from tools.addresses import parse_url
from tools.evidence import LookedAt, Reading
from tools.outbound import Limits, Outbound, Reply
from tools.sources.base import Bounds, Line, Lines, SourceFailedError, Stream, Survey, as_json, rows, table

#: How far back is looked when nobody says since when.
WINDOW = timedelta(hours=24)
PAGE = 5_000
MOST_STREAMS = 8
#: A start prints its first line before the one that names its version.
_BEFORE_START = timedelta(seconds=30)
_STARTS = "vLLM API server version|Initializing (?:an LLM|a V1 LLM) engine|args: Namespace\\\\("
#: Labels that say what a line is and not where it comes from (Loki's own, and those that agents add by default).
_NO_PLACE = frozenset({"stream", "level", "detected_level", "severity", "filename", "logtag", "flags", "log_iostream"})
#: Labels that name a place best, for people.
_NAMES = ("pod", "k8s_pod_name", "pod_name", "instance", "container_name", "container", "host", "hostname", "unit")
_PAGE_LIMITS = Limits(30.0, max_bytes=64 * 1024 * 1024, max_decompressed_bytes=64 * 1024 * 1024)
_SELECTOR = re.compile(r"""\s*\{(?:[^"`{}]|"(?:\\.|[^"\\])*"|`[^`]*`)*\}""")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOO_MANY = re.compile(r"max entries limit per query exceeded(?:[^()]{0,80}\(\d+ ?> ?(\d+)\))?")


@dataclass(frozen=True, slots=True)
class Loki:
    """The streams that ``query`` (a LogQL stream selector) selects on the Loki server at ``address``.

    ``headers`` carry credentials and the tenant.
    """

    name: str
    address: str
    query: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def survey(self, outbound: Outbound, bounds: Bounds) -> Survey:
        """The logs in the window, at most :data:`MOST_STREAMS`, those with the newest lines first."""
        start, end = _window(bounds)
        found = await self._ask(
            outbound, "series", {"match[]": self._parts()[0], "start": _nano(start), "end": _nano(end)}, bounds
        )
        places: dict[tuple[tuple[str, str], ...], None] = {}
        for labels in rows(found):
            own = {k: v for k, v in labels.items() if k not in _NO_PLACE and isinstance(v, str)}
            places[tuple(sorted(own.items()))] = None
        if not places:
            raise SourceFailedError(
                f"Loki at {self.address} holds nothing for {self.query} between {start:%Y-%m-%d %H:%M} and "
                f"{end:%Y-%m-%d %H:%M} UTC; look at the selector, the tenant and the times."
            )
        missed = []
        streams = []
        varying = _varying([dict(place) for place in places])
        for place in list(places)[:MOST_STREAMS]:
            streams.append(Stream(self._name(dict(place), varying), self._reader(dict(place))))
        if len(places) > MOST_STREAMS:
            why = f"{len(places)} logs match {self.query}; {MOST_STREAMS} were read, name one with a narrower selector"
            missed.append((self.name, why))
        return Survey(Reading(looked_at=(LookedAt(self.name, start, end),), not_measured=tuple(missed)), tuple(streams))

    def _name(self, place: Mapping[str, str], varying: frozenset[str]) -> str:
        chosen = next((place[key] for key in _NAMES if key in place and (key in varying or not varying)), "")
        chosen = chosen or ",".join(place[key] for key in sorted(varying) if key in place)
        return f"{self.name} {chosen}".strip()[:200]

    def _reader(self, place: Mapping[str, str]) -> Any:
        def lines(outbound: Outbound, bounds: Bounds) -> Lines:
            return self._lines(place, outbound, bounds)

        return lines

    async def _lines(self, place: Mapping[str, str], outbound: Outbound, bounds: Bounds) -> Lines:
        start, end = _window(bounds)
        selector = self._selector(place)
        first = await self._last_starts(selector, start, end, outbound, bounds)
        at, page = _nano(first), PAGE
        origin = next((place[key] for key in _NAMES if key in place), "loki")
        seen: set[tuple[str, str]] = set()  # what the last page ended with, at its last time
        while at < _nano(end):
            asked = {"query": selector, "start": at, "end": _nano(end), "limit": page, "direction": "forward"}
            try:
                answer = table(await self._ask(outbound, "query_range", asked, bounds))
            except _LimitError as error:
                if page <= 1:
                    raise
                page = error.allowed if 0 < error.allowed < page else page // 2
                continue
            entries = _entries(answer, self.address)
            fresh = [entry for entry in entries if entry not in seen]
            if fresh:
                yield [Line(_moment(stamp), origin, text) for stamp, text in fresh]
            if len(entries) < page:
                return
            last = entries[-1][0]
            if int(last) == at and not fresh:
                # A whole page of one nanosecond: the rest of it cannot be asked for.
                raise SourceFailedError(f"Loki holds more than {page} lines of one moment; not all can be read.")
            seen = {entry for entry in entries if entry[0] == last} | (seen if int(last) == at else set())
            at = int(last)

    async def _last_starts(
        self, selector: str, start: datetime, end: datetime, outbound: Outbound, bounds: Bounds
    ) -> datetime:
        """Shortly before the last start but one in the window, or the window's beginning."""
        asked = {
            "query": f'{selector} |~ "{_STARTS}"',
            "start": _nano(start), "end": _nano(end), "limit": 20, "direction": "backward",
        }  # fmt: skip
        answer = table(await self._ask(outbound, "query_range", asked, bounds))
        times = [found for stamp, _ in _entries(answer, self.address) if (found := _moment(stamp)) is not None]
        starts: list[datetime] = []  # newest first; one start prints several of these lines
        for time in sorted(times, reverse=True):
            if not starts or starts[-1] - time > _BEFORE_START:
                starts.append(time)
            else:
                starts[-1] = time
        if len(starts) < 2:
            return start
        return max(start, starts[1] - _BEFORE_START)

    def _parts(self) -> tuple[str, str]:
        """The stream selector of the configured query, and the filters after it."""
        found = _SELECTOR.match(self.query)
        if found is None:
            raise SourceFailedError(f'{self.query!r:.200} is no stream selector; write {{app="vllm"}}.')
        return found.group().strip(), self.query[found.end() :]

    def _selector(self, place: Mapping[str, str]) -> str:
        """The configured query, narrowed to one place."""
        selector, rest = self._parts()
        inner = selector[:-1].rstrip().rstrip(",")
        own = ", ".join(f"{key}={_quoted(value)}" for key, value in sorted(place.items()) if _LABEL.fullmatch(key))
        return f"{inner}{', ' if own and inner != '{' else ''}{own}}}{rest}"

    async def _ask(self, outbound: Outbound, what: str, asked: Mapping[str, object], bounds: Bounds) -> Any:
        url = f"{parse_url(self.address).at(f'loki/api/v1/{what}')}?{urlencode(asked)}"
        limits = Limits(
            min(_PAGE_LIMITS.deadline_s, bounds.deadline_s),
            max_bytes=_PAGE_LIMITS.max_bytes,
            max_decompressed_bytes=_PAGE_LIMITS.max_decompressed_bytes,
        )
        reply = await outbound.get(url, headers=self.headers, limits=limits)
        if reply.status != 200:
            raise self._refusal(reply)
        answer = table(as_json(reply.body, f"Loki at {self.address}"))
        if answer.get("status") != "success" or "data" not in answer:
            raise SourceFailedError(f"{self.address} answered with JSON that is not Loki's.")
        return answer["data"]

    def _refusal(self, reply: Reply) -> SourceFailedError:
        said = " ".join(reply.text.split())[:300]
        if reply.status == 400 and (over := _TOO_MANY.search(reply.text)):
            return _LimitError(int(over.group(1) or 0))
        if reply.status == 401:
            why = "it wants credentials or a tenant: give token_env, username or tenant in the target"
        elif reply.status == 403:
            why = "these credentials may not read logs there"
        elif reply.status == 404:
            why = "there is no Loki API at this address; a gateway may want a path in front"
        elif reply.status in (301, 302, 303, 307, 308):
            why = "it redirects to another place, perhaps a login"
        else:
            why = f"it says {said!r}" if said else "it says nothing more"
        return SourceFailedError(f"Loki at {self.address} answered {reply.status}: {why}.")


class _LimitError(SourceFailedError):
    """The page was larger than the server's configuration allows; ``allowed`` is its limit, 0 where it is not said."""

    def __init__(self, allowed: int) -> None:
        super().__init__("Loki gives fewer lines at once than one.")
        self.allowed = allowed


def _window(bounds: Bounds) -> tuple[datetime, datetime]:
    end = bounds.until or datetime.now(UTC)
    return bounds.since or end - WINDOW, end


def _nano(at: datetime) -> int:
    """Nanoseconds since the epoch, exact to the microsecond."""
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000


def _moment(stamp: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(stamp) / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _entries(answer: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """The (time, line) pairs of all streams of an answer, ordered by time."""
    if answer.get("resultType") != "streams":
        raise SourceFailedError(
            f"Loki at {where} answered with {str(answer.get('resultType'))!r:.40} instead of lines."
        )
    found = []
    for stream in rows(answer.get("result")):
        for entry in stream.get("values") or ():
            stamp, line, *_ = (*entry, None, None) if isinstance(entry, list) else (None, None)
            if isinstance(stamp, str) and isinstance(line, str) and stamp.isascii() and stamp.isdigit():
                found.append((stamp, line.rstrip("\r\n")))
    found.sort(key=lambda entry: int(entry[0]))
    return found


def _varying(places: list[dict[str, str]]) -> frozenset[str]:
    """The labels in which the places differ."""
    keys = {key for place in places for key in place}
    return frozenset(key for key in keys if len({place.get(key) for place in places}) > 1)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
