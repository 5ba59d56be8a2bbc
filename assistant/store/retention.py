"""What is old enough goes, in small transactions so that nobody waits for it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from assistant.settings import Settings
from assistant.store.database import Database
from assistant.store.jobs import FINISHED
from assistant.store.schema import AUDIT, CLAIMS, CONVERSATIONS, INCIDENTS, JOBS

_BATCH = 200
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went; answers, feedback and job logs went with what they belong to."""

    incidents: int
    jobs: int
    audit: int


def prune(database: Database, settings: Settings) -> Pruned:
    """Remove what is older than the settings keep it; 0 days keeps it for ever. Raises ``StoreError``.

    A job that is not finished stays, however old it is; an incident counts from its last answer.
    """
    _remove_over(database)
    _remove(database, CONVERSATIONS.c.id, CONVERSATIONS.c.updated_at, settings.whole("store.keep_incidents_days"))
    finished = JOBS.c.state.in_(FINISHED)
    return Pruned(
        incidents=_remove(
            database, INCIDENTS.c.id, INCIDENTS.c.updated_at, settings.whole("store.keep_incidents_days")
        ),
        jobs=_remove(database, JOBS.c.number, JOBS.c.finished_at, settings.whole("store.keep_jobs_days"), finished),
        audit=_remove(database, AUDIT.c.number, AUDIT.c.at, settings.whole("store.keep_audit_days")),
    )


def _remove_over(database: Database) -> None:
    """Claims whose time is over, whatever the settings keep."""
    with database.write() as connection:
        connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.until <= database.clock(connection)))


def _remove(
    database: Database,
    key: sa.Column[str] | sa.Column[int],
    at: sa.Column[int],
    days: int,
    *conditions: sa.ColumnElement[bool],
) -> int:
    if days == 0:
        return 0
    removed = 0
    while True:
        with database.write() as connection:
            before = database.clock(connection) - days * _DAY_MS
            old = sa.select(key).where(at < before, *conditions).limit(_BATCH)
            count = connection.execute(sa.delete(key.table).where(key.in_(old))).rowcount
        removed += count
        if count < _BATCH:
            return removed
