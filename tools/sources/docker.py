"""A container as the Docker Engine API shows it over its Unix socket: state, limits, events and log.

API (version 1.41 and later): https://docs.docker.com/reference/api/engine/ ; ContainerInspect, ContainerLogs,
SystemEvents. The log of a container without a terminal is multiplexed: each frame has a header of 8 bytes (1 for
standard output or 2 for standard error, three zeros, the length as 4 bytes, most significant first), see ContainerAttach.
The daemon keeps its last 256 events. Nothing but GET requests is sent, to paths that ``tools.outbound`` names one by one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from tools.evidence import Evidence, LookedAt, Reading
from tools.outbound import Limits, Outbound, OutboundError
from tools.sources.base import (
    Bounds,
    Line,
    Lines,
    SourceFailedError,
    Stream,
    Survey,
    as_json,
    error_text,
    fact,
    moment,
    rows,
    split_lines,
    table,
    text,
    whole,
)

_HOST = "http://docker"  # a name for the Host header; the connection goes to the socket
_ANSWER = Limits(10.0, max_bytes=8 * 1024 * 1024, max_decompressed_bytes=8 * 1024 * 1024)
_LARGEST_FRAME = 64 * 1024 * 1024
_RECENT = timedelta(hours=1)
#: A signal and the end that it causes lie at most this far apart (``docker stop`` waits 10 s before it kills).
_TOGETHER = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Docker:
    """The container of this name or id on the daemon behind ``socket``."""

    name: str
    socket: str
    container: str

    @property
    def source(self) -> str:
        """How evidence names this place."""
        return f"container {self.container}"

    async def survey(self, outbound: Outbound, bounds: Bounds) -> Survey:
        """The container's state, who ended it, and its log."""
        body = await self._get(outbound, f"/containers/{quote(self.container, safe='')}/json", bounds)
        found = as_json(body, "The Docker daemon")
        state = table(table(found).get("State"))
        if not state:
            raise SourceFailedError(f"What answers at {self.socket} does not speak Docker's Engine API.")
        missed: list[tuple[str, str]] = []
        try:
            events = await self._events(outbound, text(found.get("Id"), 80) or self.container, bounds)
        except (SourceFailedError, OutboundError) as error:
            events = []
            missed.append(("events", str(error)))
        facts = tuple(self._facts(found, state, events))
        terminal = table(found.get("Config")).get("Tty") is True

        def lines(way_out: Outbound, within: Bounds) -> Lines:
            return self._lines(terminal, way_out, within)

        started, finished = moment(state.get("StartedAt")), moment(state.get("FinishedAt"))
        running = state.get("Running") is True
        reading = Reading(
            facts,
            looked_at=(LookedAt(self.source, started, None if running else finished),),
            not_measured=tuple(missed),
        )
        return Survey(reading, (Stream(self.source, lines),))

    def _facts(self, found: dict[str, Any], state: dict[str, Any], events: list[dict[str, Any]]) -> Iterator[Evidence]:
        host = table(found.get("HostConfig"))
        restarts = whole(found.get("RestartCount")) or 0
        yield fact("container.restarts", restarts, self.source, f"RestartCount: {restarts}")
        memory = whole(host.get("Memory")) or 0
        if memory > 0:
            yield fact(
                "container.memory_limit_gib", round(memory / 2**30, 3), self.source, f"HostConfig.Memory: {memory}"
            )
        shm = whole(host.get("ShmSize"))
        if shm and not text(host.get("IpcMode")).startswith(("host", "container:")):
            yield fact(
                "container.shm_bytes", shm, self.source, f"ShmSize: {shm}, IpcMode: {text(host.get('IpcMode'), 40)}"
            )
        running = state.get("Running") is True
        finished = moment(state.get("FinishedAt"))
        if running and (finished is None or datetime.now(UTC) - finished > _RECENT):
            return
        if finished is None:
            return
        code = whole(state.get("ExitCode"))
        said = f"ExitCode {code}, OOMKilled {state.get('OOMKilled')}. {text(state.get('Error'))}".rstrip(". ")
        if code is not None and not running:  # of a running container it is that of no run at all
            yield fact("container.exit_code", code, self.source, said, finished)
            started = moment(state.get("StartedAt"))
            if started is not None and finished >= started:
                lived = (finished - started).total_seconds()
                yield fact("container.lived_s", lived, self.source, f"it ran for {lived:.0f} s", finished)
        stopped = _stopped_by(state, code, finished, events)
        if stopped is not None:
            yield fact("container.stopped_by", stopped[0], self.source, stopped[1], finished)

    async def _events(self, outbound: Outbound, container: str, bounds: Bounds) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        query = {
            "since": str(int((now - timedelta(days=1)).timestamp())),
            "until": str(int(now.timestamp())),  # without an end the daemon keeps the answer open
            "filters": json.dumps({"container": [container], "event": ["oom", "kill", "die", "stop", "restart"]}),
        }
        body = await self._get(outbound, f"/events?{urlencode(query)}", bounds)
        events = []
        for raw in body.splitlines():
            try:
                events += rows([json.loads(raw)])
            except (ValueError, RecursionError):
                continue
        return events

    async def _lines(self, terminal: bool, outbound: Outbound, bounds: Bounds) -> Lines:
        query = {"stdout": "1", "stderr": "1", "timestamps": "1"}
        if bounds.since is not None:
            query["since"] = f"{bounds.since.timestamp():.6f}"
        if bounds.until is not None:
            query["until"] = f"{bounds.until.timestamp():.6f}"
        url = f"{_HOST}/containers/{quote(self.container, safe='')}/logs?{urlencode(query)}"
        async with outbound.stream(url, limits=bounds.limits, socket=self.socket) as answer:
            if answer.status != 200:
                raise self._refusal(answer.status, await error_text(answer))
            raw = "multiplexed" not in answer.headers.get("content-type", "") and terminal
            chunks = answer.chunks if raw else _payloads(answer.chunks)
            async for block in split_lines(chunks):
                yield [self._line(line) for line in block]

    def _line(self, raw: bytes) -> Line:
        whole_line = raw.decode("utf-8", "replace").rstrip("\r")
        stamp, blank, rest = whole_line.partition(" ")
        at = moment(stamp) if blank or stamp[:1].isdigit() else None
        return Line(at, self.container, rest if at is not None else whole_line)

    async def _get(self, outbound: Outbound, path: str, bounds: Bounds) -> bytes:
        limits = Limits(
            min(_ANSWER.deadline_s, bounds.deadline_s),
            max_bytes=_ANSWER.max_bytes,
            max_decompressed_bytes=_ANSWER.max_decompressed_bytes,
        )
        async with outbound.stream(_HOST + path, limits=limits, socket=self.socket) as answer:
            if answer.status != 200:
                raise self._refusal(answer.status, await error_text(answer))
            return b"".join([chunk async for chunk in answer.chunks])

    def _refusal(self, status: int, body: bytes) -> SourceFailedError:
        try:
            said = text(table(as_json(body, "")).get("message"))
        except SourceFailedError:
            said = ""
        if status == 404:
            return SourceFailedError(f"Docker knows no container {self.container!r}; see `docker ps --all`.")
        if status == 501 or "does not support reading" in said:
            return SourceFailedError(
                f"The logging driver of {self.container} does not let logs be read back; read them where it sends them."
            )
        return SourceFailedError(f"Docker answered {status} for {self.container}: {said or 'no reason given'}.")


def _stopped_by(
    state: dict[str, Any], code: int | None, finished: datetime, events: list[dict[str, Any]]
) -> tuple[str, str] | None:
    """Who ended the container, with the words that say so."""
    if state.get("OOMKilled") is True:
        return "out-of-memory", f"OOMKilled true, ExitCode {code}"
    for event in reversed(events):
        what, at = text(event.get("Action") or event.get("status"), 40), whole(event.get("time"))
        near = at is not None and abs(datetime.fromtimestamp(at, UTC) - finished) < _TOGETHER
        if near and what == "oom":
            return "out-of-memory", "the daemon's event: oom"
        if near and what == "kill":
            signal = text(table(table(event.get("Actor")).get("Attributes")).get("signal"), 10)
            return "request", f"the daemon's event: kill, signal {signal}" if signal else "the daemon's event: kill"
    if code not in (None, 0, 137, 143):
        return "itself", f"ExitCode {code}"
    return None


async def _payloads(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The text inside the frames of a multiplexed stream.

    Lines of standard output and standard error are whole within their frames, so they may be put one after another.
    """
    held = b""
    async for chunk in chunks:
        held += chunk
        while len(held) >= 8:
            if held[0] not in (0, 1, 2) or held[1:4] != b"\0\0\0":
                raise SourceFailedError("Docker's log stream has a frame that cannot be read.")
            size = int.from_bytes(held[4:8], "big")
            if size > _LARGEST_FRAME:
                raise SourceFailedError(f"Docker's log stream announces a frame of {size} bytes.")
            if len(held) < 8 + size:
                break
            yield held[8 : 8 + size]
            held = held[8 + size :]
    if held:
        raise SourceFailedError("Docker's log stream broke off inside a frame.")
