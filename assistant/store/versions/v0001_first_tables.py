"""The first tables. A migration is never changed once released; what comes later is a new file beside it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

_TABLES = MetaData()

_COUNTER = BigInteger().with_variant(Integer(), "sqlite")

Table("meta", _TABLES, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

Table(
    "incidents",
    _TABLES,
    Column("id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("language", Text, nullable=False),
    Column("target", Text),
    Column("verdict", Text, nullable=False),
    Column("cause", Text),
    Column("question", Text, nullable=False),
    Column("saved_by", Text, nullable=False),
    Column("diagnosis", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Index("incidents_by_time", "created_at"),
)

Table(
    "answers",
    _TABLES,
    Column("incident", Text, ForeignKey("incidents.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("question", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("given_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

Table(
    "feedback",
    _TABLES,
    Column("id", Text, primary_key=True),
    Column("incident", Text, ForeignKey("incidents.id", ondelete="CASCADE"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("helped", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("given_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("feedback_by_incident", "incident"),
)

Table(
    "jobs",
    _TABLES,
    Column("number", _COUNTER, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("key", Text, unique=True),
    Column("action", Text, nullable=False),
    Column("effect", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("consent", Text),
    Column("incident", Text),
    Column("requested_by", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("deadline_s", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("owner", Text),
    Column("lease_until", BigInteger),
    Column("cancel_wanted", Integer, nullable=False),
    Column("progress", Double),
    Column("doing", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Index("jobs_by_state", "state", "number"),
    Index("jobs_by_end", "finished_at"),
)

Table(
    "job_log",
    _TABLES,
    Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("line", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    UniqueConstraint("job", "line", name="job_log_line"),
)

Table(
    "audit",
    _TABLES,
    Column("number", _COUNTER, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("face", Text, nullable=False),
    Column("did", Text, nullable=False),
    Column("effect", Text, nullable=False),
    Column("target", Text),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("audit_by_time", "at"),
)

Table(
    "tokens",
    _TABLES,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)


def upgrade(connection: Connection) -> None:
    """Make all tables."""
    _TABLES.create_all(connection)
