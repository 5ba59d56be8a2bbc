"""Runs a self-contained program under another interpreter, reads what it reports, and ends everything it started.

The program's text goes through standard input, so nothing of ours is on that interpreter's path and no file is written
(``-I`` leaves out the working folder, PYTHONPATH and the user's packages). Its standard input stays open: the program
ends when that is closed, so it ends with us however we end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.processes import all_processes
from tools.redaction import clean

#: Reads the program's text from standard input, and leaves what comes after it alone.
_BOOT = (
    "import sys;n=int(sys.stdin.buffer.readline());"
    "exec(compile(sys.stdin.buffer.read(n),'<vllm-diagnose>','exec'),{'__name__':'__main__'})"
)
_MOST_LINE = 4 << 20
_MOST_EVENTS = 20_000
_MOST_STDERR = 64 << 10
#: Seconds that the program has to end by itself once its standard input is closed.
_END_S = 3.0
#: Seconds that it has once it was told to terminate: srun takes its job out of the queue then.
_TERMINATE_S = 2.0
#: Looks, 20 ms apart, for what was killed to be gone.
_GONE_TRIES = 100

Event = dict[str, Any]
#: Sends one line to a program's standard input.
Send = Callable[[str], None]


class LaunchError(Exception):
    """The interpreter could not be started. The message is a sentence."""


@dataclass(slots=True)
class Ran:
    """What came back: the events in their order, and how it ended."""

    events: list[Event] = field(default_factory=list)
    stderr: str = ""
    late: bool = False
    status: int | None = None


def json_line(line: bytes) -> Event | None:
    """The event of one line of output; None where something else printed it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


async def run_program(
    python: Sequence[str],
    source: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    deadline_s: float,
    on_event: Callable[[Event], None] = lambda event: None,
    on_start: Callable[[Send], None] = lambda send: None,
    on_stderr: Callable[[str], None] = lambda line: None,
    read: Callable[[bytes], Event | None] = json_line,
) -> Ran:
    """Run ``source`` under ``python`` (a command, with what must stand before it) and collect its JSON lines.

    ``on_start`` is given a function that sends a line to the program, ``read`` makes an event of a line that it prints.
    Ends it after ``deadline_s`` seconds and on cancellation; when this returns, nothing that it started is left.
    Raises :class:`LaunchError`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *python,
            "-I",
            "-c",
            _BOOT,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=dict(environment),
            cwd="/",
            limit=_MOST_LINE,
        )
    except OSError as error:
        raise LaunchError(f"{python[-1]} cannot be run: {error.strerror or error}.") from None
    ran = Ran()
    stderr = asyncio.create_task(_tail(process.stderr, on_stderr))
    try:
        assert process.stdin is not None  # noqa: S101 (for the type checker)
        text = source.encode()
        with contextlib.suppress(OSError):  # an interpreter that ends at once says why on stderr
            process.stdin.write(f"{len(text)}\n".encode() + text)
            await process.stdin.drain()
        on_start(_sender(process.stdin))
        try:
            async with asyncio.timeout(deadline_s):
                await _collect(process, ran, on_event, read)
                ran.status = await process.wait()
        except TimeoutError:
            ran.late = True
    finally:
        await asyncio.shield(_end(process))
        stderr.cancel() if not stderr.done() and ran.late else None
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(1.0):
                ran.stderr = clean(await stderr)
        # A pipe that somebody else still holds would stay open here until the interpreter collects it, when no loop is
        # left to close it; there is no public way to the transport.
        process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    return ran


def _sender(stdin: asyncio.StreamWriter) -> Send:
    def send(line: str) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it has ended; whoever waits for its events sees that
            stdin.write(line.encode() + b"\n")

    return send


async def _collect(
    process: asyncio.subprocess.Process,
    ran: Ran,
    on_event: Callable[[Event], None],
    read: Callable[[bytes], Event | None],
) -> None:
    assert process.stdout is not None  # noqa: S101
    while len(ran.events) < _MOST_EVENTS:
        try:
            line = await process.stdout.readline()
        except ValueError:  # longer than any line of ours
            return
        if not line:
            return
        event = read(line)
        if event is not None:
            ran.events.append(event)
            on_event(event)


async def _tail(stream: asyncio.StreamReader | None, on_line: Callable[[str], None]) -> str:
    kept, open_line = b"", b""
    while stream is not None and (data := await stream.read(4096)):
        kept = (kept + data)[-_MOST_STDERR:]
        *lines, open_line = (open_line + data).split(b"\n")
        for line in lines:
            on_line(clean(line.decode("utf-8", "replace"))[:2000])
        open_line = open_line[-_MOST_STDERR:]
    return kept.decode("utf-8", "replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the program's standard input, give it a moment, then end it and whatever is left of its session."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.terminate()
            async with asyncio.timeout(_TERMINATE_S):
                await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    for _ in range(_GONE_TRIES):  # who was killed is there for a moment more
        left = [found for found in all_processes() if found.session == process.pid]
        if not left:
            return
        for member in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, signal.SIGKILL)
        await asyncio.sleep(0.02)
