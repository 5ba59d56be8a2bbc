"""Through which door a call came in: who calls, what they may bring, and where the service is."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from assistant.readers import InProcess
from assistant.running import opened
from assistant.security.roles import LOCAL, Principal
from assistant.service import Service

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from assistant.faces.app import Shared
    from assistant.settings import Settings


class Door(Protocol):
    """What tools need to know of the transport. ``local`` means the caller is this machine's own user."""

    local: bool

    async def service(self) -> Service:
        """The running service."""
        ...

    def principal(self, context: Context[Any, Any]) -> Principal:
        """Who calls."""
        ...


class HttpDoor:
    """Calls through the server: the bearer check has left the caller in the request's state."""

    local = False

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def service(self) -> Service:
        """The server's own service."""
        return self._shared.service

    def principal(self, context: Context[Any, Any]) -> Principal:
        """The sender of the HTTP request."""
        request = context.request_context.request
        found = getattr(getattr(request, "state", None), "principal", None)
        if not isinstance(found, Principal):
            raise RuntimeError("a request reached a tool without having passed the bearer check")
        return found


class LocalDoor:
    """Calls over stdio: the client started this process, so it is the machine's own user.

    The service is opened at the first call that needs it, so that listing tools costs no database. Where nothing can
    be kept (a read-only home, a full disk) incidents live in a temporary folder and end with the process.
    """

    local = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._lock = asyncio.Lock()
        self._service: Service | None = None

    async def service(self) -> Service:
        """This process's service; raises ``StoreError`` when nothing at all can be written."""
        async with self._lock:
            if self._service is None:
                self._service = await self._open()
            return self._service

    def principal(self, context: Context[Any, Any]) -> Principal:
        """Always the local user."""
        return LOCAL

    async def close(self) -> None:
        """End the service and what works for it."""
        await self._stack.aclose()

    async def _open(self) -> Service:
        import tempfile

        from assistant.store.database import StoreError

        deadline_s = self._settings.number("deadline_s")
        try:
            return await self._stack.enter_async_context(opened(self._settings, readers=InProcess(deadline_s)))
        except StoreError:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-diagnose-"))
            values = dict(self._settings.values)
            values["store.url"] = replace(values["store.url"], value=f"sqlite:///{folder}/incidents.db")
            elsewhere = replace(self._settings, values=values)
            return await self._stack.enter_async_context(opened(elsewhere, readers=InProcess(deadline_s)))
