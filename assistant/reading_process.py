"""One process that works for another, one call at a time: it can be told to stop, and ended without harming others.

A call that nobody waits for any more is asked to end: what it works with looks at :func:`stop_if_abandoned` now and
then. One that does not look within :data:`STUBBORN_S` seconds loses its process, and so does one that is too late.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from multiprocessing.connection import Connection, wait
from typing import Any

#: Seconds that an abandoned call gets to notice.
STUBBORN_S = 2.0
_LOOK_EVERY_S = 0.25
#: A call that took longer read something large.
_LARGE_S = 0.2
#: glibc's number for the setting (malloc.h), and how many shares of the heap there may be.
_M_ARENA_MAX, _SHARES = -8, 2

#: Says whether anybody still waits for what this thread or process works on.
_abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("abandoned", default=None)


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


class ProcessEndedError(Exception):
    """The process ended before it had an answer."""


def stop_if_abandoned(*_: object) -> None:
    """Raise :class:`AbandonedError` where nobody waits any more; takes whatever a reader says of its progress."""
    asked = _abandoned.get()
    if asked is not None and asked():
        raise AbandonedError


@contextlib.contextmanager
def abandoned_when(asked: Callable[[], bool]) -> Iterator[None]:
    """What runs in the block stops where ``asked`` says that nobody waits for it."""
    before = _abandoned.set(asked)
    try:
        yield
    finally:
        _abandoned.reset(before)


def share_memory() -> None:
    """Let all threads take from a few shares of the heap: glibc gives nearly each its own, and none gives back its rest.

    To be called before there are threads; what has got a share keeps it.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _SHARES)


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps the room of a large log, in every thread's share of the heap."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class ReadingProcess:
    """A process that was prepared by ``prepare`` and carries one call out at a time, each from whatever thread."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        # Numbers of calls: those up to the stated one are abandoned. Shared memory, so that a look costs nothing.
        self._stop = context.RawValue("Q", 0)
        self._number = 0
        self._process = context.Process(target=_serve, args=(other, self._stop, prepare), name="reader", daemon=True)
        self._process.start()
        other.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid or 0

    def call(self, work: Callable[..., Any], arguments: tuple[Any, ...], gone: threading.Event, until: float) -> Any:
        """What ``work(*arguments)`` returns or raises there.

        Blocks. ``gone`` says that nobody waits any more; ``until`` is on the clock of ``time.monotonic``. Raises
        :class:`ProcessEndedError`, :class:`AbandonedError` and ``TimeoutError``; after the first and the last, and
        where :attr:`ended` says so, the process is of no further use.
        """
        self._number += 1
        try:
            self._pipe.send((self._number, work, arguments))
            abandoned_at: float | None = None
            while not wait([self._pipe, self._process.sentinel], _LOOK_EVERY_S):
                now = time.monotonic()
                if gone.is_set() and abandoned_at is None:
                    self._stop.value, abandoned_at = self._number, now
                if abandoned_at is not None and now > abandoned_at + STUBBORN_S:
                    self.end()
                    raise AbandonedError
                if now > until:
                    self.end()
                    raise TimeoutError
            good, found = self._pipe.recv()
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            self.end()
            raise ProcessEndedError from error
        if good:
            return found
        raise found

    @property
    def ended(self) -> bool:
        """Whether there is no process any more."""
        return not self._process.is_alive()

    def kill(self) -> None:
        """End the process from any thread; a call under way raises :class:`ProcessEndedError`."""
        self._process.kill()

    def end(self) -> None:
        """End the process and give everything back that it held."""
        self._process.kill()
        self._process.join(5)
        self._pipe.close()


def _serve(pipe: Connection, stop: Any, prepare: Callable[[], None]) -> None:
    """The life of a process: interruptions are the parent's business, and it does not outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a supervisor may send it to all; the parent still has answers to give
    _follow_parent()
    prepare()
    while True:
        try:
            number, work, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        began = time.monotonic()
        try:
            with abandoned_when(lambda number=number: stop.value >= number):  # type: ignore[misc]
                answer = (True, work(*arguments))
        except Exception as error:  # noqa: BLE001  (whatever it is, whoever called gets it)
            answer = (False, error)
        del work, arguments  # a large log is not kept until the next call
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception as error:  # noqa: BLE001  (what cannot be sent is said)
            pipe.send((False, RuntimeError(f"the result cannot be sent: {type(error).__name__}")))
        del answer
        if time.monotonic() - began > _LARGE_S:
            give_back_memory()


def _follow_parent() -> None:
    """End with the parent, however it ends; a pipe alone would have to be idle to notice."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
