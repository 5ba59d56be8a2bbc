"""What somebody was promised: kept when a request is acknowledged, gone on with by whoever is there after a crash.

An order is a conversation that waits: its place is :data:`WAITING` until it is carried out. Orders are
accepted many at a time in one transaction, because the sender waits for the acknowledgement, and an order whose key was
seen before is not accepted again. Whoever works on one holds it for a while and says so again and again; an order
nobody holds any more is free to be taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from assistant.store.conversations import MOST_STATE
from assistant.store.database import Database, StoreError
from assistant.store.schema import CLAIMS, CONVERSATIONS
from assistant.store.texts import from_json, plain_text, to_json

#: The place of an order that nobody has finished.
WAITING = "waiting"
#: Seconds for which a key that came once is known.
KEEP_KEY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Order:
    """Something to do: ``key`` is what a repeated delivery has in common with the first one."""

    key: str
    face: str
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Held:
    """An order that the caller works on. ``fence`` changes whenever it is held or given up."""

    id: str
    state: dict[str, Any]
    fence: int
    created_at_ms: int
    attempts: int


class LostOrderError(StoreError):
    """Somebody else holds the order by now; stop working on it."""


class Orders:
    """The orders of one database. Methods raise ``StoreError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def accept(self, orders: Sequence[Order], owner: str, hold_s: float) -> list[Held | None]:
        """Keep orders and hold them at once; None for one whose key was seen before."""
        names = [plain_text(f"{order.face}:{order.key}", 600) for order in orders]
        with self._database.write() as connection:
            now = self._database.clock(connection)
            new = self._claim(connection, names, now)
            found: list[Held | None] = []
            rows: list[dict[str, Any]] = []
            for name, order in zip(names, orders, strict=True):
                if name not in new:
                    found.append(None)
                    continue
                new.remove(name)  # a key that comes twice at once is one order
                held = Held(secrets.token_hex(10), dict(order.state), 1, now, 1)
                rows.append(
                    {
                        "id": held.id,
                        "face": plain_text(order.face, 40),
                        "place": WAITING,
                        "incident": None,
                        "state": _text(order.state, owner, now + int(hold_s * 1000), 1),
                        "revision": 1,
                        "created_at": now,
                        "updated_at": now,
                    }
                )
                found.append(held)
            if rows:
                connection.execute(sa.insert(CONVERSATIONS), rows)
        return found

    def _claim(self, connection: sa.Connection, names: Sequence[str], now: int) -> set[str]:
        """Those of the keys that nobody had before. A few statements for all of them: the sender is waiting."""
        insert = postgresql.insert if self._database.is_postgres else sqlite.insert
        connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.key.in_(names), CLAIMS.c.until <= now))
        until = now + int(KEEP_KEY_S * 1000)
        rows = [{"key": name, "value": "", "at": now, "until": until} for name in sorted(set(names))]
        statement = insert(CLAIMS).on_conflict_do_nothing().returning(CLAIMS.c.key)
        return set(connection.execute(statement, rows).scalars())

    def free(
        self, face: str, owner: str, hold_s: float, *, besides: frozenset[str] = frozenset(), limit: int = 20
    ) -> list[Held]:
        """Take orders that nobody holds any more, the oldest first, ``besides`` those the caller is working on."""
        waiting = sa.select(CONVERSATIONS).where(CONVERSATIONS.c.face == face, CONVERSATIONS.c.place == WAITING)
        taken: list[Held] = []
        with self._database.read() as connection:
            now = self._database.clock(connection)
            rows = list(connection.execute(waiting.order_by(CONVERSATIONS.c.created_at).limit(200)).mappings())
        for row in rows:
            state = from_json(row["state"])
            if row["id"] in besides or state.get("held_until", 0) > now or len(taken) >= limit:
                continue
            attempts = int(state.get("attempts", 1)) + 1
            order = dict(state.get("order") or {})
            held = Held(row["id"], order, row["revision"] + 1, row["created_at"], attempts)
            if self._change(row["id"], row["revision"], _text(order, owner, now + int(hold_s * 1000), attempts)):
                taken.append(held)
        return taken

    def hold(self, held: Held, owner: str, hold_s: float, state: Mapping[str, Any] | None = None) -> Held:
        """Go on holding, with another state if there is one. Raises :class:`LostOrderError`."""
        state = held.state if state is None else state
        with self._database.read() as connection:
            now = self._database.clock(connection)
        if not self._change(held.id, held.fence, _text(state, owner, now + int(hold_s * 1000), held.attempts)):
            raise LostOrderError(f"The order {held.id} belongs to somebody else by now.")
        return Held(held.id, dict(state), held.fence + 1, held.created_at_ms, held.attempts)

    def hand_over(self, held: Held, state: Mapping[str, Any]) -> None:
        """Give back the order of a process that is stopped: free at once, and the attempt does not count.

        One that belongs to somebody else by now is left alone.
        """
        self._change(held.id, held.fence, _text(state, "", 0, held.attempts - 1))

    def done(self, held: Held) -> None:
        """Forget an order that was carried out; that its key was seen stays known."""
        with self._database.write() as connection:
            connection.execute(
                sa.delete(CONVERSATIONS).where(
                    CONVERSATIONS.c.id == held.id,
                    CONVERSATIONS.c.place == WAITING,
                    CONVERSATIONS.c.revision == held.fence,
                )
            )

    def _change(self, identifier: str, revision: int, state: str) -> bool:
        mine = sa.and_(
            CONVERSATIONS.c.id == identifier, CONVERSATIONS.c.place == WAITING, CONVERSATIONS.c.revision == revision
        )
        with self._database.write() as connection:
            values = {"state": state, "revision": revision + 1, "updated_at": self._database.clock(connection)}
            return connection.execute(sa.update(CONVERSATIONS).where(mine).values(**values)).rowcount == 1


def _text(state: Mapping[str, Any], owner: str, until: int, attempts: int) -> str:
    text = to_json({"order": dict(state), "owner": owner, "held_until": until, "attempts": attempts})
    if len(text) > MOST_STATE:
        raise StoreError(f"An order is larger than {MOST_STATE // 2**20} MiB.")
    return text
