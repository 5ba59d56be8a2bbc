"""Several servers on one store: replaced one after the other under load, and killed at random points."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from assistant.security.roles import Role
from assistant.security.tokens import Tokens
from assistant.store.database import Database
from assistant.store.migrations import migrate
from tests.assistant.faces.serving import Served, served
from tests.assistant.faces.slack.driver import SECRET, User
from tests.assistant.faces.slack.standin import Slack
from tests.assistant.faces.web.conftest import Page
from tests.assistant.store.conftest import _postgres_database, postgres_server  # noqa: F401 (a fixture)
from tests.endurance.load import Load, at_a_rate, everything_is_there, one_request, settle
from tests.endurance.proxy import PROBE_S, Proxy

#: Seconds for which a server that stops still takes requests: twice the probe's period, as docs/operations.md says, and
#: what a probe on a busy machine may take.
DRAIN_S = 2 * PROBE_S + 1.5
PER_SECOND = float(os.environ.get("ROLLING_PER_SECOND", "20"))
SECONDS = float(os.environ.get("ROLLING_SECONDS", "120"))


class Talks:
    """People who go on with a conversation for as long as they are let: each step at whichever replica is there."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.done = [0] * len(steps)
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._talk, args=(place, step), daemon=True) for place, step in enumerate(steps)
        ]

    def __enter__(self) -> Talks:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(90)

    def _talk(self, place: int, step: Callable[[], None]) -> None:
        while not self._ended.wait(0.5):
            try:
                step()
                self.done[place] += 1
            except Exception as error:  # noqa: BLE001  (the main thread asserts that there is none)
                self.failed.append(f"{step.__qualname__}: {error!r}")


class SlackTalk:
    """One thread in Slack: asked once, then the language is switched again and again."""

    def __init__(self, slack: Slack, address: str) -> None:
        self._user = User(slack, address)
        self._user.client = httpx.Client(timeout=60, headers={"Connection": "close"})
        self._message = None

    def step(self) -> None:
        if self._message is None:
            assert self._user.command("双卡起服务卡住，单卡正常，关掉 P2P 就好").status_code == 200
            self._message = self._user.answer(0, 60)
            return
        before = self._message.blocks
        assert self._user.press(self._message, "language").status_code == 200
        self._user.changed(self._message, before, 60)


class WebTalk:
    """One signed-in browser without a script: asks, answers the question that comes, reads the page."""

    def __init__(self, address: str, token: str) -> None:
        self._page = Page(httpx.Client(base_url=address, timeout=60, headers={"Connection": "close"}))
        signed_in = self._page.post("/login", {"token": token}, on="/login")
        assert signed_in.status_code == 303, signed_in.text[:500]

    def step(self) -> None:
        asked = self._page.post(
            "/ask", {"text": "my server with 2 GPUs hangs at start"}, on="/", files=[("logs", ("", b""))]
        )
        assert asked.status_code == 303, (asked.status_code, asked.text[:300])
        address = asked.headers["location"]
        given = {"revision": "1", "question": "incident.cured_by_p2p_off", "value": "yes"}
        answered = self._page.post(f"{address}/answers", given, on=address)
        assert answered.status_code == 303, (answered.status_code, answered.text[:300])
        assert self._page.get(address).status_code == 200


@contextlib.contextmanager
def standing_in() -> Iterator[Slack]:
    slack = Slack().start()
    try:
        yield slack
    finally:
        slack.stop()


@pytest.mark.slow
@pytest.mark.postgres
def test_replicas_are_replaced_under_load_and_no_request_fails(
    postgres_server: str,  # noqa: F811
    tmp_path: Path,
    record_property: pytest.RecordProperty,
) -> None:
    with (
        _postgres_database(postgres_server) as url,
        Proxy() as proxy,
        standing_in() as slack,
        contextlib.ExitStack() as stack,
    ):
        address = f"http://127.0.0.1:{proxy.port}"
        settings = {
            "store_url": url,
            "server_drain_s": str(DRAIN_S),
            "server_public_url": address,
            "slack_signing_secret": SECRET,
            "slack_bot_token": "xoxb-good",
            "slack_api_url": slack.api_url,
        }
        database = Database(url)
        migrate(database)
        token = Tokens(database).create("on call", Role.viewer)[0]
        database.close()

        def start() -> tuple[Served, contextlib.ExitStack]:
            life = stack.enter_context(contextlib.ExitStack())
            home = Path(tempfile.mkdtemp(dir=tmp_path))
            server = life.enter_context(served(home, **settings))
            server.until_ready()
            proxy.add(server.port)
            return server, life

        replicas, load, replaced = [start(), start()], Load(), 0
        talks = Talks(SlackTalk(slack, address).step, WebTalk(address, token).step)
        with at_a_rate(proxy.port, load, PER_SECOND), talks:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                server, life = replicas.pop(0)
                assert server.stop(60) in (0, -15)  # uvicorn ends by the signal that it was sent
                proxy.remove(server.port)
                life.close()
                replicas.append(start())
                replaced += 1
                time.sleep(2)
        settle(url, load)
        print(
            f"\nreplaced {replaced} times, {sum(load.answers.values())} requests, p99 {load.p99_s:.2f} s, "
            f"{dict(load.answers)}; proxy {dict(proxy.seen)}; "
            f"steps in Slack {talks.done[0]}, in the browser {talks.done[1]}; failed {load.failed + talks.failed}"
        )
        record_property("replaced", replaced)
        assert load.failed == [] and talks.failed == []
        everything_is_there(url, load)
        assert replaced >= 2 and load.jobs and load.answered and min(talks.done) > replaced


def writing(port: int, load: Load, seconds: float, then: Callable[[], None]) -> None:
    """Four clients write for some seconds, then something happens to the server while they go on."""
    ended = threading.Event()

    def write(number: int) -> None:
        while not ended.is_set():
            one_request(port, load, number)
            number += 1

    writers = [threading.Thread(target=write, args=(base,), daemon=True) for base in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(seconds)
    then()
    ended.set()
    for writer in writers:
        writer.join(70)
    assert not any(writer.is_alive() for writer in writers), "a request outlives its server"


def killed(url: str, home: Path, points: int) -> tuple[Load, Counter[str]]:
    """Kill a server ``points`` times: mostly while clients write to it, sometimes while it starts or stops.

    Its reading processes are not killed with it: they have to notice. Says what was killed how often.
    """
    chance, load, moments = random.Random(points), Load(), Counter[str]()
    readers: set[int] = set()
    for point in range(points):
        moment = {4: "while it starts", 9: "while it stops"}.get(point % 10, "under writes")
        moments[moment] += 1
        with served(home, store_url=url, jobs_lease_s="1", store_timeout_s="20", server_drain_s="0.5") as server:
            if moment == "while it starts":
                time.sleep(chance.random() * 3)
                server.process.kill()
                continue
            server.until_ready(120)
            readers |= {int(child) for child in children_of(server.process.pid)}
            pause = 0.05 + chance.random() * 0.8
            if moment == "while it stops":
                after = chance.random()

                def stop(server: Served = server, after: float = after) -> None:
                    server.process.terminate()
                    time.sleep(after)
                    server.process.kill()

                writing(server.port, load, pause, stop)
            else:
                writing(server.port, load, pause, server.process.kill)
    with served(home, store_url=url, jobs_lease_s="1") as server:
        server.until_ready(120)
        settle(url, load)
    until = time.monotonic() + 10
    while any(is_reader(pid) for pid in readers) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(is_reader(pid) for pid in readers), "a reading process outlives its server"
    return load, moments


def children_of(pid: int) -> list[str]:
    """Processes that ``pid`` started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_reader(pid: int) -> bool:
    """Whether a process of ours still has this number."""
    with contextlib.suppress(OSError):
        return b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def kill_and_look(request: pytest.FixtureRequest, tmp_path: Path, store: str, points: int) -> None:
    with contextlib.ExitStack() as stack:
        if store == "sqlite":
            url = f"sqlite:///{tmp_path / 'store.db'}"
        else:
            url = stack.enter_context(_postgres_database(request.getfixturevalue("postgres_server")))
        load, moments = killed(url, tmp_path, points)
        # A search that was under way twice when its process was killed is not tried a third time, and says so.
        ended = everything_is_there(url, load, allowed=frozenset({"done", "interrupted"}))
        print(
            f"\n{store}: killed {dict(moments)}; acknowledged {len(load.incidents)} incidents, {len(load.answered)} "
            f"answers, {len(load.jobs)} jobs, none lost; jobs ended {dict(ended)}"
        )
        assert load.incidents and load.answered and load.jobs
        if store == "sqlite":
            with Database(url).read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").first() is None
    shutil.rmtree(tmp_path / "vllm-diagnose", ignore_errors=True)


STORES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_killing_the_server_at_twenty_points_loses_nothing_acknowledged(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    kill_and_look(request, tmp_path, store, 20)


@pytest.mark.endure
@pytest.mark.parametrize("store", STORES)
def test_killing_the_server_at_two_hundred_points_loses_nothing_acknowledged(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    kill_and_look(request, tmp_path, store, 200)
