"""Who looks at a page: a signed cookie that stands for a sign-in kept in the store, and proofs that a form is ours.

The cookie holds 256 random bits and their HMAC, nothing else. What it stands for is a claim in the store, so every
replica knows it, signing out ends it at once, and it is checked at every request (what was good is remembered for a
few seconds, as bearer tokens are). A session of a token ends with the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assistant.security.authentication import ANONYMOUS, REMEMBER_S, UnauthenticatedError
from assistant.security.limiter import Limiter
from assistant.security.roles import LOCAL, Principal, Role
from assistant.security.tokens import PREFIX, BadTokenError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from assistant.faces.app import Shared

#: Seconds after which somebody signs in again.
SESSION_S = 12 * 3600.0
#: Seconds that a sign-in link for the local user is good for.
TICKET_S = 600.0
_MOST_REMEMBERED = 10_000
#: Attempts to sign in, a minute and address. Tokens cannot be guessed; this keeps the database from being kept busy.
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sent a request. ``principal`` is None for whoever may not even look; ``signed_in`` tells the anonymous apart.

    ``identifier`` is what the cookie holds, new for whoever brought none; forms carry its proof (:meth:`Sessions.proof`).
    """

    principal: Principal | None
    identifier: str
    signed_in: bool
    is_new: bool


class Sessions:
    """The sign-ins of one server. Methods raise ``StoreError``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._keys: bytes | None = None
        self._known: dict[str, tuple[float, Principal | None]] = {}
        self.attempts = Limiter(_ATTEMPTS)

    @property
    def cookie(self) -> str:
        """The cookie's name; with https one that browsers take only from this very host."""
        return "__Host-vllm-diagnose" if self._secure else "vllm-diagnose"

    async def who(self, request: Request) -> Visitor:
        """The visitor behind a request."""
        await self._prepare()
        identifier = self._opened(request.cookies.get(self.cookie, ""))
        if identifier is None:
            identifier = secrets.token_urlsafe(32)
            return Visitor(self._anonymous, identifier, signed_in=False, is_new=True)
        principal = await self._principal(identifier)
        if principal is None:
            return Visitor(self._anonymous, identifier, signed_in=False, is_new=False)
        return Visitor(principal, identifier, signed_in=True, is_new=False)

    async def sign_in(self, token: str) -> str:
        """A new session for whoever holds this token; its identifier. Raises ``UnauthenticatedError``."""
        principal = await self._shared.authenticator.who(f"Bearer {token}")
        if token.startswith(PREFIX):
            return await self._keep({"token": principal.id}, SESSION_S)
        import jwt

        # The authenticator has just checked this token; here only its end is read.
        ends = jwt.decode(token, options={"verify_signature": False}).get("exp", 0)
        left = min(SESSION_S, float(ends) - time.time())
        if left <= 0:
            raise UnauthenticatedError("The token is not valid.", "invalid_token")
        said = {
            "id": principal.id,
            "name": principal.name,
            "role": principal.role.name,
            "scopes": list(principal.scopes),
        }
        return await self._keep({"oauth": said}, left)

    async def ticket(self) -> str:
        """What lets the local user in once, within ten minutes."""
        await self._prepare()
        text = f"{int(time.time() + TICKET_S)}.{secrets.token_urlsafe(24)}"
        return f"{text}.{self._sign('ticket', text)}"

    async def sign_in_with(self, ticket: str) -> str | None:
        """A session of the local user for a ticket that nobody has used; None where it is not good (any more)."""
        await self._prepare()
        text, _, signature = ticket.rpartition(".")
        if not _same(self._sign("ticket", text), signature) or float(text.partition(".")[0]) < time.time():
            return None
        service = self._shared.service
        name = "web-ticket:" + _digest(text)
        if await service.in_thread(lambda: service.claims.take(name, "used", keep_s=2 * TICKET_S)) is not None:
            return None
        return await self._keep({"local": True}, SESSION_S)

    async def sign_out(self, identifier: str) -> None:
        """End a session, in every replica."""
        self._known.pop(identifier, None)
        await self._shared.service.in_thread(self._shared.service.claims.drop, _name(identifier))

    def proof(self, identifier: str) -> str:
        """What every form of this visitor carries; only pages of this server know it."""
        return self._sign("form", identifier)

    def is_ours(self, request: Request, visitor: Visitor, proof: str) -> bool:
        """Whether a form was sent by a page of this server to this visitor."""
        if not _same(self.proof(visitor.identifier), proof):
            return False
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = request.headers.get("origin")
        if origin is None:
            return True  # the proof is there; only very old browsers leave the origin out
        here = request.headers.get("host", "").lower()
        return origin in self._shared.origins or origin.lower() in (f"http://{here}", f"https://{here}")

    def set_cookie(self, response: Response, identifier: str) -> None:
        """Give the visitor the cookie of ``identifier``."""
        response.set_cookie(
            self.cookie,
            f"{identifier}.{self._sign('cookie', identifier)}",
            max_age=int(SESSION_S),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    @property
    def _secure(self) -> bool:
        return self._shared.base_url.startswith("https://")

    @property
    def _anonymous(self) -> Principal | None:
        return ANONYMOUS if self._shared.settings.text("server.anonymous") == "viewer" else None

    async def _prepare(self) -> None:
        if self._keys is None:
            from assistant.security.keys import consent_key

            key = await self._shared.service.in_thread(consent_key, self._shared.service.database)
            self._keys = hmac.new(key, b"web pages", hashlib.sha256).digest()

    def _sign(self, purpose: str, text: str) -> str:
        if self._keys is None:
            raise RuntimeError("the key of the pages was not read yet")
        return hmac.new(self._keys, f"{purpose}:{text}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _opened(self, cookie: str) -> str | None:
        identifier, _, signature = cookie[:400].partition(".")
        return identifier if identifier and _same(self._sign("cookie", identifier), signature) else None

    async def _keep(self, said: dict[str, object], keep_s: float) -> str:
        await self._prepare()
        identifier = secrets.token_urlsafe(32)
        claims = self._shared.service.claims
        await self._shared.service.in_thread(
            lambda: claims.take(_name(identifier), json.dumps(said, sort_keys=True), keep_s=keep_s)
        )
        return identifier

    async def _principal(self, identifier: str) -> Principal | None:
        remembered = self._known.get(identifier)
        if remembered is not None and time.monotonic() < remembered[0]:
            return remembered[1]
        self._known.pop(identifier, None)
        found = await self._shared.service.in_thread(self._look_up, identifier)
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[identifier] = (time.monotonic() + REMEMBER_S, found)  # who signs in gets another identifier
        return found

    def _look_up(self, identifier: str) -> Principal | None:
        service = self._shared.service
        kept = service.claims.get(_name(identifier))
        if kept is None:
            return None
        said = json.loads(kept)
        if "token" in said:
            with contextlib.suppress(BadTokenError):
                return service.tokens.holder(said["token"])
            return None
        if "oauth" in said:
            who = said["oauth"]
            return Principal(who["id"], who["name"], Role.of(who["role"]), tuple(who["scopes"]))
        return LOCAL


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _name(identifier: str) -> str:
    """The claim of a session. The store does not hold what a cookie needs."""
    return "web-session:" + _digest(identifier)
