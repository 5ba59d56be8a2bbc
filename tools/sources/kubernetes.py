"""A pod as the Kubernetes API shows it: its state, its events, its logs, and who ended it.

Only GET requests, to pods, their logs and events. The API: https://kubernetes.io/docs/reference/kubernetes-api/ (Pod v1
core, Event v1 core, read log); pagination and 410 Gone:
https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from tools.addresses import parse_url
from tools.evidence import LookedAt, Reading
from tools.outbound import Limits, Outbound
from tools.sources.base import (
    Bounds,
    Line,
    Lines,
    SourceFailedError,
    Stream,
    Survey,
    as_json,
    error_text,
    moment,
    rows,
    split_lines,
    table,
    text,
)
from tools.sources.pods import Events, Pod, pod_facts

MOST_PODS = 8
#: Events of a namespace are read so far; the API server keeps them for an hour unless told otherwise (--event-ttl).
_PAGES, _PAGE = 6, 500
_LIST_LIMITS = Limits(20.0, max_bytes=32 * 1024 * 1024, max_decompressed_bytes=32 * 1024 * 1024)
#: A container that started anew within this time and is not ready yet: the run before it is the incident.
_JUST_RESTARTED = timedelta(hours=1)
#: A request's credentials may be refused once while a rotated token reaches the file.
_GONE = 410


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Pods of one namespace: those named ``pod``, or those that ``selector`` (a label selector) selects.

    ``container`` names the server's container where a pod has several; otherwise the one that asks for GPUs, else the
    first. ``headers`` carry the bearer token.
    """

    name: str
    address: str
    namespace: str
    pod: str = ""
    selector: str = ""
    container: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def survey(self, outbound: Outbound, bounds: Bounds) -> Survey:
        """The pods' states and events; logs of the pods that are worth reading, the most troubled first."""
        missed: list[tuple[str, str]] = []
        found, now = await self._pods(outbound, bounds)
        pods = [Pod.read(row, self.container) for row in found]
        events = await self._events(outbound, bounds, missed)
        if not pods:
            missed.append((self.name, f"no pod matches {self.pod or self.selector} in {self.namespace}"))
        pods.sort(key=lambda pod: (-pod.trouble(now), pod.name))
        if len(pods) > MOST_PODS:
            missed.append((self.name, f"{len(pods)} pods match; the {MOST_PODS} with the most trouble were looked at"))
            pods = pods[:MOST_PODS]
        # Facts are those of the most troubled pod: facts of several pods would contradict each other.
        first = pods[0] if pods else None
        evidence = pod_facts(first, events, self.source(first), self.namespace, self.pod or self.selector, now)
        looked = [LookedAt(self.source(pod)) for pod in pods] or [LookedAt(self.name)]
        reading = Reading(tuple(evidence), looked_at=tuple(looked[:1]), not_measured=tuple(missed))
        streams = [stream for pod in pods[:1] for stream in self._streams(pod, now)]
        return Survey(reading, tuple(streams))

    def source(self, pod: Pod | None) -> str:
        """How evidence names this place."""
        return f"pod {self.namespace}/{pod.name}" if pod is not None else f"namespace {self.namespace}"

    async def _pods(self, outbound: Outbound, bounds: Bounds) -> tuple[list[dict[str, Any]], datetime]:
        """The pods and the API server's own time, because its times are compared with each other only."""
        base = f"api/v1/namespaces/{quote(self.namespace, safe='')}/pods"
        if self.pod and not self.selector:
            answer, now = await self._get(
                outbound, f"{base}/{quote(self.pod, safe='')}", {}, bounds, missing_is_none=True
            )
            return ([answer] if answer else []), now
        found: list[dict[str, Any]] = []
        now = datetime.now(UTC)
        async for page, at in self._list(outbound, base, {"labelSelector": self.selector}, bounds):
            found += page
            now = at
        return found, now

    async def _events(self, outbound: Outbound, bounds: Bounds, missed: list[tuple[str, str]]) -> Events:
        base = f"api/v1/namespaces/{quote(self.namespace, safe='')}/events"
        kept: list[dict[str, Any]] = []
        try:
            async for page, _ in self._list(outbound, base, {}, bounds):
                kept += page
        except SourceFailedError as error:
            missed.append(("events", str(error)))
        return Events.read(kept)

    async def _list(self, outbound: Outbound, path: str, asked: Mapping[str, str], bounds: Bounds) -> Any:
        """Pages of a list. Where the server forgets the place (410), the list is asked for once more from the start."""
        token, begun_anew, pages = "", False, 0
        while pages < _PAGES:
            query = {**asked, "limit": str(_PAGE), **({"continue": token} if token else {})}
            try:
                answer, now = await self._get(outbound, path, query, bounds)
            except _GoneError:
                if begun_anew:
                    raise
                token, begun_anew, pages = "", True, 0
                continue
            pages += 1
            yield rows(answer.get("items")), now
            token = text(table(answer.get("metadata")).get("continue"), 4000)
            if not token:
                return

    async def _get(
        self,
        outbound: Outbound,
        path: str,
        query: Mapping[str, str],
        bounds: Bounds,
        missing_is_none: bool = False,
    ) -> tuple[dict[str, Any], datetime]:
        url = str(parse_url(self.address).at(path)) + (f"?{urlencode(query)}" if query else "")
        limits = Limits(
            min(_LIST_LIMITS.deadline_s, bounds.deadline_s),
            max_bytes=_LIST_LIMITS.max_bytes,
            max_decompressed_bytes=_LIST_LIMITS.max_decompressed_bytes,
        )
        reply = await outbound.get(url, headers={"Accept": "application/json", **self.headers}, limits=limits)
        now = _server_time(reply.headers)
        if reply.status == 404 and missing_is_none:
            return {}, now
        if reply.status != 200:
            raise self._refusal(reply.status, reply.body, path)
        answer = as_json(reply.body, f"The Kubernetes API at {self.address}")
        if not isinstance(answer, dict) or not isinstance(answer.get("kind"), str):
            raise SourceFailedError(f"{self.address} answered with JSON that is not the Kubernetes API's.")
        return answer, now

    def _refusal(self, status: int, body: bytes, path: str) -> SourceFailedError:
        what = path.rsplit("/", 1)[-1]
        try:
            said = text(table(as_json(body, "")).get("message"))
        except SourceFailedError:
            said = " ".join(body[:300].decode("utf-8", "replace").split())
        if status == 401:
            why = "the token is not accepted; it may have expired"
        elif status == 403:
            why = f"this account may not read {what} in {self.namespace}; a Role with get and list on pods, pods/log and events is needed"
        elif status == 404:
            why = f"there is no such thing: {said}" if said else "there is no Kubernetes API at this address"
        else:
            why = f"it says {said!r}" if said else "it says nothing more"
        sentence = f"The Kubernetes API at {self.address} answered {status} for {what}: {why}."
        return _GoneError(sentence) if status == _GONE else SourceFailedError(sentence)

    async def addresses(self, outbound: Outbound, bounds: Bounds) -> list[tuple[str, str]]:
        """Name and ``host:port`` of every pod that has an address: the first port of the server's container, or 8000."""
        found = []
        for row in (await self._pods(outbound, bounds))[0]:
            pod = Pod.read(row, self.container)
            host = text(table(row.get("status")).get("podIP"), 60)
            ports = [port.get("containerPort") for port in rows(pod.spec.get("ports"))]
            port = next((p for p in ports if isinstance(p, int) and 0 < p < 65536), 8000)
            if host and pod.phase == "Running" and pod.deleted_at is None:
                found.append((pod.name, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        return sorted(found)

    # -- logs ----------------------------------------------------------------------------------------------------

    def _streams(self, pod: Pod, now: datetime) -> list[Stream]:
        if not pod.container or not pod.ran:
            return []
        previous = pod.restarts > 0 and not pod.ready and pod.running_since is not None
        if previous and pod.running_since is not None and now - pod.running_since > _JUST_RESTARTED:
            previous = False  # it has been trying long enough to be the incident itself
        name = self.source(pod) + (" (previous container)" if previous else "")
        return [Stream(name, self._reader(pod, previous))]

    def _reader(self, pod: Pod, previous: bool) -> Any:
        def lines(outbound: Outbound, bounds: Bounds) -> Lines:
            return self._lines(pod, previous, outbound, bounds)

        return lines

    async def _lines(self, pod: Pod, previous: bool, outbound: Outbound, bounds: Bounds) -> Lines:
        path = f"api/v1/namespaces/{quote(self.namespace, safe='')}/pods/{quote(pod.name, safe='')}/log"
        query = {"container": pod.container, "timestamps": "true"}
        if previous:
            query["previous"] = "true"
        if bounds.since is not None:
            query["sinceTime"] = f"{bounds.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        url = f"{parse_url(self.address).at(path)}?{urlencode(query)}"
        async with outbound.stream(url, headers=self.headers, limits=bounds.limits) as answer:
            if answer.status != 200:
                raise self._refusal(answer.status, await error_text(answer), path)
            if answer.headers.get("content-type", "text/plain").startswith("text/html"):
                raise SourceFailedError(f"{self.address} answered with an HTML page instead of a log.")
            async for block in split_lines(answer.chunks):
                batch = [_line(raw, pod.container) for raw in block]
                if bounds.until is not None:
                    batch = [line for line in batch if line.at is None or line.at <= bounds.until]
                yield batch


class _GoneError(SourceFailedError):
    """410: the list's place was forgotten (compacted) before its next page was asked for."""


def _line(raw: bytes, origin: str) -> Line:
    """``2026-11-21T10:00:00.123456789Z text`` as ``timestamps=true`` writes it."""
    whole = raw.decode("utf-8", "replace").rstrip("\r")
    stamp, blank, rest = whole.partition(" ")
    at = moment(stamp) if blank or stamp[:1].isdigit() else None
    return Line(at, origin, rest) if at is not None else Line(None, origin, whole)


def _server_time(headers: Mapping[str, str]) -> datetime:
    """The ``Date`` of an answer, or this machine's time where it has none."""
    from email.utils import parsedate_to_datetime

    try:
        found = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)
    return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
