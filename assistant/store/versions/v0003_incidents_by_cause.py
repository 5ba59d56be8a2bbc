"""Earlier incidents of the same cause are looked up with every diagnosis, however rare the cause and old the store."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Index, MetaData, Table, Text

_INCIDENTS = Table("incidents", MetaData(), Column("cause", Text), Column("created_at", BigInteger))
_BY_CAUSE = Index("incidents_by_cause", _INCIDENTS.c.cause, _INCIDENTS.c.created_at)


def upgrade(connection: Connection) -> None:
    """Make the index."""
    _BY_CAUSE.create(connection)
