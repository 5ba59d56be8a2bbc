"""A real vLLM server under real load, diagnosed live by the command: every state must get its verdict.

One server goes through all states. Each state is first seen to be there, in the server's own figures, and then diagnosed
once: what the verdict says is never asked for a second time. It runs at the end of `make test` where the laboratory is.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.lab.laboratory import LAB, ROOT, laboratory

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not (LAB / "model" / "model.safetensors").exists(), reason="the laboratory is not installed (make lab)"
    ),
]

#: Seconds that a state has to come about.
COMES_S = 90.0


@contextmanager
def running(folder: Path, *serve: str) -> Iterator[Any]:
    """A server with the tiny model; whatever happens, nothing of it stays."""
    folder.mkdir()
    fault = {"serve": ["--served-model-name", "tiny", *serve], "one_processor": True}
    server = laboratory().Server(LAB.resolve(), fault, folder)
    try:
        server.start()
        assert server.wait_until_up(), server.log.read_text(errors="replace")[-3000:]
        yield server
    finally:
        for name in ("Worker", "EngineCore"):  # what was stopped must be able to end
            with suppress(RuntimeError, ProcessLookupError):
                server.signal("CONT", name)
        server.stop()


def diagnose(server: Any, *arguments: str, command: str = "metrics") -> dict[str, Any]:
    """What the command says of the server."""
    given = [server.base] if command == "metrics" else ["--target", server.base]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "assistant.faces.cli.main",
            command,
            *given,
            "-o",
            "json",
            "--deadline",
            "45",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=150,  # on a machine that does much else besides
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def verdict(answer: dict[str, Any]) -> str:
    return str(answer["causes"][0]["id"] if answer["verdict"] == "cause" else answer["verdict"])


def figures(server: Any) -> dict[str, float]:
    """The server's own figures, by the names it exports them under, summed over their labels; empty where it is late."""
    found: dict[str, float] = {}
    try:
        with urllib.request.urlopen(server.base + "/metrics", timeout=20) as answer:
            page = answer.read().decode()
    except OSError:
        return found
    for line in page.splitlines():
        if line.startswith(("vllm:", "http_requests_total{")):
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            if 'status="4xx"' in series:
                name += ":4xx"
            found[name] = found.get(name, 0.0) + float(value)
    return found


#: Of the figures half a second ago and those of now.
Seen = Callable[[dict[str, float], dict[str, float]], bool]


def wait_for(server: Any, state: str, seen: Seen) -> None:
    """Waits until two looks in succession show the state; fails with the last figures where it does not come about."""
    end, before = time.monotonic() + COMES_S, figures(server)
    while time.monotonic() < end:
        time.sleep(0.5)
        now = figures(server)
        if before and now and seen(before, now):
            return
        before = now
    shown = {name: value for name, value in before.items() if "num_" in name or name.startswith("http")}
    pytest.fail(f"{state} did not come about within {COMES_S:g} s: {shown}\n{server.log.read_text()[-2000:]}")


def grew(name: str, by: float = 1.0) -> Seen:
    return lambda before, now: now.get(name, 0.0) >= before.get(name, 0.0) + by


def has_queue(before: dict[str, float], now: dict[str, float]) -> bool:
    queued, tokens = "vllm:num_requests_waiting", "vllm:generation_tokens_total"
    return min(before[queued], now[queued]) > 0 and now[tokens] > before[tokens]


def stands_still(before: dict[str, float], now: dict[str, float]) -> bool:
    running, tokens = "vllm:num_requests_running", "vllm:generation_tokens_total"
    return min(before[running], now[running]) > 0 and now[tokens] == before[tokens]


def is_at_rest(before: dict[str, float], now: dict[str, float]) -> bool:
    return not any(now[f"vllm:num_requests_{what}"] for what in ("running", "waiting"))


def settle(server: Any) -> None:
    """Waits until nothing runs any more."""
    wait_for(server, "rest", is_at_rest)


def refusal(server: Any, path: str, body: object) -> dict[str, Any]:
    """What a refused request gets back, as a line of responses.jsonl."""
    request = urllib.request.Request(
        server.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    return {"path": path, "status": refused.value.code, "body": refused.value.read(4000).decode(errors="replace")}


class Client(threading.Thread):
    """Asks again as soon as it was answered; hangs up when it is told that it is over."""

    def __init__(self, server: Any, path: str, body: object) -> None:
        super().__init__(daemon=True)
        self.connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
        self.path, self.body = path, json.dumps(body)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
                answer = self.connection.getresponse()
                answer.read()
                pause = 0.0 if answer.status == 200 else 0.2
            except (OSError, HTTPException):
                self.connection.close()
                pause = 0.2
            self.over.wait(pause)

    def hang_up(self) -> None:
        """vLLM drops the request of whoever is gone, so the next state need not wait for its end."""
        self.over.set()
        with suppress(OSError, AttributeError):  # no connection is open at the moment
            self.connection.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def load(server: Any, clients: int, path: str = "/v1/completions", **body: object) -> Iterator[None]:
    """That many clients for as long as it lasts."""
    whole = {"model": "tiny", "prompt": "the server answers", "ignore_eos": True, **body}
    threads = [Client(server, path, whole) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.hang_up()
        for thread in threads:
            thread.join(10)


def test_a_real_server_in_good_and_bad_states(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    answers: dict[str, dict[str, Any]] = {}
    started = time.monotonic()

    def look(state: str, *arguments: str, command: str = "metrics") -> None:
        answer = answers[state] = diagnose(server, *arguments, command=command)
        found[state] = verdict(answer)
        print(f"{time.monotonic() - started:5.1f} s  {state}: {found[state]}  {answer['summary']}", flush=True)

    # 40 blocks of 32 tokens: four answers of 200 tokens fit, four of 900 do not.
    serve = ("--max-model-len", "1024", "--num-gpu-blocks-override", "40", "--block-size", "32")
    with running(tmp_path / "a", *serve, "--max-num-seqs", "4", "--enforce-eager") as server:
        look("idle")
        with load(server, 2, max_tokens=60):
            wait_for(server, "work", grew("vllm:generation_tokens_total"))
            look("healthy")
        settle(server)
        with load(server, 1, max_tokens=90_000):
            wait_for(server, "a refusal", grew("http_requests_total:4xx"))
            look("wrong requests")
            answer = refusal(server, "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 90_000})
            (tmp_path / "responses.jsonl").write_text(json.dumps(answer) + "\n")
            logs = ("--log", str(server.log), "--log", str(tmp_path / "responses.jsonl"))
            look("wrong requests, with what they got back", *logs, command="ask")
        with load(server, 1, path="/generate"):
            wait_for(server, "a refusal", grew("http_requests_total:4xx"))
            look("wrong route")
        with load(server, 8, max_tokens=900):
            wait_for(server, "preemption", grew("vllm:num_preemptions_total"))
            look("preemption", "--window", "15")  # on a busy machine several seconds pass between two
        settle(server)
        with load(server, 24, max_tokens=200):
            wait_for(server, "a queue", has_queue)
            look("queue")
            for process in ("EngineCore", "Worker"):
                server.signal("STOP", process)
                wait_for(server, "a standstill", stands_still)
                look(f"stopped {process}")
                server.signal("CONT", process)
                wait_for(server, "going on", has_queue)
            look("after the stop")
        server.signal("KILL", "Worker")
        server.process.wait(COMES_S)  # the engine notices, and the front end ends with it
        look("killed")
        look("killed, with its log", "--log", str(server.log), command="ask")
    assert found == {
        "idle": "healthy",
        "healthy": "healthy",
        "wrong requests": "unknown",
        "wrong requests, with what they got back": "serving/context-length-exceeded",
        "wrong route": "serving/wrong-route",
        "preemption": "memory/kv-cache-preemption",
        "queue": "performance/queue-buildup",
        "stopped EngineCore": "engine/stalled",
        "stopped Worker": "engine/stalled",
        "after the stop": "performance/queue-buildup",
        "killed": "serving/endpoint-unreachable",
        "killed, with its log": "distributed/worker-died",
    }
    # The first guess; the metrics say no more than "4xx".
    assert answers["wrong requests"]["causes"][0]["id"] == "serving/bad-request"
    because = answers["preemption"]["causes"][0]["because"]
    assert any("num_preemptions_total" in quote["text"] for quote in because)
