"""Clients that write and read at a fixed rate, and remember everything that was acknowledged to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from assistant.store.database import Database
from assistant.store.incidents import Incidents
from assistant.store.jobs import Jobs

LOG = "ERROR 11-21 10:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
KINDS = ("incident", "search", "answer", "look", "job", "search")


@dataclass
class Load:
    """What the clients saw. ``failed`` says when (seconds since the beginning), what, and how."""

    began: float = field(default_factory=time.monotonic)
    answers: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    answered: list[tuple[str, str]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)

    @property
    def p99_s(self) -> float:
        """Seconds that 99 of 100 requests stayed below."""
        times = sorted(self.seconds) or [0.0]
        return times[min(int(len(times) * 0.99), len(times) - 1)]


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        headers = {"Host": "127.0.0.1", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def one_request(port: int, load: Load, number: int) -> None:
    """One of a mixture: a new incident, an answer to one at whichever replica, a job, a search, a look."""
    began, kind = time.monotonic(), KINDS[number % len(KINDS)]
    known = load.incidents[number % len(load.incidents)] if load.incidents else ""
    if not known and kind == "look":
        kind = "incident"
    try:
        status = _ask(port, load, kind, known)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        load.failed.append(f"{began - load.began:.1f} s: {kind}: {error!r}")
        return
    load.seconds.append(time.monotonic() - began)
    load.answers[f"{kind} {status}"] += 1
    if status >= 400:
        load.failed.append(f"{began - load.began:.1f} s: {kind}: {status}")


def _ask(port: int, load: Load, kind: str, known: str) -> int:
    if kind == "incident":
        status, body = ask(port, "POST", "/v1/diagnoses", {"logs": [{"name": "a.log", "content": LOG}]})
        if status != 201:
            return status
        if not body["incident"]:
            return 599  # answered and not kept
        load.incidents.append(str(body["incident"]))
        return status
    if kind == "search":
        return ask(port, "POST", "/v1/tools/search_knowledge", {"query": "out of memory"})[0]
    if kind == "answer":
        status, body = ask(port, "POST", "/v1/diagnoses", {"text": "slow since the update"})
        if status != 201 or not body["incident"]:
            return max(status, 400)
        fresh = str(body["incident"])
        load.incidents.append(fresh)
        given = {"revision": 1, "answers": {"incident.phase": "startup"}}
        status, _ = ask(port, "POST", f"/v1/diagnoses/{fresh}/answers", given)
        if status == 200:
            load.answered.append((fresh, "startup"))
        return status
    if kind == "job":
        call = {"tool": "search_knowledge", "arguments": {"query": "nccl"}}
        status, body = ask(port, "POST", "/v1/jobs", call)
        if status == 202:
            load.jobs.append(str(body["id"]))
        return status
    return ask(port, "GET", f"/v1/diagnoses/{known}")[0]


@contextlib.contextmanager
def at_a_rate(port: int, load: Load, per_second: float) -> Iterator[None]:
    """Requests at a fixed rate while the block runs, however long the earlier ones take."""
    ended, running = threading.Event(), []

    def send() -> None:
        number, due = 0, time.monotonic()
        while not ended.wait(max(0.0, due - time.monotonic())):
            thread = threading.Thread(target=one_request, args=(port, load, number), daemon=True)
            thread.start()
            running.append(thread)
            number, due = number + 1, due + 1 / per_second

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join(10)
        for thread in running:
            thread.join(70)
        assert not any(thread.is_alive() for thread in running), "a request hangs"


def settle(url: str, load: Load, seconds: float = 90) -> None:
    """Wait until the jobs that were taken are finished."""
    database = Database(url, timeout_s=30)
    jobs, open_, until = Jobs(database), set(load.jobs), time.monotonic() + seconds
    while open_ and time.monotonic() < until:
        open_ = {job for job in open_ if not jobs.get(job).finished}
        time.sleep(0.3)
    database.close()


def everything_is_there(url: str, load: Load, *, allowed: frozenset[str] = frozenset({"done"})) -> Counter[str]:
    """Assert that nothing acknowledged is lost and that every job ended as is ``allowed``; returns how they ended.

    An interrupted job must say so.
    """
    database = Database(url, timeout_s=30)
    incidents, jobs = Incidents(database), Jobs(database)
    for incident in load.incidents:
        assert incidents.get(incident).id == incident
    for incident, value in load.answered:
        assert [answer.value for answer in incidents.get(incident).answers] == [value]
    found = [jobs.get(job) for job in load.jobs]
    database.close()
    assert {job.state for job in found} <= allowed, Counter((job.state, job.error) for job in found)
    for job in found:
        assert job.state == "done" and job.result or job.state != "done" and job.error, job
    return Counter(job.state for job in found)
