"""The tables as the code uses them. ``versions/`` makes them; a test holds the two together.

Times are milliseconds since 1970 UTC, by the database's own clock. JSON is kept as text with every non-ASCII character
escaped: it is never searched, and neither NUL characters nor broken surrogates in somebody's log can then stop it from
being saved.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

#: A number that the database counts up. SQLite only does that for its own INTEGER.
Counter = BigInteger().with_variant(Integer(), "sqlite")

META = Table("meta", METADATA, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

INCIDENTS = Table(
    "incidents",
    METADATA,
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
    Index("incidents_by_cause", "cause", "created_at"),
)

ANSWERS = Table(
    "answers",
    METADATA,
    Column("incident", Text, ForeignKey("incidents.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("question", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("given_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("incident", Text, ForeignKey("incidents.id", ondelete="CASCADE"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("helped", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("given_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("feedback_by_incident", "incident"),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("number", Counter, primary_key=True, autoincrement=True),
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

JOB_LOG = Table(
    "job_log",
    METADATA,
    Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("line", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    UniqueConstraint("job", "line", name="job_log_line"),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Counter, primary_key=True, autoincrement=True),
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

TOKENS = Table(
    "tokens",
    METADATA,
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

CLAIMS = Table(
    "claims",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Index("claims_by_end", "until"),
)

CONVERSATIONS = Table(
    "conversations",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("face", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("incident", Text),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("conversations_by_place", "face", "place"),
    Index("conversations_by_incident", "incident"),
    Index("conversations_by_time", "updated_at"),
)
