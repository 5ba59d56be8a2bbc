"""Who sends an API request, as a dependency of routes: the bearer token, and how often its owner may ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from assistant.faces.http.problems import TooOftenError
from assistant.security.roles import Principal

_SCHEME = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="A token of `vllm-diagnose token create`, or an access token of the configured issuer.",
)


async def sender(request: Request, _: Annotated[object, Security(_SCHEME)]) -> Principal:
    """The principal; raises ``UnauthenticatedError`` and :class:`TooOftenError`."""
    shared = request.app.state.shared
    principal: Principal = await shared.authenticator.who(request.headers.get("authorization"))
    address = request.client.host if request.client else "unknown"
    wait_s = shared.limiter.take(address if principal.id == "anonymous" else principal.id)
    if wait_s is not None:
        raise TooOftenError(wait_s)
    request.state.principal = principal
    return principal


Sender = Annotated[Principal, Depends(sender)]
