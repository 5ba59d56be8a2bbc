"""Who calls `/mcp`: a bearer token, checked before anything of the protocol is read (RFC 6750, RFC 9728)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from assistant.security.authentication import UnauthenticatedError

if TYPE_CHECKING:
    from starlette.requests import Request

    from assistant.faces.app import Shared

METADATA = "/.well-known/oauth-protected-resource/mcp"
_Application = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Bearer:
    """Leaves the caller in the request's state, or answers 401, 429 or 503."""

    def __init__(self, app: _Application, shared: Shared) -> None:
        self._app = app
        self._shared = shared

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """One request, as ASGI wants it."""
        from assistant.faces.http.problems import TooOftenError
        from assistant.store.database import StoreError

        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"authorization")
        try:
            header = None if given is None else given.decode("latin-1")
            principal = await self._shared.admit(header, _address(scope))
        except UnauthenticatedError as error:
            await _answer(401, str(error), {"WWW-Authenticate": error.challenge(self._shared.url(METADATA))})(
                scope, receive, send
            )
            return
        except TooOftenError as error:
            later = {"Retry-After": str(error.wait_s)}
            await _answer(429, "Too many requests; wait and send them again.", later)(scope, receive, send)
            return
        except StoreError as error:
            await _answer(503, str(error), {"Retry-After": "5"})(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        # Whose session this is, where sessions are kept: another sender's request for it then finds none.
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=principal.id, scopes=[]))
        await self._app(scope, receive, send)


def _address(scope: MutableMapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _answer(status: int, sentence: str, headers: dict[str, str]) -> Response:
    return JSONResponse(
        {"type": "about:blank", "title": sentence, "status": status},
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


def metadata_route(shared: Shared) -> Route:
    """What an OAuth client reads to learn which authorization server's tokens are taken here."""

    async def metadata(_: Request) -> Response:
        body: dict[str, Any] = {
            "resource": shared.url("/mcp"),
            "resource_name": "vllm-diagnose",
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["vllm-diagnose:viewer", "vllm-diagnose:operator", "vllm-diagnose:admin"],
        }
        if issuer := shared.settings.text("auth.issuer"):
            body["authorization_servers"] = [issuer]
        return JSONResponse(body, headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=3600"})

    return Route(METADATA, endpoint=metadata, include_in_schema=False)
