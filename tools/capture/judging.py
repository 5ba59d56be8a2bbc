"""What a process is doing, from three looks at its stacks and its CPU time, and which process of a server is at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tools.capture.stacks import Kernel, Thread

Doing = Literal[
    "stopped", "zombie", "gone", "kernel", "busy-loop", "lock", "collective", "device", "waits-for-worker", "idle", "working", "unseen"
]  # fmt: skip
Stuck = Literal["stopped", "busy-loop", "lock", "kernel", "collective", "zombie", "none"]

#: Frames in which a part of a healthy server waits for work, as "function (end of file". Read in vLLM 0.10 to 0.33.
IDLE = (
    "_process_input_queue (vllm/v1/engine/core.py",
    "worker_busy_loop (vllm/v1/executor/multiproc_executor.py",
    "run_once (asyncio/",
    "_run_once (asyncio/base_events.py",
    "run (uvloop/",
    "run_until_complete (",
    "run (asyncio/runners.py",
    "wait_for_completion_or_failure (vllm/v1/utils.py",
)
#: The engine waits for an answer of its workers.
FOR_WORKER = (
    "get_response (vllm/v1/executor/multiproc_executor.py",
    "collective_rpc (vllm/v1/executor/multiproc_executor.py",
    "result (vllm/v1/executor/multiproc_executor.py",
    "wait_for_response (vllm/v1/executor/multiproc_executor.py",
)
#: Innermost frames that wait for other ranks, and for a device.
COLLECTIVE = ("all_reduce (", "all_gather", "broadcast (torch/", "reduce_scatter", "barrier (torch/", "ncclGroupEnd", "send (torch/", "recv (torch/")  # fmt: skip
DEVICE = ("synchronize (torch/", "current_stream().synchronize", "item (torch/", "cpu (torch/")
#: Wait channels and their meaning: a futex is a lock or a condition; the others wait for input, which is no fault.
_LOCKS = ("futex",)
_INPUT = ("ep_poll", "do_epoll", "poll_schedule", "do_poll", "do_select", "do_sys_poll", "inet_csk_accept", "hrtimer_nanosleep", "do_nanosleep", "pipe_read", "anon_pipe_read", "sk_wait_data", "unix_stream_read", "do_wait", "kernel_clone", "sigtimedwait", "do_sigtimedwait", "wait_woken")  # fmt: skip
#: A thread that had or wanted a CPU for this share of the time is computing.
BUSY = 0.7


@dataclass(frozen=True, slots=True)
class Look:
    """One moment of a process. ``at`` in seconds of a monotonic clock; ``state`` is the process's letter, "" when gone."""

    at: float
    state: str
    kernel: dict[int, Kernel]
    threads: tuple[Thread, ...]
    why: str = ""


@dataclass(slots=True)
class Judged:
    """What one process is doing, in which thread, and the frames that show it."""

    pid: int
    name: str
    doing: Doing
    state: str = ""
    wchan: str = ""
    frames: tuple[str, ...] = ()
    thread: str = ""
    cpu_percent: float = 0.0
    why: str = ""
    signature: tuple[str, ...] = field(default=())


def judge(pid: int, name: str, looks: Sequence[Look]) -> Judged:
    """What a process did while it was looked at."""
    last = looks[-1]
    span = max(last.at - looks[0].at, 1e-3)
    used = sum(k.cpu_s for k in last.kernel.values()) - sum(k.cpu_s for k in looks[0].kernel.values())
    out = Judged(pid, name, "unseen", state=last.state, cpu_percent=max(0.0, 100 * used / span), why=last.why)
    number = _thread_at_fault(looks, span, pid)
    seen = [next((t for t in look.threads if t.number == number), None) for look in looks]
    newest = seen[-1] or next((t for t in seen if t is not None), None)
    if newest is not None:
        out.frames, out.thread, out.signature = newest.frames, newest.name, newest.functions
    kernel = last.kernel.get(number)
    out.wchan = kernel.wchan if kernel is not None and kernel.wchan != "0" else ""
    if last.state == "":
        out.doing = "gone"
    elif last.state in ("T", "t"):
        out.doing = "stopped"
    elif last.state == "Z":
        out.doing = "zombie"
    elif all(look.kernel.get(number, Kernel("", "", 0, 0)).state == "D" for look in looks):
        out.doing = "kernel"
    else:
        out.doing = _doing(looks, seen, number, span, out.wchan)
    return out


def _thread_at_fault(looks: Sequence[Look], span: float, pid: int) -> int:
    """The thread that matters: the one that computes without end, else the main one."""
    first, last = looks[0].kernel, looks[-1].kernel
    python = {thread.number for thread in looks[-1].threads}
    shares = {n: (k.wanted_s - first[n].wanted_s) / span for n, k in last.items() if n in first and (n in python or not python)}  # fmt: skip
    busiest = max(shares, key=lambda n: shares[n], default=pid)
    return busiest if shares.get(busiest, 0.0) >= BUSY else pid


def _doing(looks: Sequence[Look], seen: Sequence[Thread | None], number: int, span: float, wchan: str) -> Doing:
    threads = [thread for thread in seen if thread is not None]
    share = (looks[-1].kernel[number].wanted_s - looks[0].kernel[number].wanted_s) / span if number in looks[0].kernel and number in looks[-1].kernel else 0.0  # fmt: skip
    if not threads:
        return "lock" if share < 0.1 and wchan.startswith(_LOCKS) and looks[-1].why == "" else "unseen"
    frames = threads[-1].frames
    steady = len(threads) == len(looks) and len({thread.functions for thread in threads}) == 1
    waits = _known_wait(frames)
    if waits is not None:
        return waits
    if not steady:
        return "working"
    if share >= BUSY:
        return "busy-loop"
    if share > 0.1:
        return "working"
    inner = frames[0] if frames else ""
    if any(mark in frame for mark in COLLECTIVE for frame in frames[:4]):
        return "collective"
    if any(mark in inner for mark in DEVICE):
        return "device"
    if wchan.startswith(_LOCKS):
        return "lock"
    return "idle" if wchan.startswith(_INPUT) or not wchan else "kernel"


def _known_wait(frames: Sequence[str]) -> Doing | None:
    """Whether the stack is one of those in which a healthy part waits: its innermost frames end in a known place.

    A loop that only waits holds nothing between itself and the queue but the queue's own functions; whatever else was
    called from it is work.
    """
    for depth, frame in enumerate(frames):
        between = frames[:depth]
        if any(frame.startswith(mark) for mark in FOR_WORKER):
            return "waits-for-worker" if all(_is_queue(f) for f in between) else None
        if any(frame.startswith(mark) for mark in IDLE):
            return "idle" if all(_is_queue(f) for f in between) else None
    return None


_QUEUES = ("queue.py", "threading.py", "shm_broadcast.py", "selectors.py", "multiprocessing/connection.py", "multiproc_executor.py", "zmq/", "asyncio/", "uvloop/", "concurrent/futures/", "vllm/v1/utils.py", "vllm/distributed/utils.py", "multiprocessing/popen_fork.py", "multiprocessing/popen_spawn_posix.py", "multiprocessing/process.py")  # fmt: skip


def _is_queue(frame: str) -> bool:
    place = frame.partition(" (")[2]
    return any(mark in place for mark in _QUEUES)


_WORST: tuple[tuple[Doing, Stuck], ...] = (
    ("stopped", "stopped"),
    ("zombie", "zombie"),
    ("busy-loop", "busy-loop"),
    ("kernel", "kernel"),
    ("lock", "lock"),
)


def culprit(rows: Sequence[Judged]) -> tuple[Stuck, Judged | None]:
    """The process that keeps the others waiting, and how; ("none", None) where nothing stands out.

    Of several equally bad ones the last is deepest below the server's own process, and the others wait for it.
    """
    for doing, stuck in _WORST:
        found = [row for row in rows if row.doing == doing and (doing != "zombie" or row.name != "?")]
        if found:
            return stuck, found[-1]
    different = odd_rank(rows)
    if different is not None:
        return "collective", different
    waiting = [row for row in rows if row.doing in ("collective", "device")]
    return ("collective", waiting[0]) if waiting else ("none", None)


def odd_rank(rows: Sequence[Judged]) -> Judged | None:
    """The worker whose stack differs from that of all others, while those wait for each other."""
    workers = [row for row in rows if row.name.startswith("Worker") and row.signature]
    if len(workers) < 2 or not any(row.doing in ("collective", "device") for row in workers):
        return None
    outside = [row for row in workers if row.doing not in ("collective", "device")]
    if len(outside) == 1:
        return outside[0]
    signatures = [row.signature for row in workers]
    alone = [row for row in workers if signatures.count(row.signature) == 1]
    return alone[0] if len(workers) > 2 and len(alone) == 1 else None
