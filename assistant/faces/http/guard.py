"""What every request passes before it reaches a face: host, size, an id, and headers that every answer carries.

Plain ASGI, because a middleware that builds requests and responses of its own would hold streams back.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: W3C Trace Context, level 1: version, trace, parent and flags; all zeros name nothing.
_TRACE = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,80}")
#: Asked by probes, whose Host header is the pod's address.
_ANY_HOST = ("/healthz", "/readyz", "/metrics")


class TooLargeError(HTTPException):
    """The body is larger than the server takes; whatever reads it lets this one through to the error handlers."""

    def __init__(self, most: int) -> None:
        text = f"A request may bring {most} bytes at most; send less at once."
        super().__init__(413, text, {"Connection": "close"})  # or the rest of it would be read and thrown away


class TooSlowError(HTTPException):
    """The body did not come to its end in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(408, f"The request was not complete after {seconds:g} s.", {"Connection": "close"})


class Guard:
    """Refuses foreign hosts (421) and large bodies (413) and gives every request an id, echoed as ``X-Request-Id``."""

    def __init__(
        self, app: Application, *, hosts: tuple[str, ...], max_body_bytes: int, receive_s: float = 120.0
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._max = max_body_bytes
        self._receive_s = receive_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identifier = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = identifier.decode()

        trace = headers.get(b"traceparent", b"")
        trace = trace if _TRACE.fullmatch(trace) else b""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], *_added(message["headers"], identifier, trace)]
            await send(message)

        if scope["path"] not in _ANY_HOST and not self._known(headers.get(b"host", b"")):
            await _refuse(answer, 421, "This server is not known by that name.", "Add it to server.allowed_hosts.")
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._max:
            await _refuse(answer, 413, f"A request may bring {self._max} bytes at most.", "Send less at once.")
            return
        taken, whole = 0, False
        loop = asyncio.get_running_loop()
        until = loop.time() + self._receive_s

        async def measured() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is only that the client goes away, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise TooSlowError(self._receive_s) from None
            if message["type"] == "http.request":
                whole = not message.get("more_body", False)
                taken += len(message.get("body", b""))
                if taken > self._max:
                    raise TooLargeError(self._max)
            return message

        await self._app(scope, measured, answer)

    def _known(self, host: bytes) -> bool:
        text = host.decode("latin-1").lower()
        name = text[: text.rfind(":")] if re.search(r":\d{1,5}$", text) else text
        return name in self._hosts or "*" in self._hosts


def _added(present: list[tuple[bytes, bytes]], identifier: bytes, trace: bytes) -> list[tuple[bytes, bytes]]:
    names = {name.lower() for name, _ in present}
    wanted = (
        (b"x-request-id", identifier),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
        *(((b"traceparent", trace),) if trace else ()),
    )
    return [(name, value) for name, value in wanted if name not in names]


async def _refuse(send: Send, status: int, title: str, detail: str) -> None:
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))  # what was not read must not be taken for the next request
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
