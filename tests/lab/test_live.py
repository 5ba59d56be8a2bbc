"""A real vLLM server under real load, diagnosed live by the command: every state must get its verdict.

Two servers are started, each on two busy cores in about a minute, so this runs with the laboratory in `make verify`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def running(folder: Path, *serve: str) -> Iterator[Any]:
    """A server with the tiny model; whatever happens, nothing of it stays."""
    folder.mkdir()
    server = laboratory().Server(LAB.resolve(), {"serve": ["--served-model-name", "tiny", *serve]}, folder)
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


def post(server: Any, path: str, body: object, limit_s: float = 120.0) -> int:
    """The status of one request; 0 where none came."""
    request = urllib.request.Request(
        server.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=limit_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def refusal(server: Any, path: str, body: object) -> dict[str, Any]:
    """What a refused request gets back, as a line of responses.jsonl."""
    request = urllib.request.Request(
        server.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    return {"path": path, "status": refused.value.code, "body": refused.value.read(4000).decode(errors="replace")}


@contextmanager
def load(server: Any, clients: int, path: str = "/v1/completions", **body: object) -> Iterator[None]:
    """That many clients, each asking again as soon as it was answered."""
    over = threading.Event()
    whole = {"model": "tiny", "prompt": "the server answers", "ignore_eos": True, **body}

    def client() -> None:
        while not over.is_set():
            if post(server, path, whole) != 200:
                time.sleep(0.2)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    try:
        yield
    finally:
        over.set()


def settle(server: Any) -> None:
    """Waits until nothing runs any more."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with urllib.request.urlopen(server.base + "/metrics", timeout=20) as answer:
            levels = [
                float(line.rsplit(" ", 1)[1])
                for line in answer.read().decode().splitlines()
                if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
            ]
        if not any(levels):
            return
        time.sleep(0.5)


def test_a_real_server_in_good_and_bad_states(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    with running(tmp_path / "a", "--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager") as server:
        found["idle"] = verdict(diagnose(server))
        with load(server, 2, max_tokens=60):
            found["healthy"] = verdict(diagnose(server))
        settle(server)
        with load(server, 1, path="/v1/completions", prompt="x", max_tokens=90_000):
            found["wrong requests"] = verdict(diagnose(server))
            answer = refusal(server, "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 90_000})
            (tmp_path / "responses.jsonl").write_text(json.dumps(answer) + "\n")
            logs = ("--log", str(server.log), "--log", str(tmp_path / "responses.jsonl"))
            found["wrong requests, with what they got back"] = verdict(diagnose(server, *logs, command="ask"))
        with load(server, 1, path="/generate"):
            found["wrong route"] = verdict(diagnose(server))
        with load(server, 40, max_tokens=300):
            found["queue"] = verdict(diagnose(server))
            for process in ("EngineCore", "Worker"):
                server.signal("STOP", process)
                time.sleep(1)
                found[f"stopped {process}"] = verdict(diagnose(server))
                server.signal("CONT", process)
                time.sleep(2)
            found["after the stop"] = verdict(diagnose(server))
        server.signal("KILL", "EngineCore")
        time.sleep(3)
        found["killed"] = verdict(diagnose(server))
    print(json.dumps(found, indent=1))
    assert found == {
        "idle": "healthy",
        "healthy": "healthy",
        "wrong requests": "unknown",
        "wrong requests, with what they got back": "serving/context-length-exceeded",
        "wrong route": "serving/wrong-route",
        "queue": "performance/queue-buildup",
        "stopped EngineCore": "engine/stalled",
        "stopped Worker": "engine/stalled",
        "after the stop": "performance/queue-buildup",
        "killed": "serving/endpoint-unreachable",
    }


def test_a_real_server_whose_cache_is_too_small(tmp_path: Path) -> None:
    serve = ("--max-model-len", "1024", "--num-gpu-blocks-override", "40", "--block-size", "32", "--enforce-eager")
    with running(tmp_path / "b", *serve) as server, load(server, 24, max_tokens=900):
        answer = diagnose(server)
    assert verdict(answer) == "memory/kv-cache-preemption"
    assert any("num_preemptions_total" in quote["text"] for quote in answer["causes"][0]["because"])
