"""`capture` on real processes of our own: the frame that holds things up is named, and the process lives on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.security.consent import agree
from assistant.security.roles import LOCAL
from tools.capture.bundle import read_bundle
from tools.capture.judging import Judged, Look, culprit, judge, odd_rank, progress_of
from tools.capture.stacks import Kernel, Thread, short
from tools.registry import ActionError, Context, get

COMMAND = str(Path(sys.executable).with_name("vllm-diagnose"))
PROGRAM = """
import sys, threading, time, asyncio
def spin_here():
    while True:
        pass
def take_it_twice():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
def serve_nothing():
    asyncio.run(asyncio.sleep(600))
def token_in_argument():
    time.sleep(600)
print("ready, api_key=sk-" + "a1B2c3D4e5F6g7H8i9J0" * 2, flush=True)
globals()[sys.argv[1]]()
"""


@contextlib.contextmanager
def running(function: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = tmp_path / "held.py"
    program.write_text(PROGRAM)
    log = tmp_path / "printed.log"
    with log.open("wb") as printed:
        held = subprocess.Popen([sys.executable, str(program), function], stdout=printed, stderr=printed)
    try:
        end = time.monotonic() + 20
        while not log.read_bytes() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        yield held
    finally:
        held.kill()
        held.wait()


def take(**arguments: Any) -> Any:
    import tools.capture.capture  # noqa: F401 (declares the action)

    action = get("capture")
    given = {"seconds": 0.6, **arguments}
    return asyncio.run(action.call(given, Context(consent=agree(LOCAL, action, given))))


def fact(report: Any, name: str) -> Any:
    return next((f.value for f in report.facts if f.name == name), None)


@pytest.mark.parametrize(
    ("function", "stop", "stuck"),
    [
        ("spin_here", False, "busy-loop"),
        ("take_it_twice", False, "lock"),
        ("spin_here", True, "stopped"),
        ("serve_nothing", False, "none"),
    ],
)
def test_what_holds_a_process_up_is_named(function: str, stop: bool, stuck: str, tmp_path: Path) -> None:
    with running(function, tmp_path) as held:
        if stop:
            held.send_signal(signal.SIGSTOP)
        report = take(pid=held.pid)
        assert fact(report, "capture.stuck") == stuck, report.processes
        if stuck != "none":
            assert report.stuck == held.pid
            assert function in fact(report, "capture.frame")
            assert function in report.summary
        if stop:
            assert Path(f"/proc/{held.pid}/stat").read_text().split()[2] == "T"  # as it was found
            held.send_signal(signal.SIGCONT)
        assert report.alive
        assert held.poll() is None


def test_the_bundle_is_private_redacted_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    with running("take_it_twice", tmp_path) as held:
        report = take(pid=held.pid, bundle=str(folder))
    assert report.bundle == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "take_it_twice" in (folder / "stacks.txt").read_text()
    printed = (folder / "server.log").read_text()
    assert "ready, api_key=" in printed
    assert "a1B2c3D4" not in "".join(f.read_text() for f in folder.iterdir())
    again = read_bundle(folder)
    assert again is not None
    assert fact(again, "capture.stuck") == "lock"
    ran = subprocess.run([COMMAND, "logs", str(folder), "-o", "json"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["causes"][0]["id"] == "engine/stalled"
    assert any("take_it_twice" in quote["text"] for quote in answer["causes"][0]["because"])


def test_a_bundle_is_never_written_over_something(tmp_path: Path) -> None:
    with running("serve_nothing", tmp_path) as held:
        with pytest.raises(ActionError, match="cannot be written: File exists"):
            take(pid=held.pid, bundle=str(tmp_path))
        with pytest.raises(ActionError, match="must be an absolute path"):
            take(pid=held.pid, bundle="here")


def test_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    assert read_bundle(tmp_path) is None
    for text in ("{", "[]", '{"kind": "other"}', '{"kind": "vllm-diagnose capture", "report": {}}'):
        (tmp_path / "capture.json").write_text(text)
        assert read_bundle(tmp_path) is None


def _without_ptrace() -> None:
    """Drops CAP_SYS_PTRACE for good (PR_CAPBSET_DROP): then root may not trace a root that has it, either."""
    ctypes.CDLL(None).prctl(24, 19, 0, 0, 0)


def test_a_process_that_may_not_be_traced_is_said_so(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give the right to trace away")
    with running("spin_here", tmp_path) as held:
        command = [COMMAND, "capture", "--pid", str(held.pid), "--yes", "--seconds", "0.6", "-o", "json"]
        ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=_without_ptrace, check=False)
        assert held.poll() is None
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)["report"]
    (row,) = [row for row in report["checks"] if row["id"] == "capture.refused"]
    assert row["status"] == "unknown"
    assert "SYS_PTRACE" in row["text"]
    assert report["verdict"] == "unknown"  # seen nothing is not "nothing is wrong"
    assert (report["processes"][0]["state"], report["processes"][0]["doing"]) == ("R", "unseen")


def test_no_process_is_a_sentence() -> None:
    with pytest.raises(ActionError, match="There is no process 4194303"):
        take(pid=4194303)
    with pytest.raises(ActionError, match="No process of this machine that may be seen listens on port 9"):
        take(url="http://127.0.0.1:9")


# --- judging, on looks as the kernel and py-spy give them --------------------------------------------------------------


def looks(frames: tuple[str, ...], *, state: str = "S", wchan: str = "futex_do_wait", share: float = 0.0, change: bool = False) -> list[Look]:  # fmt: skip
    found = []
    for number in range(3):
        inner = (f"step_{number} (a.py:1)", *frames) if change else frames
        used = number * share
        found.append(
            Look(float(number), state, {7: Kernel(state, wchan, used, used)}, (Thread(7, "MainThread", inner),))
        )
    return found


ENGINE_IDLE = ("Condition.wait (python3.11/threading.py:327)", "Queue.get (python3.11/queue.py:171)", "EngineCoreProc._process_input_queue (vllm/v1/engine/core.py:1580)", "run_busy_loop (vllm/v1/engine/core.py:1550)")  # fmt: skip
WORKER_IDLE = ("acquire_read (vllm/distributed/device_communicators/shm_broadcast.py:845)", "dequeue (vllm/distributed/device_communicators/shm_broadcast.py:970)", "worker_busy_loop (vllm/v1/executor/multiproc_executor.py:1040)")  # fmt: skip
ENGINE_WAITS = ("acquire_read (vllm/distributed/device_communicators/shm_broadcast.py:845)", "get_response (vllm/v1/executor/multiproc_executor.py:440)", "execute_model (vllm/v1/executor/multiproc_executor.py:345)")  # fmt: skip


@pytest.mark.parametrize(
    ("given", "doing"),
    [
        (looks(ENGINE_IDLE), "idle"),
        (looks(WORKER_IDLE, wchan="0", share=1.0, state="R"), "idle"),  # it polls: busy, and yet waiting
        (looks(ENGINE_WAITS), "waits-for-worker"),
        (looks(("held (x.py:3)", *ENGINE_IDLE)), "lock"),  # something else was called from the loop
        (looks(("forward (m.py:3)",), share=1.0, state="R", change=True), "working"),
        (looks(("forward (m.py:3)",), share=0.97, state="R", wchan="0"), "busy-loop"),
        (looks(("all_reduce (torch/distributed/distributed_c10d.py:9)",), wchan="hrtimer_nanosleep"), "collective"),
        (looks(("read (ssl.py:9)",), wchan="nfs_wait_bit_killable", state="D"), "kernel"),
        (looks(("main (a.py:1)",), state="T"), "stopped"),
        (looks((), state="Z"), "zombie"),
        (looks((), state=""), "gone"),
        (looks(("wait (threading.py:327)", "get (queue.py:171)", "loop (a.py:1)")), "idle"),
        (looks(("select (selectors.py:469)", "_run_once (asyncio/base_events.py:1900)"), wchan="ep_poll"), "idle"),
    ],
)
def test_what_a_process_does(given: list[Look], doing: str) -> None:
    assert judge(7, "EngineCore", given).doing == doing


def test_metrics_tell_a_loop_from_work() -> None:
    """What a loop calls changes from look to look, and so does the work of a server that produces tokens."""
    turning = [Look(float(n), "R", {7: Kernel("R", "0", n, n)}, (Thread(7, "MainThread", (f"inner_{n} (a.py:1)", "spin_here (b.py:2)", "main (b.py:9)")),)) for n in range(3)]  # fmt: skip
    assert judge(7, "EngineCore", turning).doing == "working"
    assert judge(7, "EngineCore", turning, "moving").doing == "working"
    for progress in ("frozen", "idle"):
        found = judge(7, "EngineCore", turning, progress)  # type: ignore[arg-type]
        assert (found.doing, found.frames) == ("busy-loop", ("spin_here (b.py:2)", "main (b.py:9)"))
    assert judge(7, "EngineCore", looks(("forward (m.py:3)",), share=0.97, state="R"), "moving").doing == "working"


def test_progress_is_read_from_two_pages() -> None:
    def page(tokens: int, running: int) -> str:
        return f'vllm:generation_tokens_total{{model_name="a b"}} {tokens}.0\nvllm:num_requests_running{{engine="0"}} {running}.0\n'

    assert progress_of([page(5, 1), page(9, 1)]) == "moving"
    assert progress_of([page(5, 1), page(5, 2)]) == "frozen"
    assert progress_of([page(5, 0), page(5, 0)]) == "idle"
    assert progress_of([page(5, 0)]) is None
    assert progress_of(["# nothing", "vllm:num_requests_running broken"]) is None


def judged(name: str, doing: Any, *signature: str) -> Judged:
    return Judged(1, name, doing, signature=signature)


def test_the_rank_that_is_not_in_the_collective_is_named() -> None:
    waiting = [judged(f"Worker_TP{n}", "collective", "all_reduce (x") for n in range(3)]
    behind = judged("Worker_TP3", "working", "load (y")
    assert odd_rank([*waiting, behind]) is behind
    assert odd_rank(waiting) is None
    assert culprit([*waiting, behind])[1] is behind
    other = judged("Worker_TP3", "collective", "broadcast (z")
    assert odd_rank([*waiting, other]) is other


def test_the_stopped_worker_outranks_the_engine_that_waits_for_it() -> None:
    engine, worker = judged("EngineCore", "lock", "a"), judged("Worker_TP1", "stopped", "b")
    assert culprit([engine, worker]) == ("stopped", worker)
    assert culprit([judged("EngineCore", "idle")]) == ("none", None)


def test_places_are_shown_inside_their_package() -> None:
    assert short("/opt/venv/lib/python3.12/site-packages/vllm/v1/engine/core.py") == "vllm/v1/engine/core.py"
    assert short("/usr/lib/python3.12/threading.py") == "python3.12/threading.py"


def test_capture_needs_consent() -> None:
    refused = subprocess.run([COMMAND, "capture", "--pid", str(os.getpid())], capture_output=True, text=True, check=False)  # fmt: skip
    assert refused.returncode == 2
    assert "starts or traces processes" in refused.stderr
