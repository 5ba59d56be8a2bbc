"""Groups of alerts in the store: any replica takes notices in and goes on with any group, also after a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from assistant.alerts.groups import Group, group_from_json, joined
from assistant.alerts.selecting import targets_of
from assistant.store.database import NotFoundError
from assistant.store.incidents import StaleRevisionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from assistant.alerts.webhook import Alert, Notice
    from assistant.store.claims import Claims
    from assistant.store.conversations import Conversation, Conversations
    from assistant.targets import Target

FACE = "alerts"
#: Where a group is held: something is to be done, it goes on, it is over. The place of its conversation says which.
DUE, OPEN, CLOSED = "due", "open", "closed"
#: Seconds for which a firing is remembered: longer than Alertmanager repeats what still fires (4 h unless changed).
KEEP_ALERT_S = 7 * 86400.0
#: How often a group is tried to be changed while others change it too.
_TRIES = 40


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a notice: new alerts, those that were known, those that ended, and the groups they belong to."""

    new: int
    repeated: int
    resolved: int
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A group with its id, its incident once one is kept, and its place."""

    id: str
    group: Group
    incident: str | None
    place: str
    updated_ms: int


class Board:
    """The groups of one store. Every method blocks and raises ``StoreError``."""

    def __init__(
        self, claims: Claims, conversations: Conversations, targets: Mapping[str, Target], *, group_s: float
    ) -> None:
        self._claims = claims
        self._conversations = conversations
        self._targets = targets
        self._group_s = group_s
        self._lock = threading.Lock()

    def take(self, notice: Notice) -> Taken:
        """Keep a notice. What was kept when this returns survives; the same notice again changes nothing."""
        with self._lock:  # other replicas are met by revisions; within one process waiting is cheaper than trying again
            return self._take(notice)

    def _take(self, notice: Notice) -> Taken:
        by_claim = {f"{FACE}:{alert.key}": alert for alert in notice.alerts}
        known = self._claims.get_many(list(by_claim))
        new = [key for key, alert in by_claim.items() if key not in known and alert.status == "firing"]
        holds = dict(known)
        own = ""
        if new:
            own = self._group_of(notice)
            holds |= self._claims.take_many(new, own, keep_s=KEEP_ALERT_S)
        by_group: dict[str, list[Alert]] = {}
        for key, alert in by_claim.items():
            if key in holds:
                by_group.setdefault(holds[key], []).append(alert)
        for group, alerts in by_group.items():
            more = notice.more if group == own else 0
            self._join(group, alerts, more)
        resolved = sum(alert.status == "resolved" and key in known for key, alert in by_claim.items())
        return Taken(len(new), len(by_claim) - len(new) - resolved, resolved, tuple(by_group))

    def _group_of(self, notice: Notice) -> str:
        """The group that a new alert of this kind joins: the one that began within the last seconds, else a new one."""
        claim = f"{FACE}:group:{notice.group}"
        known = self._claims.get(claim)
        if known is not None:
            return known
        group = Group(title=notice.title, started_ms=now_ms())
        begun = self._conversations.begin(FACE, OPEN, group.to_json())
        first = self._claims.take(claim, begun.id, keep_s=self._group_s)
        if first is not None:  # another replica was faster; this one stays empty
            self._conversations.change(begun.id, begun.revision, group.to_json(), place=CLOSED)
        return first or begun.id

    def _join(self, identifier: str, alerts: list[Alert], more: int) -> None:
        meant = [(alert, targets_of(alert.labels, self._targets)) for alert in alerts]
        try:
            self.alter(identifier, lambda group: joined(group, meant, now_ms(), more), place=DUE)
        except NotFoundError:  # it was old enough to be cleared away while its alert still fired
            return

    def alter(
        self,
        identifier: str,
        change: Callable[[Group], Group | None],
        *,
        place: str | None = None,
        incident: str | None = None,
    ) -> Group | None:
        """Change a group whoever else does; returns it as it is then, None where ``change`` did not want to.

        A group that stays as it was is not written. Raises ``NotFoundError``.
        """
        for _ in range(_TRIES):
            held = self._conversations.get(identifier)
            before = group_from_json(held.state)
            after = change(before)
            if after is None:
                return None
            if after == before and (place in (None, held.place) or place == DUE) and incident is None:
                return before
            try:
                self._conversations.change(identifier, held.revision, after.to_json(), place=place, incident=incident)
            except StaleRevisionError:
                continue
            return after
        raise StaleRevisionError(identifier, 0, 0)

    def get(self, identifier: str) -> Held:
        """One group; raises ``NotFoundError``."""
        found = self._conversations.get(identifier)
        if found.face != FACE:
            raise NotFoundError(f"There is no group of alerts {identifier[:80]!r}.")
        return _held(found)

    def at(self, place: str, limit: int = 1000) -> list[Held]:
        """The groups at a place, those that have waited longest first."""
        return [_held(one) for one in reversed(self._conversations.at(FACE, place, limit))]

    def lease(self, identifier: str, owner: str, seconds: float) -> Group | None:
        """Work on a group for some seconds, or go on with it; None while somebody else does."""
        until = now_ms() + int(seconds * 1000)

        def mine(group: Group) -> Group | None:
            if group.owner not in ("", owner) and group.lease_until_ms > now_ms():
                return None
            return replace(group, owner=owner, lease_until_ms=until)

        try:
            return self.alter(identifier, mine)
        except NotFoundError:
            return None


def _held(one: Conversation) -> Held:
    return Held(one.id, group_from_json(one.state), one.incident, one.place, one.updated_at_ms)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
