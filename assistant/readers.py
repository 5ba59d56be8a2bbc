"""Reading and deciding in processes of their own, so that a server answers others while it reads a large log.

A log comes from strangers. In a process of its own it can at worst end that process: the call that brought it fails
with a sentence, a new process takes the place, everybody else goes on.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.model import Case, Diagnosis, Language
    from tools.evidence import Reading

#: Seconds beyond its own deadline after which a reading process counts as stuck and is replaced.
GRACE_S = 10.0
#: Log files of one incident that a server takes.
MOST_LOGS = 50
_HEAD = 8192


class ReadersError(Exception):
    """What was given could not be read. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One incident as it reaches a server: words, log contents by name, and what a person already answered.

    ``readings`` is what tools found out about it elsewhere, a live server's metrics for example.
    """

    text: str = ""
    logs: tuple[tuple[str, bytes], ...] = ()
    vllm_version: str | None = None
    language: Language | None = None
    target: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()


def clean_input(ask: Ask) -> Ask:
    """The same question with names that are safe to show; raises :class:`ReadersError` for what cannot be a question."""
    from tools.redaction import clean

    if len(ask.logs) > MOST_LOGS:
        raise ReadersError(f"{len(ask.logs)} logs were given; at most {MOST_LOGS} are read as one incident.")
    if not ask.text.strip() and not ask.logs and not ask.readings:
        raise ReadersError("Nothing was given; send a question, a log, or the name of a target.")
    logs = tuple((clean(name).strip()[:200] or f"log {place}", data) for place, (name, data) in enumerate(ask.logs, 1))
    return replace(ask, logs=logs)


class Readers:
    """A pool of reading processes. ``processes`` 0 takes one for each core that this process may use."""

    def __init__(self, processes: int = 0, *, deadline_s: float = 60.0) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False
        #: Is told of every diagnosis: ``done``, ``refused``, ``late`` or ``failed``, its seconds, and what came out.
        self.observer: Callable[[str, float, Diagnosis | None], None] | None = None
        #: Diagnoses under way or waiting, and how often a pool had to be replaced.
        self.asked = self.replaced = 0

    async def diagnose(self, ask: Ask) -> Diagnosis:
        """The diagnosis of one incident; raises :class:`ReadersError` and ``TimeoutError``."""
        return await self._observed(_diagnose, ask, self._deadline_s)

    async def again(self, case: Mapping[str, Any], answers: Mapping[str, str]) -> Diagnosis:
        """The diagnosis of a saved case with these answers; raises :class:`ReadersError` and ``TimeoutError``."""
        return await self._observed(_again, dict(case), dict(answers))

    async def pack(self, ask: Ask, case: Mapping[str, Any] | None, incident: str | None) -> bytes:
        """A bundle of one incident, of a saved ``case`` where there is one; raises :class:`ReadersError`."""
        packed: bytes = await self._run(_pack, ask, None if case is None else dict(case), incident, self._deadline_s)
        return packed

    def problems(self) -> tuple[str, ...]:
        """What keeps the pool from reading, one sentence each."""
        return ("The reading processes have been closed.",) if self._closed else ()

    async def start(self) -> None:
        """Start and warm every process now, so that the first question does not wait for it."""
        await asyncio.gather(*(self._run(_warm) for _ in range(self.processes)))

    def close(self) -> None:
        """End all processes; what they were reading fails."""
        self._closed = True
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)

    async def _observed(self, work: Any, *arguments: Any) -> Diagnosis:
        began, outcome = time.monotonic(), "failed"
        found: Diagnosis | None = None
        self.asked += 1
        try:
            found = await self._run(work, *arguments)
            outcome = "done"
            return found
        except ReadersError:
            outcome = "refused"
            raise
        except TimeoutError:
            outcome = "late"
            raise
        finally:
            self.asked -= 1
            if self.observer is not None:
                self.observer(outcome, time.monotonic() - began, found)

    async def _run(self, work: Any, *arguments: Any) -> Any:
        pool = self._opened()
        try:
            future: Future[Any] = pool.submit(work, *arguments)
            return await asyncio.wait_for(asyncio.wrap_future(future), self._deadline_s + GRACE_S)
        except BrokenProcessPool:
            self._replace(pool)
            raise ReadersError(
                "The process that read this ended before it was done, out of memory perhaps; send less at once."
            ) from None
        except TimeoutError:
            if future.running():
                self._replace(pool)  # it ignored its own deadline, so it would hold its place for ever
            raise

    def _opened(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise ReadersError("The server is shutting down.")
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
                )
            return self._pool

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = None
                self.replaced += 1
        _end(broken)


class InProcess:
    """The same in a thread of this process, for a program with one user; takes no time to start."""

    def __init__(self, deadline_s: float = 60.0) -> None:
        self._deadline_s = deadline_s
        self._lock = asyncio.Lock()

    async def diagnose(self, ask: Ask) -> Diagnosis:
        """The diagnosis of one incident; raises :class:`ReadersError` and ``TimeoutError``."""
        found: Diagnosis = await self._run(_diagnose, ask, self._deadline_s)
        return found

    async def again(self, case: Mapping[str, Any], answers: Mapping[str, str]) -> Diagnosis:
        """The diagnosis of a saved case with these answers; raises :class:`ReadersError` and ``TimeoutError``."""
        found: Diagnosis = await self._run(_again, dict(case), dict(answers))
        return found

    async def pack(self, ask: Ask, case: Mapping[str, Any] | None, incident: str | None) -> bytes:
        """A bundle of one incident, of a saved ``case`` where there is one; raises :class:`ReadersError`."""
        packed: bytes = await self._run(_pack, ask, None if case is None else dict(case), incident, self._deadline_s)
        return packed

    def problems(self) -> tuple[str, ...]:
        """Nothing can be wrong with a thread."""
        return ()

    async def start(self) -> None:
        """Nothing has to be started."""

    def close(self) -> None:
        """Nothing has to be ended; what is being read ends at its own deadline."""

    async def _run(self, work: Any, *arguments: Any) -> Any:
        async with self._lock:
            return await asyncio.wait_for(asyncio.to_thread(_prepared, work, *arguments), self._deadline_s + GRACE_S)


def _prepared(work: Any, *arguments: Any) -> Any:
    global _engine
    if _engine is None:
        from assistant.diagnosis.diagnose import Engine
        from knowledge.catalog import load

        _engine = Engine(load())
    return work(*arguments)


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())  # there is no public way to end a process that hangs
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:
        process.join(5)


_engine: Engine | None = None


def _begin() -> None:
    """Prepare a reading process: interruptions are the parent's business, and it does not outlive the parent."""
    global _engine
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _follow_parent()
    from assistant.diagnosis.diagnose import Engine
    from knowledge.catalog import load

    _engine = Engine(load())


def _follow_parent() -> None:
    """End with the parent, however it ends; a pool's own way needs a parent that could still say so."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def _ready() -> Engine:
    if _engine is None:
        raise RuntimeError("the reading process was not prepared")
    return _engine


def _warm() -> None:
    """Read a line and a few words: what reading prepares at its first use is prepared then."""
    _diagnose(Ask(text="the server hangs", logs=(("log", b"INFO 01-01 00:00:00 [api_server.py:1] vLLM\n"),)), 10.0)
    time.sleep(0.05)  # long enough for the next process to take the next of these


def _diagnose(ask: Ask, deadline_s: float) -> Diagnosis:
    return _ready().diagnose(_case_of(ask, deadline_s))


def _pack(ask: Ask, case: dict[str, Any] | None, incident: str | None, deadline_s: float) -> bytes:
    from assistant.bundles import BundleError, pack
    from assistant.diagnosis.model import case_from_json
    from tools.redaction import Redactor

    clean = Redactor(addresses=True, emails=True).redact
    try:
        read = _case_of(ask, deadline_s) if case is None else case_from_json(case)
        return pack(read, _ready(), clean, logs=ask.logs, incident=incident)
    except (KeyError, TypeError) as error:
        raise ReadersError(f"The incident was saved in a form that cannot be read back ({error!r}).") from None
    except BundleError as error:
        raise ReadersError(str(error)) from None


def _case_of(ask: Ask, deadline_s: float) -> Case:
    from assistant.diagnosis.gather import read_case
    from tools.logs import LogInput, ReadOptions, recognise

    engine = _ready()
    try:
        case, _ = read_case(
            engine.catalog,
            text=ask.text,
            logs=[LogInput(name=name, data=data, kind=recognise(name, data[:_HEAD])) for name, data in ask.logs],
            options=ReadOptions(deadline_s=deadline_s),
            language=ask.language,
            vllm_version=ask.vllm_version,
            target=ask.target,
            answers=dict(ask.answers),
        )
    except (OSError, ValueError) as error:
        raise ReadersError(f"What was sent cannot be read: {error}") from None
    for reading in ask.readings:
        case = replace(case, reading=case.reading + reading)
    return case


def _again(case: dict[str, Any], answers: dict[str, str]) -> Diagnosis:
    from assistant.diagnosis.model import case_from_json

    engine = _ready()
    try:
        read = case_from_json(case)
    except (KeyError, ValueError, TypeError) as error:
        raise ReadersError(f"The incident was saved in a form that cannot be read back ({error!r}).") from None
    return engine.diagnose(replace(read, answers={**read.answers, **answers}))
