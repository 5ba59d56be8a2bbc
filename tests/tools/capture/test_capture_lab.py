"""`capture` on the laboratory's real server: stopped, in a busy loop and in a lock, and alive afterwards each time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.security.consent import agree
from assistant.security.roles import LOCAL
from tests.lab.laboratory import LAB, laboratory
from tools.processes import server_of
from tools.registry import Context, get

pytestmark = pytest.mark.lab
#: Runs in every process of the server before vLLM does: two signals put its main thread where it shall hang.
HANGS = """
import os, signal, threading
FLAG = os.environ["HOLD_FLAG"]
def spin_here(*_):
    while os.path.exists(FLAG):
        pass
def take_it_twice(*_):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
signal.signal(signal.SIGUSR1, spin_here)
signal.signal(signal.SIGUSR2, take_it_twice)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (LAB / "model" / "model.safetensors").exists():
        pytest.skip("the laboratory is not installed (make lab)")
    folder = tmp_path_factory.mktemp("stuck")
    (folder / "early").mkdir()
    (folder / "early" / "sitecustomize.py").write_text(HANGS)
    fault = {
        "serve": ["--served-model-name", "tiny", "--tensor-parallel-size", "2"],
        "environment": {"PYTHONPATH": str(folder / "early"), "HOLD_FLAG": str(folder / "flag"), "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        "start_s": 420,
    }  # fmt: skip
    started = laboratory().Server(LAB.resolve(), fault, folder)
    try:
        started.start()
        if not started.wait_until_up():
            pytest.skip("the laboratory's server did not come up within 420 s on this machine")
        yield started
    finally:
        started.stop()


def take(server: Any, **arguments: Any) -> Any:
    import tools.capture.capture  # noqa: F401 (declares the action)

    action = get("capture")
    given = {"pid": server.process.pid, "seconds": 2.0, **arguments}
    return asyncio.run(action.call(given, Context(consent=agree(LOCAL, action, given))))


def pid_of(server: Any, title: str) -> int:
    found = server_of(server.process.pid)
    assert found is not None
    return next(p.pid for p in found.processes if p.title == title)


def answers(server: Any, tokens: int = 4) -> bool:
    request = urllib.request.Request(
        server.base + "/v1/completions",
        data=b'{"model": "tiny", "prompt": "a", "ignore_eos": true, "max_tokens": %d}' % tokens,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bool(answer.status == 200)


def fact(report: Any, name: str) -> Any:
    return next((f.value for f in report.facts if f.name == name), None)


def test_a_real_server_is_captured_in_every_state(server: Any, tmp_path: Path) -> None:
    """One server for all, because it takes minutes to start; each hang is undone before the next, but for the last."""
    idle = take(server)
    assert fact(idle, "capture.stuck") == "none", idle.processes
    assert {row.name for row in idle.processes} >= {"APIServer", "EngineCore", "Worker_TP0", "Worker_TP1"}
    assert all(row.doing == "idle" for row in idle.processes)

    asking = threading.Thread(target=answers, args=(server, 200))
    asking.start()
    time.sleep(0.5)
    os.kill(pid_of(server, "Worker_TP1"), signal.SIGSTOP)
    stopped = take(server)
    os.kill(pid_of(server, "Worker_TP1"), signal.SIGCONT)
    asking.join()
    assert (fact(stopped, "capture.stuck"), fact(stopped, "capture.process")) == ("stopped", "Worker_TP1")
    assert ".py" in fact(stopped, "capture.frame")  # where it stood, although no code of it runs
    assert stopped.alive
    assert answers(server)

    os.kill(pid_of(server, "EngineCore"), signal.SIGSTOP)
    frozen = take(server)
    os.kill(pid_of(server, "EngineCore"), signal.SIGCONT)
    assert (fact(frozen, "capture.stuck"), fact(frozen, "capture.process")) == ("stopped", "EngineCore")
    assert frozen.alive
    assert answers(server)

    flag = Path(server.fault["environment"]["HOLD_FLAG"])
    flag.touch()
    os.kill(pid_of(server, "Worker_TP0"), signal.SIGUSR1)
    time.sleep(0.5)
    spinning = take(server)
    flag.unlink()
    assert (fact(spinning, "capture.stuck"), fact(spinning, "capture.process")) == ("busy-loop", "Worker_TP0")
    frames = next(row.frames for row in spinning.processes if row.name == "Worker_TP0")
    assert any("spin_here" in frame for frame in frames[:2])
    assert answers(server)

    os.kill(pid_of(server, "EngineCore"), signal.SIGUSR2)
    time.sleep(0.5)
    folder = tmp_path / "bundle"
    locked = take(server, bundle=str(folder))
    assert (fact(locked, "capture.stuck"), fact(locked, "capture.process")) == ("lock", "EngineCore")
    assert "take_it_twice" in fact(locked, "capture.frame")
    assert {p.name for p in folder.iterdir()} >= {"capture.json", "server.log", "metrics-1.txt", "metrics-2.txt", "stacks.txt"}  # fmt: skip
    alive = subprocess.run(["kill", "-0", str(server.process.pid), str(pid_of(server, "EngineCore"))], check=False)
    assert alive.returncode == 0
