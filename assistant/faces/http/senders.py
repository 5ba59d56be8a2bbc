"""Who sends an API request, as a dependency of routes: the bearer token, and how often its owner may ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from assistant.security.roles import Principal

_SCHEME = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="A token of `vllm-diagnose token create`, or an access token of the configured issuer.",
)


async def sender(request: Request, _: Annotated[object, Security(_SCHEME)]) -> Principal:
    """The principal; raises ``UnauthenticatedError`` and ``TooOftenError``."""
    address = request.client.host if request.client else "unknown"
    principal: Principal = await request.app.state.shared.admit(request.headers.get("authorization"), address)
    request.state.principal = principal
    return principal


Sender = Annotated[Principal, Depends(sender)]
