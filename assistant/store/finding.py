"""Finding saved incidents again: by words, target, cause and time, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import INCIDENTS

#: Characters of the question that a list shows.
SHOWN = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for; whatever is empty does not matter. Times are milliseconds since 1970, ``until_ms`` exclusive.

    ``text`` stands in the question, the target, the cause's id, or is the beginning of the incident's id;
    ``titles`` are ids of causes whose titles hold the text, which the store does not know.
    """

    text: str = ""
    titles: Sequence[str] = ()
    target: str = ""
    cause: str = ""
    verdict: str = ""
    since_ms: int | None = None
    until_ms: int | None = None


def find(
    database: Database, wanted: Wanted, limit: int, *, before: tuple[int, str] | None = None
) -> list[dict[str, Any]]:
    """The newest incidents that fit, without their evidence. ``before`` is time and id of the page before's last.

    Raises ``StoreError``.
    """
    columns = (
        INCIDENTS.c.id,
        INCIDENTS.c.created_at,
        INCIDENTS.c.target,
        INCIDENTS.c.verdict,
        INCIDENTS.c.cause,
        INCIDENTS.c.revision,
        sa.func.substr(INCIDENTS.c.question, 1, SHOWN).label("question"),
    )
    statement = sa.select(*columns).where(*_conditions(wanted))
    if before is not None:
        at, identifier = before
        same = sa.and_(INCIDENTS.c.created_at == at, INCIDENTS.c.id > identifier)
        statement = statement.where(sa.or_(INCIDENTS.c.created_at < at, same))
    statement = statement.order_by(INCIDENTS.c.created_at.desc(), INCIDENTS.c.id).limit(limit)
    with database.read() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.text:
        held = [
            column.ilike(f"%{_literal(wanted.text)}%", escape="\\")
            for column in (INCIDENTS.c.question, INCIDENTS.c.target, INCIDENTS.c.cause)
        ]
        held.append(INCIDENTS.c.id.like(f"{_literal(wanted.text.lower())}%", escape="\\"))
        if wanted.titles:
            held.append(INCIDENTS.c.cause.in_(list(wanted.titles)))
        found.append(sa.or_(*held))
    for column, value in ((INCIDENTS.c.target, wanted.target), (INCIDENTS.c.verdict, wanted.verdict)):
        if value:
            found.append(column == value)
    if wanted.cause:  # a whole area, or one cause
        exactly = INCIDENTS.c.cause == wanted.cause
        found.append(sa.or_(exactly, INCIDENTS.c.cause.like(f"{_literal(wanted.cause)}/%", escape="\\")))
    if wanted.since_ms is not None:
        found.append(INCIDENTS.c.created_at >= wanted.since_ms)
    if wanted.until_ms is not None:
        found.append(INCIDENTS.c.created_at < wanted.until_ms)
    return found


def _literal(text: str) -> str:
    """The text with what LIKE would read as a wildcard taken literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
