"""Signing in with a token, or with the link that `serve` prints on its terminal; and signing out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from assistant.faces.web.visit import PageError, own_path
from assistant.security.authentication import UnauthenticatedError

if TYPE_CHECKING:
    from assistant.faces.web.visit import Visit


async def form(visit: Visit) -> Response:
    """Where a token is entered, or the link's ticket confirmed: a link that is merely opened signs nobody in."""
    return _form(visit)


async def sign_in(visit: Visit) -> Response:
    """Check the token or ticket and begin a session."""
    request = visit.request
    address = request.client.host if request.client else "unknown"
    wait_s = await visit.sessions.attempts.take(address)
    if wait_s is not None:
        raise PageError(429, visit.word("web-error-often", seconds=wait_s))
    ticket = visit.field("ticket", 400)
    if ticket:
        identifier = await visit.sessions.sign_in_with(ticket)
        if identifier is None:
            return _form(visit, visit.word("web-error-ticket"), 401)
    else:
        try:
            identifier = await visit.sessions.sign_in(visit.field("token", 8192))
        except UnauthenticatedError:
            return _form(visit, visit.word("web-error-token"), 401)
    if visit.visitor.signed_in:
        await visit.sessions.sign_out(visit.visitor.identifier)
    response = visit.to(own_path(visit.field("next", 1000)))
    visit.sessions.set_cookie(response, identifier)
    return response


async def sign_out(visit: Visit) -> Response:
    """End the session everywhere."""
    await visit.sessions.sign_out(visit.visitor.identifier)
    response = visit.to("/login")
    response.delete_cookie(visit.sessions.cookie, path="/")
    return response


def _form(visit: Visit, problem: str = "", status: int = 200) -> Response:
    ticket = "" if problem else visit.field("ticket", 400)
    return visit.page(
        "login.html",
        status=status,
        title=visit.word("web-sign-in"),
        problem=problem,
        ticket=ticket,
        next=own_path(visit.field("next", 1000)),
    )
