"""Several servers on one store: replaced one after the other under load, and killed at random points."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from assistant.store.database import Database
from assistant.store.incidents import Incidents
from assistant.store.jobs import Jobs
from tests.assistant.faces.serving import Served, served
from tests.assistant.store.conftest import _postgres_database, postgres_server  # noqa: F401 (a fixture)

#: Seconds between two probes of the proxy, and how long a server that stops waits for them.
PROBE_S, DRAIN_S = 0.25, 2.0
PER_SECOND = float(os.environ.get("ROLLING_PER_SECOND", "20"))
LOG = "ERROR 11-21 10:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


class Proxy:
    """Passes connections on, in turn, to the servers that say they are ready; as little as a load balancer can be.

    It knows nothing of HTTP beyond its probes, so it repeats nothing: what fails behind it, the client sees. A server that
    refuses, or says that it is not ready, gets no further connection; one that is slow to say so keeps its state. While
    none is ready a connection waits, as in the queue of HAProxy.
    """

    def __init__(self) -> None:
        self._backends: list[Served] = []
        self._ready: tuple[int, ...] = ()
        self._turn = 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._accept, self._probe)]

    def __enter__(self) -> Proxy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def add(self, server: Served) -> None:
        """Send connections to ``server`` too, and wait until the probe has seen it."""
        self._backends = [*self._backends, server]
        until = time.monotonic() + 60
        while server.port not in self._ready:
            assert time.monotonic() < until
            time.sleep(0.05)

    def remove(self, server: Served) -> None:
        """Forget a server that has ended."""
        self._backends = [one for one in self._backends if one is not server]
        self._ready = tuple(port for port in self._ready if port != server.port)

    def _probe(self) -> None:
        while not self._ended.wait(PROBE_S):
            for server in self._backends:
                ready = False
                try:
                    ready = server.ask("GET", "/readyz", timeout=2)[0] == 200
                except TimeoutError:
                    continue
                except (OSError, http.client.HTTPException):
                    ready = False
                others = tuple(port for port in self._ready if port != server.port)
                self._ready = (*others, server.port) if ready else others

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client:
            until = time.monotonic() + 30
            while not (ready := self._ready):
                if self._ended.wait(0.02) or time.monotonic() > until:
                    return
            self._turn += 1
            try:
                backend = socket.create_connection(("127.0.0.1", ready[self._turn % len(ready)]), 5)
            except OSError:
                return
            with backend, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
                selector.register(client, selectors.EVENT_READ, backend)
                selector.register(backend, selectors.EVENT_READ, client)
                while not self._ended.is_set():
                    for key, _ in selector.select(60):
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)


@dataclass
class Load:
    """What the clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    answered: list[tuple[str, str]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        headers = {"Host": "127.0.0.1", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def one_request(port: int, load: Load, number: int) -> None:
    """One of a mixture: a new incident, an answer to an earlier one at whichever replica, a job, a search, a look."""
    began, kind = time.monotonic(), ("incident", "search", "answer", "look", "job", "search")[number % 6]
    known = load.incidents[number % len(load.incidents)] if load.incidents else ""
    if not known and kind in ("answer", "look"):
        kind = "incident"
    try:
        if kind == "incident":
            status, body = ask(port, "POST", "/v1/diagnoses", {"logs": [{"name": "a.log", "content": LOG}]})
            if status == 201 and body["incident"]:
                load.incidents.append(str(body["incident"]))
            elif status == 201:
                status = 599  # answered and not kept
        elif kind == "search":
            status, _ = ask(port, "POST", "/v1/tools/search_knowledge", {"query": "out of memory"})
        elif kind == "answer":
            fresh = str(ask(port, "POST", "/v1/diagnoses", {"text": "slow since the update"})[1]["incident"])
            given = {"revision": 1, "answers": {"incident.phase": "startup"}}
            status, _ = ask(port, "POST", f"/v1/diagnoses/{fresh}/answers", given)
            if status == 200:
                load.answered.append((fresh, "startup"))
        elif kind == "job":
            call = {"tool": "search_knowledge", "arguments": {"query": "nccl"}}
            status, body = ask(port, "POST", "/v1/jobs", call)
            if status == 202:
                load.jobs.append(str(body["id"]))
        else:
            status, _ = ask(port, "GET", f"/v1/diagnoses/{known}")
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        load.failed.append(f"{kind}: {error!r}")
        return
    load.seconds.append(time.monotonic() - began)
    load.answers[f"{kind} {status}"] += 1
    if status >= 400:
        load.failed.append(f"{kind}: {status}")


@contextlib.contextmanager
def twenty_a_second(port: int, load: Load) -> Iterator[None]:
    """Requests at a fixed rate, however long the earlier ones take."""
    ended, running = threading.Event(), []

    def send() -> None:
        number, due = 0, time.monotonic()
        while not ended.wait(max(0.0, due - time.monotonic())):
            thread = threading.Thread(target=one_request, args=(port, load, number), daemon=True)
            thread.start()
            running.append(thread)
            number, due = number + 1, due + 1 / PER_SECOND

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


def everything_is_there(url: str, load: Load, *, interrupted: bool) -> None:
    """Nothing that was acknowledged is lost. A job may be interrupted only where its process was killed twice."""
    database = Database(url, timeout_s=30)
    incidents, jobs = Incidents(database), Jobs(database)
    for incident in load.incidents:
        assert incidents.get(incident).id == incident
    for incident, value in load.answered:
        assert [answer.value for answer in incidents.get(incident).answers] == [value]
    ended = Counter((found.state, found.error) for found in map(jobs.get, load.jobs))
    allowed = {"done", "interrupted"} if interrupted else {"done"}
    # On a busy machine a tool may pass its own deadline, and its job says so: that is an end and no loss.
    assert {state for state, error in ended if "did not finish within" not in (error or "")} <= allowed, ended
    database.close()


def settle(url: str, load: Load, seconds: float = 90) -> None:
    """Wait until the jobs that were taken are finished."""
    database = Database(url, timeout_s=30)
    until = time.monotonic() + seconds
    while not all(Jobs(database).get(job).finished for job in load.jobs) and time.monotonic() < until:
        time.sleep(0.3)
    database.close()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("seconds", [float(os.environ.get("ROLLING_SECONDS", "120"))])
def test_replicas_are_replaced_under_load_and_no_request_fails(
    postgres_server: str,  # noqa: F811
    tmp_path: Path,
    seconds: float,
    record_property: pytest.RecordProperty,
) -> None:
    with _postgres_database(postgres_server) as url, Proxy() as proxy, contextlib.ExitStack() as stack:
        settings = {"store_url": url, "server_drain_s": str(DRAIN_S), "jobs_lease_s": "5", "store_timeout_s": "20"}

        def start() -> tuple[Served, contextlib.ExitStack]:
            life = stack.enter_context(contextlib.ExitStack())
            home = Path(tempfile.mkdtemp(dir=tmp_path))
            server = life.enter_context(served(home, **settings))
            server.until_ready()
            proxy.add(server)
            return server, life

        replicas, load, replaced = [start(), start()], Load(), 0
        with twenty_a_second(proxy.port, load):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                server, life = replicas.pop(0)
                server.stop(60)
                proxy.remove(server)
                life.close()
                replicas.append(start())
                replaced += 1
                time.sleep(2)
        times = sorted(load.seconds)
        p99 = times[int(len(times) * 0.99)]
        record_property("replaced", replaced)
        print(
            f"\nreplaced {replaced} times, {sum(load.answers.values())} requests, p99 {p99:.2f} s, {dict(load.answers)}"
        )
        assert load.failed == []
        settle(url, load)
        everything_is_there(url, load, interrupted=False)
        assert replaced >= 2 and load.jobs and load.answered


def killed(url: str, home: Path, points: int) -> Load:
    """Kill a whole server, readers and all, ``points`` times while clients write to it."""
    chance, load = random.Random(points), Load()
    for _ in range(points):
        with served(home, store_url=url, jobs_lease_s="1", store_timeout_s="20") as server:
            server.until_ready(120)
            ended = threading.Event()

            def write(server: Served = server, ended: threading.Event = ended, base: int = 0) -> None:
                number = base
                while not ended.is_set():
                    one_request(server.port, load, number)
                    number += 1

            writers = [threading.Thread(target=write, kwargs={"base": base}, daemon=True) for base in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(0.05 + chance.random() * 0.8)
            server.process.kill()
            ended.set()
            for writer in writers:
                writer.join(70)
    with served(home, store_url=url, jobs_lease_s="1") as server:
        server.until_ready(120)
        settle(url, load)
    return load


@pytest.mark.slow
def test_killing_the_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    load = killed(url, tmp_path, 8)
    everything_is_there(url, load, interrupted=True)
    assert load.incidents and load.jobs
    with Database(url).read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@pytest.mark.endure
@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_killing_the_server_at_two_hundred_points_loses_nothing_acknowledged(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    with contextlib.ExitStack() as stack:
        if store == "sqlite":
            url = f"sqlite:///{tmp_path / 'store.db'}"
        else:
            url = stack.enter_context(_postgres_database(request.getfixturevalue("postgres_server")))
        load = killed(url, tmp_path, 200)
        everything_is_there(url, load, interrupted=True)
        assert load.incidents and load.answered and load.jobs
    shutil.rmtree(tmp_path / "vllm-diagnose", ignore_errors=True)
