"""A server under mixed load for as long as `--soak-seconds` says: memory flat, nothing leaked, as quick as at the beginning.

The report is printed, and written as JSON where ``SOAK_REPORT`` names a file.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.assistant.faces.serving import Served, served
from tests.assistant.faces.slack.driver import SECRET, User
from tests.assistant.faces.slack.standin import Slack
from tests.endurance.faulty import Faulty

DATA = Path(__file__).resolve().parents[1] / "data" / "lab"
#: Parts of the whole time: the first is warm-up, the others are compared with each other.
PERIODS = 8
GROWTH = 0.05
#: Requests a second, all kinds together.
PER_SECOND = float(os.environ.get("SOAK_PER_SECOND", "6"))
_SAMPLE_S = 2.0
_MIB = 1 << 20


@dataclass
class Sample:
    """What the server's processes hold at one moment. Sizes in bytes; ``rss`` of the server and of its readers."""

    at_s: float
    server_rss: int
    readers_rss: int
    descriptors: int
    threads: int
    processes: int


@dataclass
class Period:
    """One part of the time."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def median(self, what: str) -> float:
        values = sorted(float(getattr(sample, what)) for sample in self.samples)
        return values[len(values) // 2] if values else 0.0

    def quantile_s(self, kind: str, share: float) -> float:
        times = sorted(self.seconds[kind])
        return times[min(int(len(times) * share), len(times) - 1)] if times else 0.0


@dataclass
class Soak:
    """The load and what was seen of it."""

    server: Served
    slack: Slack
    began: float = field(default_factory=time.monotonic)
    seconds: float = 240.0
    periods: list[Period] = field(default_factory=lambda: [Period(f"{number + 1}") for number in range(PERIODS)])
    failed: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def period(self, at: float | None = None) -> Period:
        gone = (time.monotonic() if at is None else at) - self.began
        return self.periods[min(int(gone / self.seconds * PERIODS), PERIODS - 1)]

    def sample(self) -> None:
        pids = [self.server.process.pid, *descendants(self.server.process.pid)]
        sizes, descriptors, threads = [], 0, 0
        for pid in pids:
            with contextlib.suppress(OSError):
                status = dict(
                    line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
                )
                if "VmRSS" not in status:
                    continue  # it has ended, and nobody has asked for its status yet
                sizes.append(int(status["VmRSS"].split()[0]) * 1024)
                threads += int(status["Threads"])
                descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        sample = Sample(time.monotonic() - self.began, sizes[0], sum(sizes[1:]), descriptors, threads, len(sizes))
        self.period().samples.append(sample)

    def one(self, kind: str, work: Callable[[], int]) -> None:
        began = time.monotonic()
        try:
            status = work()
        except Exception as error:  # noqa: BLE001  (the main thread asserts that there is none)
            self.failed.append(f"{began - self.began:.0f} s {kind}: {error!r}")
            return
        self.period(began).seconds[kind].append(time.monotonic() - began)
        self.statuses[f"{kind} {status}"] += 1
        if status >= 400:
            self.failed.append(f"{began - self.began:.0f} s {kind}: {status}")


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


# --- the mixture -------------------------------------------------------------------------------------------------------


def logs_of_many_sizes() -> dict[str, bytes]:
    """Real logs, repeated: from 1 KB to 50 MB. Runs that repeat are read as runs, which costs most."""
    real = (DATA / "tp2-truncated" / "server.log").read_bytes()
    calm = b"(APIServer pid=1) INFO 11-21 10:00:00 [loggers.py:127] Engine 000: Avg prompt throughput: 1.0 tokens/s\n"
    return {
        "log 1 KB": real[-1000:],
        "log 40 KB": real,
        "log 1 MB": (real * (_MIB // len(real) + 1))[:_MIB],
        "log 8 MB": calm * (7 * _MIB // len(calm)) + (real * (_MIB // len(real) + 1))[:_MIB],
        "log 50 MB": calm * (49 * _MIB // len(calm)) + (real * (_MIB // len(real) + 1))[:_MIB],
    }


def multipart(data: bytes) -> tuple[bytes, str]:
    edge = "soak-edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="logs"; filename="a.log"\r\n\r\n'.encode()
    return head + data + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def ask(server: Served, method: str, path: str, body: bytes | None, kind: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=90)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": kind, "Host": "127.0.0.1", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def mixture(soak: Soak) -> dict[str, tuple[int, Callable[[], int]]]:
    """Kinds of requests with their weights."""
    server, json_kind = soak.server, "application/json"
    logs = {name: multipart(data) for name, data in logs_of_many_sizes().items()}
    user = User(soak.slack, f"http://127.0.0.1:{server.port}")

    def log(name: str) -> Callable[[], int]:
        body, kind = logs[name]
        return lambda: ask(server, "POST", "/v1/diagnoses", body, kind)[0]

    def post(path: str, body: Any, **headers: str) -> Callable[[], int]:
        data = json.dumps(body).encode()
        return lambda: ask(server, "POST", path, data, json_kind, **headers)[0]

    def get(path: str) -> Callable[[], int]:
        return lambda: ask(server, "GET", path, None, json_kind)[0]

    def tool(name: str, arguments: Any) -> Callable[[], int]:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        wanted = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
        return post("/mcp", call, **wanted)

    def abandoned() -> int:
        """Somebody who hangs up while a large log is read."""
        body, kind = logs["log 8 MB"]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=90)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/diagnoses", body, {"Content-Type": kind, "Host": "127.0.0.1"})
            time.sleep(0.05)
        return 200

    def in_slack() -> int:
        return user.command("双卡起服务卡住，单卡正常，关掉 P2P 就好").status_code

    small = {"name": "a.log", "content": logs_of_many_sizes()["log 1 KB"].decode("utf-8", "replace")}
    return {
        "log 1 KB": (20, log("log 1 KB")),
        "log 40 KB": (12, log("log 40 KB")),
        "log 1 MB": (4, log("log 1 MB")),
        "log 8 MB": (2, log("log 8 MB")),
        "log 50 MB": (1, log("log 50 MB")),
        "abandoned": (2, abandoned),
        "metrics": (4, post("/v1/tools/fetch_metrics", {"target": "live", "window_s": 1.5})),
        "target": (1, post("/v1/diagnoses", {"text": "slow", "target": "live"})),
        "memory": (8, post("/v1/tools/estimate_memory", {"model": "meta-llama/Llama-3.1-8B", "gpu": "H100"})),
        "search": (12, post("/v1/tools/search_knowledge", {"query": "out of memory"})),
        "job": (4, post("/v1/jobs", {"tool": "search_knowledge", "arguments": {"query": "nccl"}})),
        "mcp": (10, tool("diagnose", {"text": "it hangs at start", "logs": [small]})),
        "slack": (6, in_slack),
        "page": (6, get("/runbooks")),
        "own figures": (4, get("/metrics")),
    }


@contextlib.contextmanager
def under_load(soak: Soak) -> Iterator[None]:
    """Requests at a fixed rate while the block runs; so few at once that a busy machine is not the limit."""
    kinds = mixture(soak)
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    chance, ended = random.Random(8), threading.Event()
    room = threading.Semaphore(8)

    def send() -> None:
        running: list[threading.Thread] = []
        for number in itertools.count():
            due = soak.began + number / PER_SECOND
            if ended.wait(max(0.0, due - time.monotonic())):
                break
            room.acquire()
            kind = chance.choices(names, weights)[0]

            def work(kind: str = kind) -> None:
                try:
                    soak.one(kind, kinds[kind][1])
                finally:
                    room.release()

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            running = [one for one in running if one.is_alive()] + [thread]
        for thread in running:
            thread.join(120)

    def trim() -> None:
        """The stand-in keeps every message; a soak does not want its own memory to grow."""
        while not ended.wait(5):
            for kept in (soak.slack.messages, soak.slack.posts, soak.slack.whispers):
                del kept[:-100]

    threads = [threading.Thread(target=run, daemon=True) for run in (send, trim)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(180)


def report(soak: Soak, rest: tuple[Sample, Sample]) -> str:
    """Everything as a table."""
    lines = [
        f"\nsoak of {soak.seconds:.0f} s at {PER_SECOND:g} requests a second; medians of {PERIODS} periods, the first is warm-up"
    ]
    lines.append("period  server MiB  readers MiB  descriptors  threads  processes")
    for period in soak.periods:
        row = [period.median("server_rss") / _MIB, period.median("readers_rss") / _MIB]
        row += [period.median(name) for name in ("descriptors", "threads", "processes")]
        lines.append(f"{period.name:>6}  {row[0]:10.1f}  {row[1]:11.1f}  {row[2]:11.0f}  {row[3]:7.0f}  {row[4]:9.0f}")
    for name, sample in zip(("before", "after"), rest, strict=True):
        lines.append(
            f"{name:>6}  {sample.server_rss / _MIB:10.1f}  {sample.readers_rss / _MIB:11.1f}  {sample.descriptors:11}  "
            f"{sample.threads:7}  {sample.processes:9}   (at rest)"
        )
    lines.append("p50 / p99 in ms by kind and period")
    for kind in sorted({kind for period in soak.periods for kind in period.seconds}):
        cells = [f"{p.quantile_s(kind, 0.5) * 1000:.0f}/{p.quantile_s(kind, 0.99) * 1000:.0f}" for p in soak.periods]
        count = sum(len(period.seconds[kind]) for period in soak.periods)
        lines.append(f"{kind:12} {count:6}  " + "  ".join(f"{cell:>10}" for cell in cells))
    lines.append(f"{sum(soak.statuses.values())} requests {dict(soak.statuses)}; failed {soak.failed[:5]}")
    return "\n".join(lines)


@pytest.mark.endure
def test_soak(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = (DATA / "healthy" / "metrics-0.txt").read_bytes()
    with Faulty("page", page=page) as live, contextlib.ExitStack() as stack:
        slack = Slack().start()
        stack.callback(slack.stop)
        targets = tmp_path / "targets.yaml"
        targets.write_text(json.dumps({"targets": {"live": {"address": live.address}}}))
        settings = {
            "targets_file": str(targets),
            "server_readers": "2",
            "server_metrics": "open",
            "slack_signing_secret": SECRET,
            "slack_bot_token": "xoxb-good",
            "slack_api_url": slack.api_url,
        }
        server = stack.enter_context(served(tmp_path, **settings))
        server.until_ready()
        soak = Soak(server, slack, seconds=float(request.config.getoption("--soak-seconds")))
        soak.sample()
        before = soak.periods[0].samples[-1]
        with under_load(soak):
            while time.monotonic() - soak.began < soak.seconds:
                time.sleep(_SAMPLE_S)
                soak.sample()
        time.sleep(35)  # what waits for an idle connection to end has ended then
        soak.sample()
        after = soak.periods[-1].samples.pop()
        text = report(soak, (before, after))
        print(text)
        if file := os.environ.get("SOAK_REPORT"):
            Path(file).write_text(
                json.dumps([[asdict(sample) for sample in period.samples] for period in soak.periods])
            )
        assert not soak.failed, soak.failed[:10]
        judge(soak, before, after)


def judge(soak: Soak, before: Sample, after: Sample) -> None:
    """Flat: the last quarter against the first after the warm-up. Nothing leaked: at rest as before."""
    early, late = soak.periods[1:3], soak.periods[-2:]

    def mean(periods: list[Period], what: str) -> float:
        return sum(period.median(what) for period in periods) / len(periods)

    if soak.seconds >= 1200:  # a short soak is still warming up: its report is for people
        for what in ("server_rss", "readers_rss"):
            grown = mean(late, what) / mean(early, what) - 1
            assert grown < GROWTH, f"{what} grew by {grown:.1%}"
        for kind in ("log 1 KB", "search", "mcp"):
            was, now = (max(p.quantile_s(kind, 0.99) for p in periods) for periods in (early, late))
            assert now < was * 2 + 0.5, f"p99 of {kind} went from {was:.2f} s to {now:.2f} s"
    assert after.processes == before.processes, (before, after)
    # Connections to the database and threads of pools come with the first load and stay; they are bounded.
    assert after.descriptors <= before.descriptors + 24, (before, after)
    assert after.threads <= before.threads + 24, (before, after)
