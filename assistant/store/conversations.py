"""Talks that go on over time: a thread in a chat, a group of alerts. Any replica goes on with any of them.

A conversation has a revision as an incident has: whoever changes it says which one they saw.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.incidents import StaleRevisionError
from assistant.store.schema import CONVERSATIONS
from assistant.store.texts import from_json, plain_text, to_json

#: Characters of JSON that a state may have.
MOST_STATE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Conversation:
    """``place`` is where it is held, in the face's own terms; ``state`` is what the face needs to go on."""

    id: str
    face: str
    place: str
    incident: str | None
    state: dict[str, Any]
    revision: int
    created_at_ms: int
    updated_at_ms: int


class Conversations:
    """The conversations of one database. Methods raise ``StoreError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, face: str, place: str, state: Mapping[str, Any], *, incident: str | None = None) -> Conversation:
        """Keep a new conversation; its id cannot be guessed."""
        identifier = secrets.token_hex(10)
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(
                sa.insert(CONVERSATIONS).values(
                    id=identifier,
                    face=plain_text(face, 40),
                    place=plain_text(place, 400),
                    incident=incident,
                    state=_state(state),
                    revision=1,
                    created_at=now,
                    updated_at=now,
                )
            )
        return Conversation(identifier, face, place, incident, dict(state), 1, now, now)

    def get(self, identifier: str) -> Conversation:
        """One conversation; raises :class:`NotFoundError`."""
        with self._database.read() as connection:
            row = (
                connection.execute(sa.select(CONVERSATIONS).where(CONVERSATIONS.c.id == identifier)).mappings().first()
            )
        if row is None:
            raise NotFoundError(f"There is no conversation {identifier[:80]!r}.")
        return _conversation(row)

    def at(self, face: str, place: str, limit: int = 20) -> list[Conversation]:
        """The conversations held at a place, newest first."""
        return self._find(sa.and_(CONVERSATIONS.c.face == face, CONVERSATIONS.c.place == place), limit)

    def about(self, incident: str, limit: int = 20) -> list[Conversation]:
        """The conversations about an incident, newest first."""
        return self._find(CONVERSATIONS.c.incident == incident, limit)

    def change(
        self,
        identifier: str,
        revision: int,
        state: Mapping[str, Any],
        *,
        incident: str | None = None,
        place: str | None = None,
    ) -> int:
        """Go on from ``revision``; returns the new one. ``incident`` and ``place`` stay as they are when None.

        Raises :class:`StaleRevisionError` when somebody else was faster, and :class:`NotFoundError`.
        """
        values: dict[str, Any] = {"state": _state(state), "revision": revision + 1}
        if incident is not None:
            values["incident"] = incident
        if place is not None:
            values["place"] = plain_text(place, 400)
        with self._database.write() as connection:
            values["updated_at"] = self._database.clock(connection)
            mine = sa.and_(CONVERSATIONS.c.id == identifier, CONVERSATIONS.c.revision == revision)
            if connection.execute(sa.update(CONVERSATIONS).where(mine).values(**values)).rowcount == 0:
                current = connection.execute(
                    sa.select(CONVERSATIONS.c.revision).where(CONVERSATIONS.c.id == identifier)
                ).scalar()
                if current is None:
                    raise NotFoundError(f"There is no conversation {identifier[:80]!r}.")
                raise StaleRevisionError(identifier, revision, current)
        return revision + 1

    def _find(self, where: Any, limit: int) -> list[Conversation]:
        newest = CONVERSATIONS.c.updated_at.desc(), CONVERSATIONS.c.id
        statement = sa.select(CONVERSATIONS).where(where).order_by(*newest).limit(limit)
        with self._database.read() as connection:
            return [_conversation(row) for row in connection.execute(statement).mappings()]


def _state(state: Mapping[str, Any]) -> str:
    text = to_json(dict(state))
    if len(text) > MOST_STATE:
        raise StoreError(f"A conversation's state is larger than {MOST_STATE // 2**20} MiB.")
    return text


def _conversation(row: Mapping[Any, Any]) -> Conversation:
    return Conversation(
        id=row["id"],
        face=row["face"],
        place=row["place"],
        incident=row["incident"],
        state=from_json(row["state"]),
        revision=row["revision"],
        created_at_ms=row["created_at"],
        updated_at_ms=row["updated_at"],
    )
