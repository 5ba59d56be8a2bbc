"""A program under another interpreter: nothing of ours on its path, and nothing left of it however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.processes import all_processes
from tools.sanity.launch import LaunchError, run_program

ROOT = Path(__file__).resolve().parents[3]
LOOK = """
import json, os, sys
try:
    import tools
    found = tools.__path__[0]
except ImportError:
    found = None
print(json.dumps({"event": "seen", "path": sys.path, "tools": found, "cwd": os.getcwd(), "argv": sys.argv[1:]}))
"""
FAMILY = """
import json, os, signal, sys, time
for _ in range(3):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
print(json.dumps({"event": "born", "session": os.getsid(0)}), flush=True)
time.sleep(600)
"""


def members(session: int) -> list[int]:
    return [p.pid for p in all_processes() if p.session == session and p.state != "Z"]


def test_our_packages_are_not_on_the_path_of_the_other_interpreter(
    bare_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where `import tools` would work
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    plain = subprocess.run([bare_python, "-c", LOOK], env=environment, capture_output=True, text=True, check=True)
    assert str(ROOT / "tools") in plain.stdout  # without our care it would be found
    ran = asyncio.run(run_program([bare_python], LOOK, ["--a", "b"], environment=environment, deadline_s=20))
    (event,) = ran.events
    assert event["tools"] is None
    assert not [entry for entry in event["path"] if entry == "" or Path(entry).is_relative_to(ROOT)]
    assert (event["cwd"], event["argv"]) == ("/", ["--a", "b"])


def test_the_deadline_ends_the_whole_family() -> None:
    ran = asyncio.run(run_program([sys.executable], FAMILY, [], environment=os.environ, deadline_s=2))
    assert ran.late
    assert members(ran.events[0]["session"]) == []


def test_cancelling_ends_the_whole_family() -> None:
    sessions: list[int] = []

    async def work() -> None:
        born = asyncio.Event()

        def hear(event: dict[str, object]) -> None:
            sessions.append(int(str(event["session"])))
            born.set()

        task = asyncio.create_task(
            run_program([sys.executable], FAMILY, [], environment=os.environ, deadline_s=60, on_event=hear)
        )
        await asyncio.wait_for(born.wait(), 20)
        assert len(members(sessions[0])) == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert members(sessions[0]) == []


def test_an_interpreter_that_is_none_is_said_in_a_sentence() -> None:
    with pytest.raises(LaunchError, match="/nonexistent/python cannot be run: No such file or directory"):
        asyncio.run(run_program(["/nonexistent/python"], "", [], environment={}, deadline_s=5))


def test_what_else_is_printed_is_no_event_and_stderr_is_kept() -> None:
    program = 'import sys\nprint("noise")\nprint("{broken")\nprint(\'{"event": "a"}\')\nsys.exit("it \\x1b[31mbroke")'
    ran = asyncio.run(run_program([sys.executable], program, [], environment=os.environ, deadline_s=20))
    assert [e["event"] for e in ran.events] == ["a"]
    assert (ran.stderr.strip(), ran.status) == ("it broke", 1)


def test_when_we_are_killed_the_test_ends_as_well(bare_python: str) -> None:
    """SIGKILL gives us no chance to clean up: the supervisor sees its input close and ends the ranks."""
    program = f"""
import asyncio, os, time
from tools.sanity import rank_worker
from tools.sanity.launch import run_program
source = open(rank_worker.__file__).read().replace('def stage_import(self) -> dict[str, Any]:', 'def stage_import(self):\\n        time.sleep(600)')
def hear(event):
    print(event["event"], event.get("pid", ""), flush=True)
asyncio.run(run_program([{bare_python!r}], source, ["--child", "--ranks", "2"], environment=os.environ, deadline_s=60, on_event=hear))
"""
    ours = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    pids: list[int] = []
    for line in ours.stdout:
        words = line.split()
        if words[0] == "rank":
            pids.append(int(words[1]))
        if words[0] == "begin":
            break
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    os.kill(ours.pid, signal.SIGKILL)
    ours.wait(10)
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    ours.stdout.close()
