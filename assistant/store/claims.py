"""What must happen once although it is asked for again: retried requests, delivered events, alerts that repeat.

Whoever comes first under a key holds it; everybody after that is told so, in every replica, until the time is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import CLAIMS
from assistant.store.texts import plain_text

_MOST_KEY = 600
_MOST_VALUE = 1024 * 1024
#: Keys of one statement; SQLite takes 999 at least.
_BATCH = 500


class Claims:
    """The claims of one database. Methods raise ``StoreError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, key: str, value: str = "", *, keep_s: float) -> str | None:
        """None when this call is the first under ``key``; otherwise the value that stands there.

        A claim is forgotten ``keep_s`` seconds after it was taken. Two that come at once: exactly one gets None.
        """
        name = plain_text(key, _MOST_KEY)
        insert = sa.text(
            "INSERT INTO claims (key, value, at, until) VALUES (:key, :value, :at, :until) ON CONFLICT DO NOTHING"
        )
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.key == name, CLAIMS.c.until <= now))
            row = {"key": name, "value": plain_text(value, _MOST_VALUE), "at": now, "until": now + int(keep_s * 1000)}
            if connection.execute(insert, row).rowcount == 1:
                return None
            return str(connection.execute(sa.select(CLAIMS.c.value).where(CLAIMS.c.key == name)).scalar_one())

    def take_many(self, keys: Sequence[str], value: str, *, keep_s: float) -> dict[str, str]:
        """Take each of ``keys`` that is free, in one transaction; returns the value that stands under each then.

        A key that somebody holds keeps its value. With 1,000 keys this is one write and not 1,000.
        """
        names = {key: plain_text(key, _MOST_KEY) for key in keys}
        kept = plain_text(value, _MOST_VALUE)
        insert = sa.text(
            "INSERT INTO claims (key, value, at, until) VALUES (:key, :value, :at, :until) ON CONFLICT DO NOTHING"
        )
        wanted = sorted(set(names.values()))  # in one order everywhere, so that two that come at once do not deadlock
        found: dict[str, str] = {}
        with self._database.write() as connection:
            now = self._database.clock(connection)
            for start in range(0, len(wanted), _BATCH):
                part = wanted[start : start + _BATCH]
                connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.key.in_(part), CLAIMS.c.until <= now))
                until = now + int(keep_s * 1000)
                connection.execute(insert, [{"key": name, "value": kept, "at": now, "until": until} for name in part])
                rows = connection.execute(sa.select(CLAIMS.c.key, CLAIMS.c.value).where(CLAIMS.c.key.in_(part)))
                found.update((str(key), str(held)) for key, held in rows)
        return {key: found[name] for key, name in names.items()}

    def get_many(self, keys: Sequence[str]) -> dict[str, str]:
        """The values of those of ``keys`` under which a claim stands."""
        names = {plain_text(key, _MOST_KEY): key for key in keys}
        found: dict[str, str] = {}
        with self._database.read() as connection:
            now = self._database.clock(connection)
            wanted = sorted(names)
            for start in range(0, len(wanted), _BATCH):
                part = wanted[start : start + _BATCH]
                rows = connection.execute(
                    sa.select(CLAIMS.c.key, CLAIMS.c.value).where(CLAIMS.c.key.in_(part), CLAIMS.c.until > now)
                )
                found.update((names[str(key)], str(value)) for key, value in rows)
        return found

    def get(self, key: str) -> str | None:
        """The value under ``key``, None where there is no claim (any more)."""
        name = plain_text(key, _MOST_KEY)
        with self._database.read() as connection:
            now = self._database.clock(connection)
            value = connection.execute(
                sa.select(CLAIMS.c.value).where(CLAIMS.c.key == name, CLAIMS.c.until > now)
            ).scalar()
        return None if value is None else str(value)

    def put(self, key: str, value: str, *, keep_s: float | None = None) -> bool:
        """Change the value of a claim that stands, and keep it ``keep_s`` seconds from now; False where there is none."""
        statement = sa.update(CLAIMS).where(CLAIMS.c.key == plain_text(key, _MOST_KEY))
        values: dict[str, object] = {"value": plain_text(value, _MOST_VALUE)}
        with self._database.write() as connection:
            if keep_s is not None:
                values["until"] = self._database.clock(connection) + int(keep_s * 1000)
            return connection.execute(statement.values(**values)).rowcount == 1

    def drop(self, key: str) -> None:
        """Give a claim up, so that the next one may try."""
        with self._database.write() as connection:
            connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.key == plain_text(key, _MOST_KEY)))
