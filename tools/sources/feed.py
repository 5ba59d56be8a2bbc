"""From a stream of lines to a file that the log reader reads: a thread fetches, a short queue holds it back.

The log reader is plain synchronous code and reads at its own pace; sources are asynchronous. A :class:`Feed` runs one
event loop in a thread; :meth:`Feed.opened` gives a stream of it as a file whose reading blocks until lines are there.
Memory is a few batches, whatever the size of the log. Where a stream breaks off, reading ends with an error, so that
the reader knows that there was more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import threading
import time
from collections.abc import Callable, Coroutine
from typing import IO, Any, Self, TypeVar, cast

from tools.outbound import Limits, Outbound, OutboundError, Policy
from tools.sources.base import Bounds, SourceFailedError, Stream

T = TypeVar("T")
_QUEUED_BATCHES = 8


class Feed:
    """Runs coroutines over one :class:`Outbound` in a thread of its own. A context manager; leaving it ends all."""

    def __init__(self, policy: Policy, bounds: Bounds) -> None:
        self._policy = policy
        self._bounds = bounds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="feed", daemon=True)
        self._outbound: Outbound | None = None
        self._files: list[_LineFile] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._outbound = Outbound(self._policy, limits=Limits(self._bounds.deadline_s))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        try:
            if self._outbound is not None:
                self.run(self._outbound.__aexit__)
        except Exception:  # noqa: BLE001, S110 - what cannot be closed is gone with the loop
            pass
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    @property
    def outbound(self) -> Outbound:
        """The way out that everything in this feed shares; only to be used inside :meth:`run`."""
        if self._outbound is None:
            raise RuntimeError("the feed is not open")
        return self._outbound

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Carry a coroutine out in the thread and wait for it; an interruption here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def opened(self, stream: Stream) -> IO[bytes]:
        """``stream`` as a file to read; fetching begins with the first read."""
        file = _LineFile(stream, self._loop, self.outbound, self._bounds)
        self._files.append(file)
        return cast("IO[bytes]", file)


class _LineFile(io.RawIOBase):
    def __init__(self, stream: Stream, loop: asyncio.AbstractEventLoop, outbound: Outbound, bounds: Bounds) -> None:
        self._stream = stream
        self._loop = loop
        self._outbound = outbound
        self._bounds = bounds
        self._queue: asyncio.Queue[bytes | OSError | None] = asyncio.Queue(_QUEUED_BATCHES)
        self._task: concurrent.futures.Future[None] | None = None
        self._left = memoryview(b"")
        self._over: OSError | None = None
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if self._over is not None:
                raise self._over
            if self._ended:
                return 0
            self._take(self._next())
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self._ended = True
        super().close()

    def _take(self, got: bytes | OSError | None) -> None:
        if got is None:
            self._ended = True
        elif isinstance(got, OSError):
            self._over = got
        else:
            self._left = memoryview(got)

    def _next(self) -> bytes | OSError | None:
        if self._task is None:
            self._task = asyncio.run_coroutine_threadsafe(self._fetch(), self._loop)
        return asyncio.run_coroutine_threadsafe(self._queue.get(), self._loop).result()

    async def _fetch(self) -> None:
        end: OSError | None = None
        size = count = 0
        until = time.monotonic() + self._bounds.deadline_s
        try:
            async with contextlib.aclosing(self._stream.lines(self._outbound, self._bounds)) as batches:
                async for batch in batches:
                    block = b"".join(line.stamped() for line in batch)
                    size, count = size + len(block), count + len(batch)
                    await self._queue.put(block)
                    if size > self._bounds.max_bytes or count > self._bounds.max_lines:
                        end = OSError(f"{size} bytes ({count} lines) were read, the most that is read of one log")
                        break
                    if time.monotonic() > until:
                        end = OSError(f"the deadline of {self._bounds.deadline_s:g} s passed after {count} lines")
                        break
        except (SourceFailedError, OutboundError) as error:
            end = OSError(str(error).rstrip("."))
        except Exception as error:  # noqa: BLE001 - whoever waits for the next line must hear of it
            end = OSError(f"the source broke off: {error!r:.200}")
        await self._queue.put(end)
