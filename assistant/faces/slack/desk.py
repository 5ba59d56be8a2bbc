"""Where requests from Slack are kept and carried out: acknowledged within moments, finished even after a crash.

A request becomes an order in the store before it is acknowledged, several of them in one transaction; then a task
carries it out. A process that dies stops saying that it holds its orders, and whoever looks next takes them: the same
process started again, or another replica. An order that two processes did not get through is said to be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.line import UnreachableError
from assistant.store.orders import LostOrderError, Order, Orders

if TYPE_CHECKING:
    from assistant.faces.slack.work import Work
    from assistant.service import Service
    from assistant.store.orders import Held

FACE = "slack"
#: Seconds that an acknowledgement waits for the store at most. Slack gives up after 3.
ACK_WAIT_S = 1.2
#: Seconds that the work waits for the store before it begins without it.
KEPT_WAIT_S = 3.0
#: Seconds for which an order is held; held again at a third of it.
HOLD_S = 12.0
LOOK_EVERY_S = 3.0
#: An order older than this is not carried out any more: nobody waits for it, and Slack's URLs are gone.
TOO_OLD_S = 30 * 60.0
MOST_ATTEMPTS = 2
_MOST_SEEN = 20_000

Handler = Callable[["Work"], Awaitable[None]]
_log = logging.getLogger("vllm_diagnose.slack")


class Desk:
    """Orders of one process. ``make`` turns what is held into a :class:`Work`; ``handlers`` are by kind."""

    def __init__(
        self,
        service: Service,
        make: Callable[[Mapping[str, Any], Held | None, Desk], Awaitable[Work | None]],
        handlers: Mapping[str, Handler],
        *,
        at_once: int = 8,
    ) -> None:
        self.owner = f"{platform.node()}:{secrets.token_hex(6)}"
        self.orders = Orders(service.database)
        self.hold_s = HOLD_S
        self._service = service
        self._make = make
        self._handlers = handlers
        self._room = asyncio.Semaphore(at_once)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._waiting: list[tuple[Order, asyncio.Future[Held | None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._working: set[str] = set()
        # One thread of its own: a store that hangs must not take the threads that others need.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="slack-orders")

    def first(self, key: str) -> bool:
        """Whether this process sees ``key`` for the first time; the store knows about the other replicas."""
        if key in self._seen:
            return False
        self._seen[key] = None
        while len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return True

    async def accept(self, key: str, order: Mapping[str, Any]) -> None:
        """Keep an order and begin with it. Returns as soon as it is kept, or after :data:`ACK_WAIT_S`."""
        if not self.first(key):
            return
        kept = self._keep(Order(key, FACE, order))
        self._begin(self._carry_out_kept(order, kept))
        await asyncio.wait([kept], timeout=ACK_WAIT_S)

    def start(self) -> None:
        """Look for orders that nobody holds, now and every few seconds."""
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """End everything; what is under way is taken up by whoever comes next."""
        tasks = [*self._tasks, *([self._looking] if self._looking else []), *([self._writing] if self._writing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _keep(self, order: Order) -> asyncio.Future[Held | None]:
        future: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits may have left
        self._waiting.append((order, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return future

    async def _write(self) -> None:
        """Write all that waits in one transaction; what came in meanwhile goes into the next."""
        from assistant.store.database import StoreError

        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            orders = [order for order, _ in batch]
            try:
                found = await loop.run_in_executor(self._writer, self.orders.accept, orders, self.owner, HOLD_S)
            except StoreError as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), held in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(held)

    async def _carry_out_kept(self, order: Mapping[str, Any], kept: asyncio.Future[Held | None]) -> None:
        from assistant.store.database import StoreError

        held: Held | None = None
        try:
            async with asyncio.timeout(KEPT_WAIT_S):
                held = await asyncio.shield(kept)
            if held is None:
                return  # another replica has it
        except (StoreError, TimeoutError):
            pass  # the answer is worth more than its safety; it is given without
        await self._carry_out(order, held)
        if held is None and not kept.done():
            with contextlib.suppress(StoreError, TimeoutError):  # kept late: it must not be carried out again
                async with asyncio.timeout(30):
                    late = await asyncio.shield(kept)
                await self._done(late)

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> None:
        from assistant.store.database import StoreError

        while True:
            try:
                free = await self._service.in_thread(
                    lambda: self.orders.free(FACE, self.owner, HOLD_S, besides=frozenset(self._working))
                )
            except StoreError:
                free = []
            for held in free:
                self._begin(self._carry_out(held.state, held))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _carry_out(self, order: Mapping[str, Any], held: Held | None) -> None:
        """Carry one order out and forget it. Whatever happens, somebody is told."""
        work: Work | None = None
        keeper: asyncio.Task[None] | None = None
        if held is not None:
            self._working.add(held.id)
        try:
            async with contextlib.AsyncExitStack() as stack:
                work = await self._make(order, held, self)
                if work is None:
                    return await self._done(held)
                # Held from now on, also while it waits for room: otherwise another replica would take it.
                keeper = asyncio.create_task(self._hold(work))
                await stack.enter_async_context(self._room)
                if held is not None and (
                    held.attempts > MOST_ATTEMPTS or time.time() - held.created_at_ms / 1000 > TOO_OLD_S
                ):
                    await work.say("slack-interrupted")
                else:
                    await self._handlers[str(order["kind"])](work)
            await self._stop_holding(keeper)
            await self._done(work.held)
        except LostOrderError:
            return None
        except asyncio.CancelledError:
            # The process is stopped: another replica shall not have to wait until it is missed.
            await self._stop_holding(keeper)
            await self._hand_over(work.held if work else held, work.order if work else order)
            raise
        except UnreachableError as error:
            _log.warning("An answer could not be delivered. %s", error)
            await self._stop_holding(keeper)
            await self._done(work.held if work else held)
        except Exception as error:  # noqa: BLE001  (the person is told, and the process goes on)
            reference = secrets.token_hex(4)
            _log.error("%s: %s while working on a request from Slack", reference, type(error).__name__, exc_info=error)
            await self._stop_holding(keeper)
            if work is not None:
                with contextlib.suppress(UnreachableError):
                    await work.say("slack-broken", reference=reference)
                await self._done(work.held)
        finally:
            if held is not None:
                self._working.discard(held.id)
            if keeper is not None:
                keeper.cancel()

    async def _stop_holding(self, keeper: asyncio.Task[None] | None) -> None:
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _hold(self, work: Work) -> None:
        from assistant.store.database import StoreError

        while True:
            await asyncio.sleep(HOLD_S / 3)
            try:
                await work.keep()
            except LostOrderError:
                return
            except StoreError:
                continue

    async def _hand_over(self, held: Held | None, order: Mapping[str, Any]) -> None:
        from assistant.store.database import StoreError

        if held is not None:
            with contextlib.suppress(StoreError):  # then it is taken when it is held no more
                await self._service.in_thread(self.orders.hand_over, held, order)

    async def _done(self, held: Held | None) -> None:
        from assistant.store.database import StoreError

        if held is not None:
            with contextlib.suppress(StoreError):
                await self._service.in_thread(self.orders.done, held)
