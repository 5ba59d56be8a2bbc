"""Bearer tokens: made and revoked by command, known to the database only by their digest.

A token is 32 random bytes behind a recognisable prefix. Its digest is plain SHA-256: slow password hashes defend
guessable secrets, and nobody guesses 256 random bits; a slow hash would only make every request slow. The digest is
looked up by index, which reveals nothing useful by its timing (an attacker cannot choose digests), and compared once
more in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from assistant.security.roles import Principal, Role
from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.schema import TOKENS
from assistant.store.texts import from_json, to_json

PREFIX = "vdg_"
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,80}")
_SCOPE = re.compile(r"[a-z][a-z0-9_]*\*?|\*")


class BadTokenError(Exception):
    """The token is unknown, revoked or expired; the message does not say which to whoever sent it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept, without itself. Times are in milliseconds since 1970."""

    id: str
    name: str
    role: Role
    scopes: tuple[str, ...]
    created_at_ms: int
    created_by: str
    expires_at_ms: int | None
    revoked_at_ms: int | None

    def state(self, now_ms: int) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at_ms is not None:
            return "revoked"
        return "expired" if self.expires_at_ms is not None and self.expires_at_ms <= now_ms else "active"


class Tokens:
    """The tokens of one database. Methods raise :class:`StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        role: Role,
        *,
        scopes: Sequence[str] = (),
        expires_in_days: float | None = None,
        created_by: str = "local",
    ) -> tuple[str, Token]:
        """Make a token; its text is returned here and never again."""
        if not _NAME.fullmatch(name):
            raise StoreError("A token's name has 1 to 80 printable characters.")
        for scope in scopes:
            if not _SCOPE.fullmatch(scope):
                raise StoreError(f"{scope!r} is not a scope; write an action's name, or its beginning with a star.")
        text = PREFIX + secrets.token_urlsafe(32)
        identifier = secrets.token_hex(6)
        with self._database.write() as connection:
            now = self._database.clock(connection)
            expires = None if expires_in_days is None else now + int(expires_in_days * 86_400_000)
            connection.execute(
                sa.insert(TOKENS).values(
                    id=identifier,
                    name=name,
                    digest=_digest(text),
                    role=role.name,
                    scopes=to_json(list(scopes)),
                    created_at=now,
                    created_by=created_by,
                    expires_at=expires,
                )
            )
        return text, Token(identifier, name, role, tuple(scopes), now, created_by, expires, None)

    def check(self, text: str) -> Principal:
        """Who sends this token; raises :class:`BadTokenError`."""
        digest = _digest(text) if text.startswith(PREFIX) and len(text) <= 200 else ""
        with self._database.read() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.digest == digest)).mappings().first()
            now = self._database.clock(connection)
        if row is None or not hmac.compare_digest(row["digest"], digest) or _token(row).state(now) != "active":
            raise BadTokenError("The token is not valid.")
        token = _token(row)
        return Principal(token.id, token.name, token.role, token.scopes)

    def holder(self, identifier: str) -> Principal:
        """Whose token ``identifier`` is, for a session that was begun with it; raises :class:`BadTokenError`."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == identifier)).mappings().first()
            now = self._database.clock(connection)
        if row is None or _token(row).state(now) != "active":
            raise BadTokenError("The token is not valid.")
        token = _token(row)
        return Principal(token.id, token.name, token.role, token.scopes)

    def revoke(self, identifier: str) -> Token:
        """Make a token worthless at once; raises :class:`NotFoundError`. Revoking twice is no error."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(
                sa.update(TOKENS).where(TOKENS.c.id == identifier, TOKENS.c.revoked_at.is_(None)).values(revoked_at=now)
            )
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == identifier)).mappings().first()
        if row is None:
            raise NotFoundError(f"There is no token {identifier[:80]!r}; `token list` shows them.")
        return _token(row)

    def all(self) -> list[tuple[Token, str]]:
        """Every token with its state, oldest first."""
        statement = sa.select(TOKENS).order_by(TOKENS.c.created_at, TOKENS.c.id)
        with self._database.read() as connection:
            now = self._database.clock(connection)
            tokens = [_token(row) for row in connection.execute(statement).mappings()]
        return [(token, token.state(now)) for token in tokens]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: sa.RowMapping) -> Token:
    return Token(
        row["id"],
        row["name"],
        Role[row["role"]],
        tuple(from_json(row["scopes"])),
        row["created_at"],
        row["created_by"],
        row["expires_at"],
        row["revoked_at"],
    )
