"""How often somebody may ask: a moving window for each token or address, kept in this process."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter


class Limiter:
    """At most ``per_minute`` requests in any minute for each key, counted on one event loop.

    (What the library has for threads begins one with nearly every request and waits until it runs.)
    """

    def __init__(self, per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(per_minute)
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def take(self, key: str) -> int | None:
        """Count one request: None when it may go on, else the whole seconds to wait."""
        if await self._window.hit(self._item, key):
            return None
        stats = await self._window.get_window_stats(self._item, key)
        return max(1, math.ceil(stats.reset_time - time.time()))
