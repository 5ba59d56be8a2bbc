"""Python stacks of a running process, without stopping it.

py-spy reads them from the process's memory (its ``--nonblocking`` mode: the process is never paused), also of one that is
stopped or hangs in C. Where that is refused, the kernel still says what each thread waits in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.processes import PROC, read

_DUMP_S = 6.0
_MOST_FRAMES = 60
_MOST_THREADS = 400
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Thread:
    """One Python thread; ``frames`` innermost first, as "function (file:line)"."""

    number: int  # the kernel's
    name: str
    frames: tuple[str, ...]

    @property
    def functions(self) -> tuple[str, ...]:
        """The frames without their lines: what stays the same while a loop turns."""
        return tuple(frame.rpartition(":")[0] for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Dump:
    """The threads of a process at one moment; ``why`` says why there are none."""

    threads: tuple[Thread, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel says of one thread: state letter, wait channel, seconds on a CPU so far, and seconds in which it
    was on one or wanted one (a loop on a crowded machine gets only its share)."""

    state: str
    wchan: str
    cpu_s: float
    wanted_s: float


def program() -> str | None:
    """py-spy beside our own interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def dump(pid: int) -> Dump:
    """The Python stacks of a process. Takes some tens of milliseconds."""
    found = program()
    if found is None:
        return Dump(why="py-spy is not installed")
    problem = ""
    for _ in range(3):  # memory that changes while it is read gives an error now and then
        try:
            ran = subprocess.run(
                [found, "dump", "--nonblocking", "--json", "--pid", str(pid)],
                capture_output=True,
                timeout=_DUMP_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Dump(why=f"py-spy: {error}")
        if ran.returncode == 0:
            try:
                return Dump(_threads(json.loads(ran.stdout)))
            except (ValueError, KeyError, TypeError) as error:
                return Dump(why=f"py-spy: {error!r}")
        problem = ran.stderr.decode("utf-8", "replace").strip().replace("\n", " ")[:300]
        if "ermission" in problem or "No such process" in problem:
            break
    return Dump(why=problem)


def _threads(raw: list[dict[str, object]]) -> tuple[Thread, ...]:
    found: list[Thread] = []
    for entry in raw[:_MOST_THREADS]:
        frames = entry["frames"]
        assert isinstance(frames, list)  # noqa: S101 (py-spy's own format)
        shown = tuple(f"{f['name']} ({short(str(f['filename']))}:{f['line']})" for f in frames[:_MOST_FRAMES])
        found.append(Thread(int(str(entry.get("os_thread_id") or 0)), str(entry.get("thread_name") or ""), shown))
    return tuple(found)


def short(path: str) -> str:
    """A file's place inside its package: "vllm/v1/engine/core.py" of a whole path."""
    for mark in ("/site-packages/", "/dist-packages/"):
        if mark in path:
            return path.rpartition(mark)[2]
    parts = Path(path).parts
    return "/".join(parts[-2:]) if len(parts) > 1 else path


def kernel_threads(pid: int) -> dict[int, Kernel]:
    """What the kernel says of every thread of a process."""
    found: dict[int, Kernel] = {}
    try:
        numbers = sorted(int(task.name) for task in (PROC / str(pid) / "task").iterdir())[:_MOST_THREADS]
    except OSError:
        return found
    for number in numbers:
        folder = PROC / str(pid) / "task" / str(number)
        values = read(folder / "stat").rpartition(")")[2].split()
        if len(values) > 12:
            cpu = (int(values[11]) + int(values[12])) / _TICKS
            schedule = read(folder / "schedstat", 128).split()  # nanoseconds on a CPU, nanoseconds in its queue
            wanted = (int(schedule[0]) + int(schedule[1])) / 1e9 if len(schedule) == 3 else cpu
            found[number] = Kernel(values[0], read(folder / "wchan", 128).strip("\0\n "), cpu, wanted)
    return found
