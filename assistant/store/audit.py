"""Who did what, when, from where, and how it ended. Lines are added and read, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict, Unpack

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import AUDIT
from assistant.store.texts import from_json, plain_text, to_json
from tools.redaction import redact

_MAX_DETAIL = 10_000
Outcome = Literal["allowed", "refused", "done", "failed"]


class Line(TypedDict, total=False):
    """What a line is made of, as :meth:`Audit.line` takes it."""

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

    def note(self, **fields: Unpack[Line]) -> None:
        """Add one line; secrets in ``target`` and ``detail`` are removed."""
        line = self.line(**fields)
        self._database.together(lambda connection: connection.execute(line).close())

    def line(
        self,
        *,
        who: str,
        role: str,
        face: str,
        did: str,
        effect: str = "reads",
        target: str | None = None,
        outcome: Outcome,
        detail: Mapping[str, Any] | None = None,
    ) -> sa.Insert:
        """What adds the line in somebody's transaction; secrets in ``target`` and ``detail`` are removed."""
        return sa.insert(AUDIT).values(
            at=self._database.now_ms,
            who=plain_text(who, 200),
            role=role,
            face=face,
            did=plain_text(did, 200),
            effect=effect,
            target=None if target is None else plain_text(redact(target), 2000),
            outcome=outcome,
            detail=_detail(detail or {}),
        )

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
