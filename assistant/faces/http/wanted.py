"""Work for a request as long as somebody waits for the answer: a client that hangs up ends what it asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

#: As nginx calls it: the client closed the connection. Nobody reads it but the server's own figures.
GONE = 499
Result = TypeVar("Result")


async def while_wanted(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What ``work`` returns or raises; it is cancelled when the client hangs up.

    The request's body must have been read. Raises ``HTTPException`` with :data:`GONE` where the client went first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hangs_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(GONE, "The client went before the answer was there.")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)


async def _hangs_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
