"""The key that consents are signed with: made once and kept in the database, so all replicas share it."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from assistant.store.database import Database
from assistant.store.schema import META

_NAME = "consent_key"


def consent_key(database: Database) -> bytes:
    """32 random bytes, the same at every call and in every process. Raises ``StoreError``."""
    wanted = sa.select(META.c.value).where(META.c.key == _NAME)
    with database.read() as connection:
        value = connection.execute(wanted).scalar()
    if value is None:
        # Both databases know this clause; of two processes that begin together one wins and both read its key.
        insert = sa.text("INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT DO NOTHING")
        with database.write() as connection:
            connection.execute(insert, {"key": _NAME, "value": secrets.token_hex(32)})
            value = connection.execute(wanted).scalar_one()
    return bytes.fromhex(value)
