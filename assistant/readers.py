"""Reading and deciding in processes of their own, so that a server answers others while it reads a large log.

A log comes from strangers. In a process of its own it can at worst end that process: the call that brought it fails
with a sentence, a new process takes the place, everybody else goes on. A call that is cancelled stops reading.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from assistant import __version__
from assistant.reading_process import abandoned_when, stop_if_abandoned

if TYPE_CHECKING:
    from assistant.diagnosis.collecting import Collected
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.model import Case, Diagnosis, Language
    from assistant.reading_process import ReadingProcess
    from assistant.store.kept import Kept
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

    ``readings`` is what tools found out about it elsewhere, a live server's metrics for example, and ``collected`` the
    logs that were fetched where a target keeps them.
    """

    text: str = ""
    logs: tuple[tuple[str, bytes], ...] = ()
    vllm_version: str | None = None
    language: Language | None = None
    target: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    collected: tuple[Collected, ...] = ()


def clean_input(ask: Ask) -> Ask:
    """The same question with names that are safe to show; raises :class:`ReadersError` for what cannot be a question."""
    from tools.redaction import clean

    if len(ask.logs) > MOST_LOGS:
        raise ReadersError(f"{len(ask.logs)} logs were given; at most {MOST_LOGS} are read as one incident.")
    if not ask.text.strip() and not ask.logs and not ask.readings and not ask.collected:
        raise ReadersError("Nothing was given; send a question, a log, or the name of a target.")
    logs = tuple((clean(name).strip()[:200] or f"log {place}", data) for place, (name, data) in enumerate(ask.logs, 1))
    return replace(ask, logs=logs)


class Readers:
    """Some reading processes. ``processes`` 0 takes one for each core that this process may use."""

    def __init__(self, processes: int = 0, *, deadline_s: float = 60.0) -> None:
        self.processes = processes or len(os.sched_getaffinity(0))
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._idle: list[ReadingProcess] = []
        self._busy: set[ReadingProcess] = set()
        # A thread for each process waits for its answers; calls beyond that wait here.
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        #: Is told of every diagnosis: ``done``, ``refused``, ``late``, ``cancelled`` or ``failed``, seconds, what came out.
        self.observer: Callable[[str, float, Diagnosis | None], None] | None = None
        #: Diagnoses under way or waiting, and how often a process had to be replaced.
        self.asked = self.replaced = 0

    async def diagnose(self, ask: Ask) -> Diagnosis:
        """The diagnosis of one incident; raises :class:`ReadersError` and ``TimeoutError``."""
        found: Diagnosis = await self._observed(_diagnose, ask, self._deadline_s)
        return found

    async def diagnose_to_keep(self, ask: Ask, incident: str, others: bool) -> tuple[Diagnosis, Kept]:
        """The same, and what is kept of it as ``incident``; with ``others`` without addresses and e-mail addresses."""
        found: tuple[Diagnosis, Kept] = await self._observed(_diagnose_to_keep, ask, self._deadline_s, incident, others)
        return found

    async def again(self, case: Mapping[str, Any], answers: Mapping[str, str]) -> Diagnosis:
        """The diagnosis of a saved case with these answers; raises :class:`ReadersError` and ``TimeoutError``."""
        found: Diagnosis = await self._observed(_again, dict(case), dict(answers))
        return found

    async def pack(self, ask: Ask, case: Mapping[str, Any] | None, incident: str | None) -> bytes:
        """A bundle of one incident, of a saved ``case`` where there is one; raises :class:`ReadersError`."""
        packed: bytes = await self._run(_pack, ask, None if case is None else dict(case), incident, self._deadline_s)
        return packed

    def problems(self) -> tuple[str, ...]:
        """What keeps the processes from reading, one sentence each."""
        return ("The reading processes have been closed.",) if self._closed else ()

    @property
    def pids(self) -> tuple[int, ...]:
        """Numbers of the processes that run now."""
        with self._lock:
            return tuple(process.pid for process in (*self._idle, *self._busy))

    async def start(self) -> None:
        """Start and warm every process now, so that the first question does not wait for it."""
        await asyncio.gather(*(self._run(_warm) for _ in range(self.processes)))

    def close(self) -> None:
        """End all processes; what they were reading fails."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
            processes = (*self._idle, *self._busy)
            self._idle = []
        for process in processes:
            process.kill()
        if threads is not None:
            threads.shutdown(cancel_futures=True)
            atexit.unregister(self.close)
        for process in processes:
            process.end()

    async def _observed(self, work: Any, *arguments: Any) -> Any:
        began, outcome = time.monotonic(), "failed"
        found: Any = None
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
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.asked -= 1
            if self.observer is not None:
                diagnosis = found[0] if isinstance(found, tuple) else found
                self.observer(outcome, time.monotonic() - began, diagnosis)

    async def _run(self, work: Any, *arguments: Any) -> Any:
        gone = threading.Event()
        until = time.monotonic() + self._deadline_s + GRACE_S
        future: Future[Any] = self._opened().submit(self._call, work, arguments, gone, until)
        try:
            async with asyncio.timeout(self._deadline_s + GRACE_S):
                return await asyncio.wrap_future(future)
        finally:
            gone.set()  # whoever cancelled this or waited too long reads the rest of a large log no more

    def _call(self, work: Any, arguments: tuple[Any, ...], gone: threading.Event, until: float) -> Any:
        """One call on a free process, which is put back or replaced; runs in a thread."""
        from assistant.reading_process import ProcessEndedError

        process = self._take()
        try:
            return process.call(work, arguments, gone, until)
        except ProcessEndedError:
            if self._closed:
                raise ReadersError("The server is shutting down.") from None
            raise ReadersError(
                "The process that read this ended before it was done, out of memory perhaps; send less at once."
            ) from None
        finally:
            self._put_back(process)

    def _take(self) -> ReadingProcess:
        from assistant.reading_process import ReadingProcess

        with self._lock:
            if self._closed:
                raise ReadersError("The server is shutting down.")
            process = self._idle.pop() if self._idle else ReadingProcess(_begin)
            self._busy.add(process)
            return process

    def _put_back(self, process: ReadingProcess) -> None:
        with self._lock:
            self._busy.discard(process)
            if not process.ended and not self._closed:
                self._idle.append(process)
                return
            if self._closed or self._threads is None:
                return
            self.replaced += 1
            # The next one is prepared now and not when somebody waits for it.
            later = time.monotonic() + self._deadline_s
            self._threads.submit(self._call, _warm, (), threading.Event(), later)

    def _opened(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise ReadersError("The server is shutting down.")
            if self._threads is None:
                import multiprocessing.util  # noqa: F401  (its own way to end comes first, so that ours runs before it)

                self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="reader")
                atexit.register(self.close)
            return self._threads


class InProcess:
    """The same in a thread of this process, for a program with one user; takes no time to start."""

    def __init__(self, deadline_s: float = 60.0) -> None:
        self._deadline_s = deadline_s
        self._lock = asyncio.Lock()

    async def diagnose(self, ask: Ask) -> Diagnosis:
        """The diagnosis of one incident; raises :class:`ReadersError` and ``TimeoutError``."""
        found: Diagnosis = await self._run(_diagnose, ask, self._deadline_s)
        return found

    async def diagnose_to_keep(self, ask: Ask, incident: str, others: bool) -> tuple[Diagnosis, Kept]:
        """The same, and what is kept of it as ``incident``; with ``others`` without addresses and e-mail addresses."""
        found: tuple[Diagnosis, Kept] = await self._run(_diagnose_to_keep, ask, self._deadline_s, incident, others)
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
        gone = threading.Event()
        async with self._lock:
            try:
                thread = asyncio.to_thread(_prepared, gone, work, *arguments)
                async with asyncio.timeout(self._deadline_s + GRACE_S):
                    return await thread
            finally:
                gone.set()  # a thread cannot be ended; one that reads a log looks at this


def _prepared(gone: threading.Event, work: Any, *arguments: Any) -> Any:
    if _engine is None:
        _begin()
    with abandoned_when(gone.is_set):
        return work(*arguments)


_engine: Engine | None = None


def _begin() -> None:
    """Prepare a process for reading."""
    global _engine
    from assistant.diagnosis.diagnose import Engine
    from knowledge.catalog import load

    _engine = Engine(load())


def _ready() -> Engine:
    if _engine is None:
        raise RuntimeError("the reading process was not prepared")
    return _engine


def _warm() -> None:
    """Read a line and a few words: what reading prepares at its first use is prepared then, and stays.

    Runs in a process of its own, whose search for garbage need not go through all of that again and again.
    """
    _diagnose(Ask(text="the server hangs", logs=(("log", b"INFO 01-01 00:00:00 [api_server.py:1] vLLM\n"),)), 10.0)
    gc.collect()
    gc.freeze()


def _diagnose(ask: Ask, deadline_s: float) -> Diagnosis:
    return _ready().diagnose(_case_of(ask, deadline_s))


def _diagnose_to_keep(ask: Ask, deadline_s: float, incident: str, others: bool) -> tuple[Diagnosis, Kept]:
    from assistant.store.kept import as_kept
    from tools.redaction import Redactor

    diagnosis = _diagnose(ask, deadline_s)
    evidence = [diagnosis.case.to_json()] if diagnosis.case is not None else []
    clean = Redactor(addresses=others, emails=others).redact
    return diagnosis, as_kept(
        incident, 1, diagnosis.to_json(engine=__version__), evidence, question=ask.text, clean=clean
    )


def _pack(ask: Ask, case: dict[str, Any] | None, incident: str | None, deadline_s: float) -> bytes:
    from assistant.bundles import BundleError, pack
    from assistant.diagnosis.model import case_from_json
    from tools.redaction import Redactor

    clean = Redactor(addresses=True, emails=True).redact
    try:
        read = _case_of(ask, deadline_s) if case is None else case_from_json(case)
        logs = (*ask.logs, *((log.name, log.data) for log in ask.collected))
        return pack(read, _ready(), clean, logs=logs, incident=incident)
    except (KeyError, TypeError) as error:
        raise ReadersError(f"The incident was saved in a form that cannot be read back ({error!r}).") from None
    except BundleError as error:
        raise ReadersError(str(error)) from None


def _case_of(ask: Ask, deadline_s: float) -> Case:
    from assistant.diagnosis.gather import read_case
    from tools.logs import LogInput, ReadOptions, recognise

    engine = _ready()
    logs = [LogInput(name=name, data=data, kind=recognise(name, data[:_HEAD])) for name, data in ask.logs]
    logs += [LogInput(name=log.name, data=log.data, broke_off=log.broke_off) for log in ask.collected]
    try:
        case, _ = read_case(
            engine.catalog,
            text=ask.text,
            logs=logs,
            options=ReadOptions(deadline_s=deadline_s, progress=stop_if_abandoned),
            language=ask.language,
            vllm_version=ask.vllm_version,
            target=ask.target,
            answers=dict(ask.answers),
        )
    except (OSError, ValueError) as error:
        raise ReadersError(f"What was sent cannot be read: {error}") from None
    stop_if_abandoned()
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
