"""What people said about diagnoses: per cause, as labelled incidents, and beside a new incident of the same cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import FEEDBACK, INCIDENTS
from assistant.store.texts import from_json

Helped = Literal["yes", "partly", "no"]
#: Earlier incidents that are shown beside a new one, and rows that are read at once.
MOST_SEEN, _PAGE = 3, 200
#: Characters of a comment that are shown as the fix that worked.
_MOST_FIX = 300


def _earlier(*more: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The newest incidents of ``:cause``, each once for every judgement and the newest judgement last."""
    newest = (
        sa.select(INCIDENTS.c.id, INCIDENTS.c.created_at, INCIDENTS.c.target)
        .where(INCIDENTS.c.cause == sa.bindparam("cause"), INCIDENTS.c.id != sa.bindparam("besides"), *more)
        .order_by(INCIDENTS.c.created_at.desc(), INCIDENTS.c.id)
        .limit(MOST_SEEN)
        .subquery()
    )
    return (
        sa.select(newest, FEEDBACK.c.helped, FEEDBACK.c.comment)
        .select_from(newest.outerjoin(FEEDBACK, FEEDBACK.c.incident == newest.c.id))
        .order_by(newest.c.created_at.desc(), newest.c.id, FEEDBACK.c.at, FEEDBACK.c.id)
    )


# Made once: they are asked with every diagnosis.
_OF_CAUSE = _earlier()
_OF_CAUSE_AND_TARGET = _earlier(INCIDENTS.c.target == sa.bindparam("target"))


@dataclass(frozen=True, slots=True)
class Seen:
    """An earlier incident with the same cause. ``fix`` is what somebody said to have worked, "" where nobody did."""

    incident: str
    at_ms: int
    target: str | None
    helped: Helped | None
    fix: str

    def to_json(self) -> dict[str, Any]:
        """As a diagnosis shows it in ``seen_before``."""
        from assistant.store.times import moment

        return {
            "incident": self.incident,
            "date": moment(self.at_ms),
            "target": self.target,
            "helped": self.helped,
            "fix": self.fix or None,
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of the diagnoses of one cause ("healthy" and "unknown" stand for those verdicts)."""

    cause: str
    incidents: int
    yes: int
    partly: int
    no: int


class Feedback:
    """The feedback of one database. Methods raise ``StoreError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def seen_before(self, cause: str, target: str | None, *, besides: str = "") -> tuple[Seen, ...]:
        """The newest earlier incidents with this cause: those of the same target, or of any where it is None."""
        statement = _OF_CAUSE if target is None else _OF_CAUSE_AND_TARGET
        with self._database.read() as connection:
            rows = connection.execute(statement, {"cause": cause, "besides": besides, "target": target}).all()
        said = {row.id: row for row in rows}  # of several judgements the newest, which comes last
        return tuple(
            Seen(row.id, row.created_at, row.target, row.helped, _fix(row.helped, row.comment)) for row in said.values()
        )

    def per_cause(self) -> list[Judged]:
        """How often people agreed, for every cause that was found, the most frequent first."""
        counts: dict[str, dict[str, int]] = {}
        for row, said in self._rows():
            label = row["cause"] or row["verdict"]
            found = counts.setdefault(label, {"incidents": 0, "yes": 0, "partly": 0, "no": 0})
            found["incidents"] += 1
            if said is not None:
                found[said["helped"]] += 1
        made = [Judged(cause, **found) for cause, found in counts.items()]
        return sorted(made, key=lambda one: (-one.incidents, one.cause))

    def judged(self) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
        """Every incident that somebody judged (id, verdict, cause, question, evidence), with the newest judgement."""
        for row, said in self._rows(whole=True):
            if said is not None:
                yield {**row, "evidence": from_json(row["evidence"])}, said

    def _rows(self, *, whole: bool = False) -> Iterator[tuple[dict[str, Any], Mapping[str, Any] | None]]:
        columns = [INCIDENTS.c.id, INCIDENTS.c.verdict, INCIDENTS.c.cause]
        if whole:
            columns += [INCIDENTS.c.question, INCIDENTS.c.evidence]
        last = ""
        while True:
            statement = sa.select(*columns).where(INCIDENTS.c.id > last).order_by(INCIDENTS.c.id).limit(_PAGE)
            if whole:
                statement = statement.where(INCIDENTS.c.id.in_(sa.select(FEEDBACK.c.incident)))
            with self._database.read() as connection:
                rows = [dict(row) for row in connection.execute(statement).mappings()]
                said = _newest(connection, [row["id"] for row in rows])
            for row in rows:
                yield row, said.get(row["id"])
            if len(rows) < _PAGE:
                return
            last = rows[-1]["id"]


def _newest(connection: sa.Connection, incidents: list[str]) -> dict[str, Mapping[str, Any]]:
    """What was said last about each of these incidents."""
    if not incidents:
        return {}
    statement = sa.select(FEEDBACK).where(FEEDBACK.c.incident.in_(incidents)).order_by(FEEDBACK.c.at, FEEDBACK.c.id)
    return {row["incident"]: dict(row) for row in connection.execute(statement).mappings()}


def _fix(helped: str | None, comment: str | None) -> str:
    """The comment of somebody who said that it worked, as one line."""
    return "" if helped in (None, "no") else " ".join((comment or "").split())[:_MOST_FIX]
