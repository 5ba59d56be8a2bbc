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
    "_run_once (asyncio/base_events.py",
    "run (uvloop/__init__.py",
    "run_until_complete (asyncio/base_events.py",
    "run (asyncio/runners.py",
    "wait_for_completion_or_failure (vllm/v1/utils.py",
)
#: The engine waits for an answer of its workers.
FOR_WORKER = (
    "get_response (vllm/v1/executor/multiproc_executor.py",
    "collective_rpc (vllm/v1/executor/multiproc_executor.py",
    "result (vllm/v1/executor/multiproc_executor.py",
    "_wait_for_response (vllm/v1/executor/multiproc_executor.py",
)
#: Innermost frames that wait for other ranks, and for a device.
COLLECTIVE = ("all_reduce (", "all_gather", "broadcast (torch/", "reduce_scatter", "barrier (torch/", "ncclGroupEnd", "send (torch/", "recv (torch/")  # fmt: skip
DEVICE = ("synchronize (torch/", "current_stream().synchronize", "item (torch/", "cpu (torch/")
#: Wait channels and their meaning: a futex is a lock or a condition; the others wait for input, which is no fault.
_LOCKS = ("futex",)
_INPUT = ("ep_poll", "do_epoll", "poll_schedule", "do_poll", "do_select", "do_sys_poll", "inet_csk_accept", "hrtimer_nanosleep", "do_nanosleep", "pipe_read", "anon_pipe_read", "sk_wait_data", "unix_stream_read", "do_wait", "kernel_clone", "sigtimedwait", "do_sigtimedwait", "wait_woken")  # fmt: skip
#: What a server's own metrics say of it: tokens come, or requests run without any, or there are no requests.
Progress = Literal["moving", "frozen", "idle"]
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


def judge(pid: int, name: str, looks: Sequence[Look], progress: Progress | None = None) -> Judged:
    """What a process did while it was looked at; ``progress`` is what the server's own metrics said meanwhile."""
    last = looks[-1]
    span = max(last.at - looks[0].at, 1e-3)
    used = sum(k.cpu_s for k in last.kernel.values()) - sum(k.cpu_s for k in looks[0].kernel.values())
    out = Judged(pid, name, "unseen", state=last.state, cpu_percent=max(0.0, 100 * used / span), why=last.why)
    shares = _shares(looks, span)
    number = _thread_at_fault(looks, shares, pid)
    seen = [found for look in looks if (found := _thread(look, number)) is not None]
    kernel = last.kernel.get(number)
    out.wchan = kernel.wchan if kernel is not None and kernel.wchan != "0" else ""
    if seen:
        out.frames, out.thread, out.signature = seen[-1].frames, seen[-1].name, seen[-1].functions
    if last.state == "":
        out.doing = "gone"
    elif last.state in ("T", "t"):
        out.doing = "stopped"
    elif last.state == "Z":
        out.doing = "zombie"
    elif all(look.kernel.get(number, _NOBODY).state == "D" for look in looks):
        out.doing = "kernel"
    elif len(seen) == len(looks):
        out.doing = _doing(seen, shares.get(number, 0.0), out.wchan, progress)
        if out.doing == "busy-loop":  # the loop is what all looks have in common; what it calls differs
            out.frames = out.frames[len(out.frames) - _in_common(seen) :]
    return out


_NOBODY = Kernel("", "", 0, 0)


def _thread(look: Look, number: int) -> Thread | None:
    return next((thread for thread in look.threads if thread.number == number), None)


def _shares(looks: Sequence[Look], span: float) -> dict[int, float]:
    """For each thread the share of the time in which it had or wanted a CPU."""
    first, last = looks[0].kernel, looks[-1].kernel
    return {number: (k.wanted_s - first[number].wanted_s) / span for number, k in last.items() if number in first}


def _thread_at_fault(looks: Sequence[Look], shares: dict[int, float], main: int) -> int:
    """The thread that matters: the Python thread that computes without end, else the main one."""
    python = {thread.number for thread in looks[-1].threads}
    busiest = max((n for n in shares if n in python), key=lambda n: shares[n], default=main)
    return busiest if shares.get(busiest, 0.0) >= BUSY else main


def _in_common(seen: Sequence[Thread]) -> int:
    """How many frames, from the outermost on, are the same functions in all looks."""
    count = 0
    for functions in zip(*(reversed(thread.functions) for thread in seen), strict=False):
        if len(set(functions)) != 1:
            break
        count += 1
    return count


def _doing(seen: Sequence[Thread], share: float, wchan: str, progress: Progress | None) -> Doing:
    waits = [_known_wait(thread.frames) for thread in seen]
    if waits[0] is not None and len(set(waits)) == 1:
        return waits[0]
    if any(waits) or progress == "moving":
        return "working"
    steady = len({thread.functions for thread in seen}) == 1
    frames = seen[-1].frames
    if steady and any(mark in frame for mark in COLLECTIVE for frame in frames[:4]):
        return "collective"  # whether it sleeps or polls
    if steady and any(mark in frames[0] for mark in DEVICE):
        return "device"
    if share >= BUSY:  # without metrics only a stack that never changes is a loop; work changes it
        return "busy-loop" if steady or progress is not None else "working"
    if not steady or share > 0.1:
        return "working"
    inner = frames[1:2] if _at(frames[0], "wait (threading.py") else frames[:1]
    if any(_at(frame, "get (queue.py") for frame in inner):
        return "idle"  # it waits for somebody to put something into a queue
    if wchan.startswith(_LOCKS):
        return "lock"
    return "idle" if wchan.startswith(_INPUT) or not wchan else "kernel"


def _at(frame: str, mark: str) -> bool:
    """Whether a frame is a function of a file: "Queue.get (python3.12/queue.py:171)" is at "get (queue.py"."""
    function, _, place = frame.partition(" (")
    wanted, _, file = mark.partition(" (")
    return function.rpartition(".")[2] == wanted and (place.startswith(file) or f"/{file}" in place)


def _known_wait(frames: Sequence[str]) -> Doing | None:
    """Whether the stack is one of those in which a healthy part waits: its innermost frames end in a known place.

    A loop that only waits holds nothing between itself and the queue but the queue's own functions; whatever else was
    called from it is work.
    """
    for depth, frame in enumerate(frames):
        if any(_at(frame, mark) for mark in FOR_WORKER):
            return "waits-for-worker" if all(_is_queue(f) for f in frames[:depth]) else None
        if any(_at(frame, mark) for mark in IDLE):
            return "idle" if all(_is_queue(f) for f in frames[:depth]) else None
    return None


_QUEUES = (
    "queue.py", "threading.py", "contextlib.py", "shm_broadcast.py", "selectors.py", "multiprocessing/connection.py",
    "multiproc_executor.py", "zmq/", "asyncio/", "uvloop/", "concurrent/futures/", "vllm/v1/utils.py",
    "vllm/distributed/utils.py", "multiprocessing/popen_fork.py", "multiprocessing/popen_spawn_posix.py",
    "multiprocessing/process.py",
)  # fmt: skip


def _is_queue(frame: str) -> bool:
    place = frame.partition(" (")[2]
    return any(mark in place for mark in _QUEUES)


def progress_of(pages: Sequence[str]) -> Progress | None:
    """Whether the server's counters of tokens moved between two metrics pages; None where they do not say."""
    if len(pages) < 2:
        return None
    tokens = [_sum(page, ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")) for page in pages]
    running = _sum(pages[-1], ("vllm:num_requests_running",))
    if tokens[0] is None or tokens[-1] is None or running is None:
        return None
    return "moving" if tokens[-1] > tokens[0] else "frozen" if running > 0 else "idle"


def _sum(page: str, names: tuple[str, ...]) -> float | None:
    found = []
    for line in page.splitlines():
        if line.startswith(names):
            try:
                found.append(float(line.rpartition(" ")[2]))
            except ValueError:
                continue
    return sum(found) if found else None


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
