"""Access tokens of an OAuth 2.1 authorization server, checked as RFC 9068 and RFC 8725 want it.

The algorithm is one of an asymmetric list of ours and never what the token asks for alone; issuer, audience and time
are checked; keys come from the issuer's JWKS through the one way out and are asked for again only when a token names a
key that is not among them, at most every half minute.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from assistant.security.roles import Principal, Role
from assistant.security.tokens import BadTokenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
#: Seconds that clocks may differ.
LEEWAY_S = 30
KEYS_LAST_S = 600.0
ASK_AGAIN_S = 30.0
#: Scopes that carry a role: ``vllm-diagnose:operator``. A token without any of them may look.
SCOPE_PREFIX = "vllm-diagnose:"


class Issuer:
    """One authorization server. ``fetch_keys`` returns its JWKS as plain data and may raise anything.

    ``audience`` is this server as tokens name it, its public URL with ``/mcp`` unless configured otherwise.
    """

    def __init__(self, url: str, audience: str, fetch_keys: Callable[[], Awaitable[Any]]) -> None:
        self.url = url
        self.audience = audience
        self._fetch = fetch_keys
        self._keys: dict[str, Any] = {}
        self._fetched = float("-inf")
        self._lock = asyncio.Lock()

    async def check(self, token: str) -> Principal:
        """Whose token this is; raises :class:`BadTokenError`."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("kid", "")))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self.url,
                audience=self.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (
            jwt.PyJWTError,
            TypeError,
            ValueError,
        ):  # a key of another kind than the token's algorithm is a TypeError
            raise BadTokenError("The token is not valid.") from None
        return _principal(claims)

    async def _key(self, identifier: str) -> Any:
        age = time.monotonic() - self._fetched
        if age > KEYS_LAST_S or (identifier not in self._keys and age > ASK_AGAIN_S):
            async with self._lock:
                if time.monotonic() - self._fetched > ASK_AGAIN_S:
                    await self._refresh()
        try:
            return self._keys[identifier]
        except KeyError:
            raise BadTokenError("The token is not valid.") from None

    async def _refresh(self) -> None:
        """Fetch the keys; an issuer that is away leaves those that are known."""
        import jwt

        self._fetched = time.monotonic()
        try:
            raw = await self._fetch()
            keys = jwt.PyJWKSet.from_dict(raw).keys
        except Exception:  # noqa: BLE001  (whatever the issuer sends, the answer is "not valid" and not a failure)
            return
        self._keys = {str(key.key_id or ""): key for key in keys if key.public_key_use in (None, "sig")}


def _principal(claims: dict[str, Any]) -> Principal:
    given = claims.get("scope", claims.get("scp", ""))
    scopes = given.split() if isinstance(given, str) else [str(scope) for scope in given or ()]
    named = [scope.removeprefix(SCOPE_PREFIX) for scope in scopes if scope.startswith(SCOPE_PREFIX)]
    roles = [Role[name] for name in named if name in Role.__members__]
    name = str(claims.get("name") or claims.get("email") or claims["sub"])[:200]
    return Principal(f"oauth:{claims['sub']}"[:200], name, max(roles, default=Role.viewer))
