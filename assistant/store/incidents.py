"""Incidents with their evidence, the answers people gave and what they thought of the result.

An incident has a revision that grows with every answer; whoever answers says which revision they saw, so two people
who answer the same question do not overwrite each other.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.kept import Kept, as_kept
from assistant.store.schema import ANSWERS, FEEDBACK, INCIDENTS
from assistant.store.texts import from_json, plain_text

#: Characters of JSON that one incident may have, diagnosis and evidence each.
MAX_JSON = 8 * 1024 * 1024
_MAX_WORDS = 20_000
#: Made once: putting a statement together costs as much as carrying it out.
_INSERT = sa.insert(INCIDENTS)

Json = Mapping[str, Any]


class StaleRevisionError(StoreError):
    """Somebody else answered in between. ``current`` is the revision that the incident has now."""

    def __init__(self, incident: str, seen: int, current: int) -> None:
        super().__init__(f"Incident {incident} has revision {current} by now; the answer was meant for {seen}.")
        self.current = current


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered to one question; ``revision`` is the one that this answer led to."""

    revision: int
    question: str
    value: str
    given_by: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Incident:
    """A saved incident. ``diagnosis`` carries its own ``incident`` and ``revision``; times are in milliseconds."""

    id: str
    revision: int
    created_at_ms: int
    updated_at_ms: int
    language: str
    target: str | None
    question: str
    saved_by: str
    diagnosis: dict[str, Any]
    evidence: list[Any]
    answers: tuple[Answer, ...]


def new_incident() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(10)


class Incidents:
    """The incidents of one database. Every method raises :class:`StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(
        self, diagnosis: Json, evidence: Sequence[Any] = (), *, question: str = "", saved_by: str = "unknown"
    ) -> str:
        """Keep a new incident and return its id."""
        incident = new_incident()
        self.put(as_kept(incident, 1, diagnosis, evidence, question=question), saved_by=saved_by)
        return incident

    def put(self, kept: Kept, *, saved_by: str, also: Callable[[sa.Connection], None] | None = None) -> None:
        """Keep the first revision of an incident, and what ``also`` adds: both or neither."""
        values = {**_columns(kept), "id": kept.id, "question": kept.question, "saved_by": plain_text(saved_by, 200)}

        def insert(connection: sa.Connection) -> None:
            now = self._database.clock(connection)
            connection.execute(_INSERT, {**values, "created_at": now, "updated_at": now}).close()
            if also is not None:
                also(connection)

        self._database.together(insert)

    def get(self, incident: str) -> Incident:
        """One incident with its answers; raises :class:`NotFoundError`."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(INCIDENTS).where(INCIDENTS.c.id == incident)).mappings().first()
            if row is None:
                raise NotFoundError(f"There is no incident {incident[:80]!r}.")
            answers = connection.execute(
                sa.select(ANSWERS).where(ANSWERS.c.incident == incident).order_by(ANSWERS.c.revision)
            ).mappings()
            return Incident(
                id=row["id"],
                revision=row["revision"],
                created_at_ms=row["created_at"],
                updated_at_ms=row["updated_at"],
                language=row["language"],
                target=row["target"],
                question=row["question"],
                saved_by=row["saved_by"],
                diagnosis=from_json(row["diagnosis"]),
                evidence=from_json(row["evidence"]),
                answers=tuple(
                    Answer(answer["revision"], answer["question"], answer["value"], answer["given_by"], answer["at"])
                    for answer in answers
                ),
            )

    def revision(self, incident: str) -> int:
        """The revision that an incident has now; raises :class:`NotFoundError`."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(INCIDENTS.c.revision).where(INCIDENTS.c.id == incident)).scalar()
        if found is None:
            raise NotFoundError(f"There is no incident {incident[:80]!r}.")
        return int(found)

    def recent(self, limit: int = 50, *, before: tuple[int, str] | None = None) -> list[dict[str, Any]]:
        """The newest incidents without their evidence: id, time, target, verdict and cause.

        ``before`` is the time and id of the last one of the page before.
        """
        columns = (INCIDENTS.c.id, INCIDENTS.c.created_at, INCIDENTS.c.target, INCIDENTS.c.verdict, INCIDENTS.c.cause)
        statement = sa.select(*columns).order_by(INCIDENTS.c.created_at.desc(), INCIDENTS.c.id).limit(limit)
        if before is not None:
            at, identifier = before
            same = sa.and_(INCIDENTS.c.created_at == at, INCIDENTS.c.id > identifier)
            statement = statement.where(sa.or_(INCIDENTS.c.created_at < at, same))
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def answer(
        self,
        incident: str,
        revision: int,
        question: str,
        value: str,
        *,
        diagnosis: Json,
        evidence: Sequence[Any] = (),
        given_by: str = "unknown",
    ) -> int:
        """Keep an answer to ``revision`` with the diagnosis it led to, and return the new revision.

        Raises :class:`StaleRevisionError` when the incident has moved on and :class:`NotFoundError`.
        """
        values = _columns(as_kept(incident, revision + 1, diagnosis, evidence))
        with self._database.write() as connection:
            now = self._database.clock(connection)
            changed = connection.execute(
                sa.update(INCIDENTS)
                .where(INCIDENTS.c.id == incident, INCIDENTS.c.revision == revision)
                .values(updated_at=now, **values)
            )
            if changed.rowcount == 0:
                current = connection.execute(sa.select(INCIDENTS.c.revision).where(INCIDENTS.c.id == incident)).scalar()
                if current is None:
                    raise NotFoundError(f"There is no incident {incident[:80]!r}.")
                raise StaleRevisionError(incident, revision, current)
            connection.execute(
                sa.insert(ANSWERS).values(
                    incident=incident,
                    revision=revision + 1,
                    question=plain_text(question, 200),
                    value=plain_text(value, _MAX_WORDS),
                    given_by=plain_text(given_by, 200),
                    at=now,
                )
            )
        return revision + 1

    def feedback(
        self,
        incident: str,
        helped: Literal["yes", "partly", "no"],
        *,
        comment: str = "",
        given_by: str = "unknown",
    ) -> None:
        """Keep what somebody thought of the newest diagnosis; raises :class:`NotFoundError`."""
        with self._database.write() as connection:
            revision = connection.execute(sa.select(INCIDENTS.c.revision).where(INCIDENTS.c.id == incident)).scalar()
            if revision is None:
                raise NotFoundError(f"There is no incident {incident[:80]!r}.")
            connection.execute(
                sa.insert(FEEDBACK).values(
                    id=secrets.token_hex(10),
                    incident=incident,
                    revision=revision,
                    helped=helped,
                    comment=plain_text(comment, _MAX_WORDS),
                    given_by=plain_text(given_by, 200),
                    at=self._database.clock(connection),
                )
            )

    def feedback_on(self, incident: str) -> list[dict[str, Any]]:
        """Everything people thought of one incident, oldest first."""
        statement = sa.select(FEEDBACK).where(FEEDBACK.c.incident == incident).order_by(FEEDBACK.c.at, FEEDBACK.c.id)
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]


def _columns(kept: Kept) -> dict[str, Any]:
    for name, text in (("diagnosis", kept.diagnosis), ("evidence", kept.evidence)):
        if len(text) > MAX_JSON:
            raise StoreError(f"The incident's {name} is larger than {MAX_JSON // 2**20} MiB and was not saved.")
    columns = asdict(kept)
    del columns["id"], columns["question"]
    return columns
