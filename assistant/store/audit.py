"""Who did what, when, from where, and how it ended. Lines are added and read, never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Required, TypedDict, Unpack

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import AUDIT
from assistant.store.texts import from_json, plain_text, to_json
from tools.redaction import redact

_MAX_DETAIL = 10_000
Outcome = Literal["allowed", "refused", "done", "failed"]


class Line(TypedDict, total=False):
    """What a line is made of, as :meth:`Audit.note` takes it."""

    who: Required[str]
    role: Required[str]
    face: Required[str]
    did: Required[str]
    effect: str
    target: str | None
    outcome: Required[Outcome]
    detail: Mapping[str, Any] | None


class Audit:
    """The audit lines of one database. Methods raise ``StoreError``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = sa.insert(AUDIT).values(at=database.now_ms)

    def note(self, **fields: Unpack[Line]) -> None:
        """Add one line; secrets in ``target`` and ``detail`` are removed."""
        self._database.together(self.adding(**fields))

    def adding(self, **fields: Unpack[Line]) -> Callable[[sa.Connection], None]:
        """What adds the line in somebody's transaction; secrets in ``target`` and ``detail`` are removed."""
        target = fields.get("target")
        row = {
            "who": plain_text(fields["who"], 200),
            "role": fields["role"],
            "face": fields["face"],
            "did": plain_text(fields["did"], 200),
            "effect": fields.get("effect", "reads"),
            "target": None if target is None else plain_text(redact(target), 2000),
            "outcome": fields["outcome"],
            "detail": _detail(fields.get("detail") or {}),
        }

        def add(connection: sa.Connection) -> None:
            connection.execute(self._insert, row).close()

        return add

    def recent(self, limit: int = 100, who: str | None = None) -> list[dict[str, Any]]:
        """The newest lines first."""
        statement = sa.select(AUDIT).order_by(AUDIT.c.number.desc()).limit(limit)
        if who is not None:
            statement = statement.where(AUDIT.c.who == who)
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings()
            return [{**row, "detail": from_json(row["detail"])} for row in rows]


def _detail(value: Mapping[str, Any]) -> str:
    """The detail as JSON without secrets; what is larger than a note should be leaves only its size."""
    plain = {key: _plain(part) for key, part in value.items()}
    text = to_json(plain)
    if len(text) > _MAX_DETAIL:
        text = to_json({key: f"({len(to_json(part))} characters)" for key, part in list(plain.items())[:50]})
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value[:_MAX_DETAIL])
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
