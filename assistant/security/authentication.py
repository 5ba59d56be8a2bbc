"""Who sends a request: the one reading of ``Authorization`` for the HTTP API, MCP and pages.

Two kinds of bearer token are known: those that ``vllm-diagnose token create`` makes, and, where an issuer is
configured, JSON Web Tokens of an OAuth 2.1 authorization server for which this server is a resource (RFC 9068, 9728).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from assistant.security.roles import Principal, Role
from assistant.security.tokens import PREFIX, BadTokenError, Tokens

if TYPE_CHECKING:
    from assistant.security.oauth import Issuer

#: Seconds for which a token that was good is not looked up again; a revoked one ends so much later at most.
REMEMBER_S = 5.0
_MOST_REMEMBERED = 10_000

ANONYMOUS = Principal("anonymous", "anonymous", Role.viewer)


class UnauthenticatedError(Exception):
    """Nobody is known by what was sent. ``code`` is the error of RFC 6750, empty where no token was sent at all."""

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code

    def challenge(self, metadata_url: str = "") -> str:
        """The value of ``WWW-Authenticate``."""
        parts = ['realm="vllm-diagnose"']
        if self.code:
            parts += [f'error="{self.code}"', f'error_description="{self}"']
        if metadata_url:
            parts.append(f'resource_metadata="{metadata_url}"')
        return "Bearer " + ", ".join(parts)


class Authenticator:
    """Turns an ``Authorization`` header into a principal. ``anonymous`` lets whoever sends no token look."""

    def __init__(self, tokens: Tokens, *, anonymous: bool = False, issuer: Issuer | None = None) -> None:
        self._tokens = tokens
        self._anonymous = anonymous
        self._issuer = issuer
        self._known: dict[str, tuple[float, Principal]] = {}

    async def who(self, header: str | None) -> Principal:
        """The sender; raises :class:`UnauthenticatedError` and ``StoreError``."""
        if header is None or not header.strip():
            if self._anonymous:
                return ANONYMOUS
            raise UnauthenticatedError("Send a bearer token; `vllm-diagnose token create` makes one.")
        scheme, _, token = header.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > 8192 or not token.isascii():
            raise UnauthenticatedError("The Authorization header must be Bearer and a token.", "invalid_request")
        remembered = self._known.get(token)
        if remembered is not None and time.monotonic() < remembered[0]:
            return remembered[1]
        principal = await self._check(token)
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[token] = (time.monotonic() + REMEMBER_S, principal)
        return principal

    async def _check(self, token: str) -> Principal:
        try:
            if token.startswith(PREFIX) or self._issuer is None:
                return await asyncio.to_thread(self._tokens.check, token)
            return await self._issuer.check(token)
        except BadTokenError:
            self._known.pop(token, None)
            raise UnauthenticatedError("The token is not valid.", "invalid_token") from None
