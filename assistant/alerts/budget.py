"""At most so many messages in any minute, counted over all replicas and over restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assistant.store.claims import Claims

_MINUTE_S = 60.0


class Budget:
    """``per_minute`` places; each is held for a minute once it is taken. Methods block and raise ``StoreError``."""

    def __init__(self, claims: Claims, per_minute: int, *, name: str = "alerts:message") -> None:
        self._claims = claims
        self._places = [f"{name}:{number}" for number in range(per_minute)]

    def free(self) -> int:
        """Places that nobody holds now."""
        return len(self._places) - len(self._claims.get_many(self._places))

    def take(self) -> bool:
        """Take a place if there is one."""
        held = self._claims.get_many(self._places)
        free = [place for place in self._places if place not in held]
        return any(self._claims.take(place, keep_s=_MINUTE_S) is None for place in free)
