"""Works on jobs: claims them, keeps their leases, and ends them at their deadline, on request or when it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from assistant.store.database import StoreError
from assistant.store.jobs import Job, Jobs, Lease, LostLeaseError
from tools.redaction import redact

Report = Callable[[float | None, str], None]
#: Carries a job out and returns a JSON-like result. What it raises as a sentence becomes the job's error.
Carry = Callable[[Job, Report], Awaitable[Any]]

#: Seconds between two writes of progress; what comes in between is joined.
REPORT_EVERY_S = 0.5
#: Seconds that cancelled work has to end. What stays then is left behind; it holds no lease and can write nothing.
STUBBORN_S = 5.0


class Worker:
    """Carries jobs out in this process, ``at_once`` at a time. The database's blocking calls run in threads."""

    def __init__(
        self, jobs: Jobs, carry: Carry, *, lease_s: float = 30.0, at_once: int = 2, look_every_s: float = 1.0
    ) -> None:
        self.owner = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._jobs = jobs
        self._carry = carry
        self._lease_s = lease_s
        self._at_once = at_once
        self._look_every_s = look_every_s
        #: No further job is taken while this is set; those under way go on.
        self.paused = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; jobs that are under way then are cancelled and handed over.

        A database that is away for a while is waited for.
        """
        working: set[asyncio.Task[None]] = set()
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                lease = await self._claim() if len(working) < self._at_once and not self.paused else None
                if lease is not None:
                    working.add(asyncio.create_task(self.carry_out(lease)))
                    continue
                _, _ = await asyncio.wait(
                    {stopping, *working}, timeout=self._look_every_s, return_when=asyncio.FIRST_COMPLETED
                )
                working = {task for task in working if not task.done()}
        finally:
            stopping.cancel()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _claim(self) -> Lease | None:
        try:
            return await asyncio.to_thread(self._jobs.claim, self.owner, self._lease_s)
        except StoreError:
            return None

    async def carry_out(self, lease: Lease) -> None:
        """Carry one claimed job out and end it; a lost lease ends the work without a word."""
        reports = _Reports(self._jobs, lease)
        work = asyncio.ensure_future(self._carry(lease.job, reports.take))
        keeper = asyncio.create_task(self._keep(lease, reports, work))
        state, result, error = "done", None, None
        stopped = False
        try:
            async with asyncio.timeout(lease.job.deadline_s):
                result = await asyncio.shield(work)
        except TimeoutError:
            state, error = "failed", f"It did not finish within its deadline of {lease.job.deadline_s:g} s."
        except asyncio.CancelledError:
            this = asyncio.current_task()
            stopped = this is not None and this.cancelling() > 0
            if stopped:
                state, error = "interrupted", "The process that worked on it was stopped."
            elif reports.cancel_wanted:
                state = "cancelled"
            else:
                state, error = "failed", "It was cancelled from inside."
        except Exception as failure:  # noqa: BLE001  (whatever a tool raises ends its job, not the worker)
            state, error = "failed", redact(str(failure)) or type(failure).__name__
        finally:
            keeper.cancel()
            work.cancel()
            await asyncio.wait({keeper, work}, timeout=STUBBORN_S)
            reports.close()
        if not reports.lost:
            await self._finish(lease, reports, state, result, error)
        if stopped:
            raise asyncio.CancelledError

    async def _finish(self, lease: Lease, reports: _Reports, state: Any, result: Any, error: str | None) -> None:
        with contextlib.suppress(LostLeaseError):
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(reports.flush)
            for pause in (0.1, 0.5, 2.0, None):
                try:
                    if state == "interrupted":
                        await asyncio.to_thread(self._jobs.hand_over, lease, error or "")
                    else:
                        await asyncio.to_thread(self._jobs.finish, lease, state, result=result, error=error)
                    return
                except LostLeaseError:
                    return
                except StoreError:
                    if pause is None:
                        return  # the lease runs out and the job becomes interrupted
                    await asyncio.sleep(pause)

    async def _keep(self, lease: Lease, reports: _Reports, work: asyncio.Future[Any]) -> None:
        """Extend the lease, write progress and look for a wish to stop, until the work is done."""
        renewed = time.monotonic()
        pause = min(REPORT_EVERY_S, self._lease_s / 4)
        while True:
            await asyncio.sleep(pause)
            try:
                await asyncio.to_thread(reports.flush)
                wanted = await asyncio.to_thread(self._jobs.extend, lease, self._lease_s)
                renewed = time.monotonic()
            except LostLeaseError:
                reports.lost = True
            except StoreError:
                # The database is away; the lease is over when its time is, and then another may have the job.
                reports.lost = time.monotonic() - renewed > self._lease_s
                wanted = False
            if reports.lost or wanted:
                reports.cancel_wanted = not reports.lost
                work.cancel()
                return
            pause = min(REPORT_EVERY_S * 2, self._lease_s / 3)


class _Reports:
    """Collects a job's progress, which may come from any thread, and writes it now and then."""

    def __init__(self, jobs: Jobs, lease: Lease) -> None:
        self._jobs = jobs
        self._lease = lease
        self._waiting: list[tuple[float | None, str]] = []
        self._closed = False
        self.lost = False
        self.cancel_wanted = False

    def take(self, fraction: float | None, text: str) -> None:
        if not self._closed and len(self._waiting) < 1000:
            self._waiting.append((fraction, text))

    def close(self) -> None:
        self._closed = True

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for place, (fraction, text) in enumerate(waiting):
            last_of_its_text = place + 1 == len(waiting) or waiting[place + 1][1] != text
            if last_of_its_text:
                self._jobs.report(self._lease, fraction, text)
