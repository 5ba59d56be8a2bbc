"""Jobs: work that outlives the request that asked for it, claimed by leases with fencing.

A worker that claims a job gets a lease until a time on the database's clock and extends it while it works. One that
dies stops extending; the job is then ``interrupted``, or queued again if it may be tried more than once. A worker that
was only slow and comes back finds its fence (the number of the attempt) outdated: nothing it writes counts any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.schema import JOB_LOG, JOBS
from assistant.store.texts import from_json, plain_text, to_json

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")

#: Lines that one job may log; what comes later is dropped, the progress text still changes.
MAX_LOG_LINES = 2000
_MAX_LINE = 2000
_MOST_ATTEMPTS = 10
_MAX_ARGUMENTS = _MAX_RESULT = 8 * 1024 * 1024
_SWEEP_LOCK = 855_343_425  # beside the number of the migrations' lock
_INTERRUPTED = "The process that worked on it ended without finishing it."


class LostLeaseError(StoreError):
    """The lease ran out and the job belongs to nobody or to another worker now; stop working on it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when it was read. Times are in milliseconds since 1970, ``progress`` goes from 0.0 to 1.0."""

    id: str
    action: str
    effect: str
    arguments: dict[str, Any]
    consent: dict[str, Any] | None
    incident: str | None
    requested_by: str
    state: State
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    deadline_s: float
    attempts: int
    max_attempts: int
    cancel_wanted: bool
    progress: float | None
    doing: str
    result: Any
    error: str | None

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINISHED


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job: whose it is, and the fence that makes it this attempt and no other."""

    job: Job
    owner: str
    fence: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log; ``line`` counts from 1 over all attempts."""

    line: int
    at_ms: int
    text: str


class Jobs:
    """The jobs of one database. Every method raises :class:`StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(
        self,
        action: str,
        arguments: Mapping[str, Any],
        *,
        effect: str,
        deadline_s: float,
        requested_by: str,
        consent: Mapping[str, Any] | None = None,
        incident: str | None = None,
        key: str | None = None,
        max_attempts: int = 1,
    ) -> Job:
        """Queue a job. With a ``key`` that was used before, the earlier job is returned and nothing is queued.

        ``deadline_s`` counts seconds from the moment somebody starts to work on it. Only what merely ``reads`` may be
        tried more than once, because nobody agreed to a second run of the rest.
        """
        if effect != "reads" and max_attempts != 1:
            raise StoreError(f"A job that {effect} is tried once only.")
        text = to_json(dict(arguments))
        if len(text) > _MAX_ARGUMENTS:
            raise StoreError(f"The arguments of {action} are larger than {_MAX_ARGUMENTS // 2**20} MiB.")
        job = secrets.token_hex(10)
        with self._database.write() as connection:
            if key is not None:
                if self._database.is_postgres:  # two at once: the second waits here and then finds the first's job
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))
                earlier = connection.execute(sa.select(JOBS).where(JOBS.c.key == key)).mappings().first()
                if earlier is not None:
                    return _job(earlier)
            connection.execute(
                sa.insert(JOBS).values(
                    id=job,
                    key=key,
                    action=action,
                    effect=effect,
                    arguments=text,
                    consent=None if consent is None else to_json(dict(consent)),
                    incident=incident,
                    requested_by=plain_text(requested_by, 200),
                    state="queued",
                    created_at=self._database.clock(connection),
                    deadline_s=deadline_s,
                    attempts=0,
                    max_attempts=max_attempts,
                    cancel_wanted=0,
                    doing="",
                )
            )
            return _job(connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).mappings().one())

    def get(self, job: str) -> Job:
        """One job; raises :class:`NotFoundError`."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).mappings().first()
        if row is None:
            raise NotFoundError(f"There is no job {job[:80]!r}.")
        return _job(row)

    def recent(self, limit: int = 50, state: State | None = None) -> list[Job]:
        """The newest jobs first."""
        statement = sa.select(JOBS).order_by(JOBS.c.number.desc()).limit(limit)
        if state is not None:
            statement = statement.where(JOBS.c.state == state)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(statement).mappings()]

    def of_incident(self, incident: str, limit: int = 20) -> list[Job]:
        """The newest jobs that belong to an incident."""
        statement = sa.select(JOBS).where(JOBS.c.incident == incident).order_by(JOBS.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(statement).mappings()]

    def log(self, job: str, after: int = 0, limit: int = 500) -> list[LogLine]:
        """The log lines behind line ``after``."""
        statement = (
            sa.select(JOB_LOG).where(JOB_LOG.c.job == job, JOB_LOG.c.line > after).order_by(JOB_LOG.c.line).limit(limit)
        )
        with self._database.read() as connection:
            return [LogLine(row["line"], row["at"], row["text"]) for row in connection.execute(statement).mappings()]

    def cancel(self, job: str) -> Job:
        """Ask for a job's end: a queued one ends here, a running one when its worker next looks.

        A finished job stays as it is. Raises :class:`NotFoundError`.
        """
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(
                sa.update(JOBS)
                .where(JOBS.c.id == job, JOBS.c.state == "queued")
                .values(state="cancelled", cancel_wanted=1, finished_at=now)
            )
            connection.execute(
                sa.update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "running").values(cancel_wanted=1)
            )
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).mappings().first()
        if row is None:
            raise NotFoundError(f"There is no job {job[:80]!r}.")
        return _job(row)

    def remove(self, job: str) -> bool:
        """Forget a job that is finished, with its log; False where it is not finished or not there."""
        finished = sa.and_(JOBS.c.id == job, JOBS.c.state.in_(FINISHED))
        with self._database.write() as connection:
            return connection.execute(sa.delete(JOBS).where(finished)).rowcount == 1

    def claim(self, owner: str, lease_s: float) -> Lease | None:
        """Take the oldest queued job for ``lease_s`` seconds, or None. No two callers get the same attempt."""
        self.give_up_the_dead()
        oldest = sa.select(JOBS.c.number).where(JOBS.c.state == "queued").order_by(JOBS.c.number).limit(1)
        if self._database.is_postgres:
            oldest = oldest.with_for_update(skip_locked=True)
        with self._database.write() as connection:
            now = self._database.clock(connection)
            row = (
                connection.execute(
                    sa.update(JOBS)
                    .where(JOBS.c.number == oldest.scalar_subquery(), JOBS.c.state == "queued")
                    .values(
                        state="running",
                        owner=owner,
                        started_at=now,
                        lease_until=now + int(lease_s * 1000),
                        attempts=JOBS.c.attempts + 1,
                        progress=None,
                        doing="",
                    )
                    .returning(*JOBS.c)
                )
                .mappings()
                .first()
            )
        return None if row is None else Lease(_job(row), owner, row["attempts"])

    def waiting(self) -> dict[str, int]:
        """How many jobs are queued and running."""
        statement = (
            sa.select(JOBS.c.state, sa.func.count())
            .where(JOBS.c.state.in_(("queued", "running")))
            .group_by(JOBS.c.state)
        )
        with self._database.read() as connection:
            return {"queued": 0, "running": 0} | {row[0]: row[1] for row in connection.execute(statement)}

    def hand_over(self, lease: Lease, error: str) -> None:
        """End the attempt of a process that is stopped: what only reads is queued for another, the rest interrupted.

        Being stopped in good order takes no attempt away; ten of them are enough for any job. Raises
        :class:`LostLeaseError`.
        """
        again = lease.job.effect == "reads" and lease.fence < _MOST_ATTEMPTS
        values: dict[str, Any] = {"owner": None, "lease_until": None}
        with self._database.write() as connection:
            if again:
                values |= {"state": "queued", "max_attempts": max(lease.job.max_attempts, lease.fence + 1)}
            else:
                now = self._database.clock(connection)
                values |= {"state": "interrupted", "error": plain_text(error, _MAX_LINE), "finished_at": now}
            held = _held(sa.update(JOBS), lease).values(**values)
            row = connection.execute(held.returning(JOBS.c.cancel_wanted)).first()
            if _still(row, lease)[0] and again:
                connection.execute(
                    sa.update(JOBS)
                    .where(JOBS.c.id == lease.job.id, JOBS.c.state == "queued")
                    .values(state="cancelled", finished_at=self._database.clock(connection))
                )

    def give_up_the_dead(self) -> int:
        """End every job whose lease ran out, or queue it again where that is allowed; returns how many."""
        with self._database.read() as connection:  # nearly always none, and then nobody waits for a lock
            overdue = connection.execute(self._overdue(sa.select(JOBS.c.number)).limit(1)).first()
        if overdue is None:
            return 0
        with self._database.write() as connection:
            if self._database.is_postgres:  # two that do this at once could lock each other's rows crosswise
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SWEEP_LOCK)))
            now = self._database.clock(connection)
            again = connection.execute(
                self._overdue(sa.update(JOBS))
                .where(JOBS.c.attempts < JOBS.c.max_attempts, JOBS.c.cancel_wanted == 0)
                .values(state="queued", owner=None, lease_until=None)
            ).rowcount
            over = connection.execute(
                self._overdue(sa.update(JOBS)).values(
                    state=sa.case((JOBS.c.cancel_wanted == 1, "cancelled"), else_="interrupted"),
                    owner=None,
                    lease_until=None,
                    finished_at=now,
                    error=_INTERRUPTED,
                )
            ).rowcount
        return again + over

    def extend(self, lease: Lease, lease_s: float) -> bool:
        """Extend the lease to ``lease_s`` seconds from now; True when somebody asked for the job's end.

        Raises :class:`LostLeaseError`.
        """
        with self._database.write() as connection:
            until = self._database.clock(connection) + int(lease_s * 1000)
            row = connection.execute(
                _held(sa.update(JOBS), lease).values(lease_until=until).returning(JOBS.c.cancel_wanted)
            ).first()
        return bool(_still(row, lease)[0])

    def report(self, lease: Lease, fraction: float | None, text: str) -> None:
        """Show progress and add ``text`` to the log if it says anything. Raises :class:`LostLeaseError`."""
        line = plain_text(text, _MAX_LINE)
        with self._database.write() as connection:
            values: dict[str, Any] = {"doing": line} if line else {}
            if fraction is not None:
                values["progress"] = min(max(fraction, 0.0), 1.0)
            held = _held(sa.update(JOBS), lease).values(**(values or {"owner": lease.owner}))
            _still(connection.execute(held.returning(JOBS.c.number)).first(), lease)
            if not line:
                return
            last = sa.select(sa.func.coalesce(sa.func.max(JOB_LOG.c.line), 0)).where(JOB_LOG.c.job == lease.job.id)
            number = int(connection.execute(last).scalar_one()) + 1
            if number <= MAX_LOG_LINES:
                now = self._database.clock(connection)
                connection.execute(sa.insert(JOB_LOG).values(job=lease.job.id, line=number, at=now, text=line))

    def finish(
        self,
        lease: Lease,
        state: Literal["done", "failed", "cancelled", "interrupted"],
        *,
        result: Any = None,
        error: str | None = None,
    ) -> None:
        """End the job. Raises :class:`LostLeaseError`, and then nothing was written."""
        text = None if result is None else to_json(result)
        if text is not None and len(text) > _MAX_RESULT:
            state, text = "failed", None
            error = f"The result is larger than {_MAX_RESULT // 2**20} MiB."
        with self._database.write() as connection:
            values: dict[str, Any] = {
                "state": state,
                "result": text,
                "error": None if error is None else plain_text(error, _MAX_LINE),
                "finished_at": self._database.clock(connection),
                "owner": None,
                "lease_until": None,
            }
            if state == "done":
                values["progress"] = 1.0
            held = _held(sa.update(JOBS), lease).values(**values)
            _still(connection.execute(held.returning(JOBS.c.number)).first(), lease)

    def _overdue(self, statement: Any) -> Any:
        return statement.where(JOBS.c.state == "running", JOBS.c.lease_until < self._database.now_ms)


def _held(statement: sa.Update, lease: Lease) -> sa.Update:
    return statement.where(
        JOBS.c.id == lease.job.id,
        JOBS.c.state == "running",
        JOBS.c.owner == lease.owner,
        JOBS.c.attempts == lease.fence,
    )


def _still(row: Any, lease: Lease) -> Any:
    if row is None:
        raise LostLeaseError(f"Job {lease.job.id} no longer belongs to {lease.owner}.")
    return row


def _job(row: Mapping[Any, Any]) -> Job:
    return Job(
        id=row["id"],
        action=row["action"],
        effect=row["effect"],
        arguments=from_json(row["arguments"]),
        consent=from_json(row["consent"]),
        incident=row["incident"],
        requested_by=row["requested_by"],
        state=row["state"],
        created_at_ms=row["created_at"],
        started_at_ms=row["started_at"],
        finished_at_ms=row["finished_at"],
        deadline_s=row["deadline_s"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        cancel_wanted=bool(row["cancel_wanted"]),
        progress=row["progress"],
        doing=row["doing"],
        result=from_json(row["result"]),
        error=row["error"],
    )
