"""What must happen once, and talks that any replica goes on with."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Index, Integer, MetaData, Table, Text

_TABLES = MetaData()

Table(
    "claims",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Index("claims_by_end", "until"),
)

Table(
    "conversations",
    _TABLES,
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


def upgrade(connection: Connection) -> None:
    """Make both tables."""
    _TABLES.create_all(connection)
