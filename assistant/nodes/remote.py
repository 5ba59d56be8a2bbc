"""A node's tools from afar: the same actions with the same results, over MCP (protocol 2026-07-28) through the way out.

One call is one POST: that protocol has no handshake and no session. The SDK's client would bring its own HTTP stack and
with it connections that nobody checked; so the message is written here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assistant import __version__
from tools import registry
from tools.outbound import Limits, Outbound, OutboundError
from tools.redaction import clean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from assistant.store.audit import Outcome

PROTOCOL = "2026-07-28"
#: Seconds that one look at a job waits on the node, and that a job may stand in the queue before the node is busy.
_WAIT_S, _QUEUE_S = 8.0, 6.0
_MOST_BYTES = 16 << 20
_KEYS = "io.modelcontextprotocol/"


#: Writes one call down: the tool, its effect, the node, how it ended, and the arguments. It may block on a database.
Note = Callable[[str, str, str, "Outcome", Mapping[str, Any]], None]


def unnoted(did: str, effect: str, target: str, outcome: Outcome, detail: Mapping[str, Any]) -> None:
    """For calls that nobody has to answer for."""


class RemoteError(Exception):
    """A node did not do what it was asked. ``kind`` is ``unreachable``, ``refused``, ``busy`` or ``failed``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its name, where its tool server answers, and the credential for it as headers."""

    name: str
    address: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class RemoteTools:
    """The actions of one node. ``outbound`` decides what may be connected to; ``note`` writes every call down.

    No reading call takes longer than ``most_s`` seconds, so that one silent node leaves time to show the others.
    """

    def __init__(self, node: Node, outbound: Outbound, note: Note = unnoted, *, most_s: float = 30.0) -> None:
        self.node = node
        self._outbound = outbound
        self._note = note
        self._most_s = most_s
        self._number = 0

    @contextlib.asynccontextmanager
    async def _noted(self, name: str, arguments: Mapping[str, Any]) -> AsyncIterator[None]:
        outcome: Outcome = "failed"
        try:
            yield
            outcome = "done"
        except RemoteError as error:
            outcome = "refused" if error.kind == "refused" else "failed"
            raise
        finally:
            if self._note is not unnoted:
                effect = registry.get(name).effect
                await asyncio.to_thread(self._note, name, effect, self.node.name, outcome, arguments)

    async def call(self, name: str, arguments: Mapping[str, Any], *, deadline_s: float = 30.0) -> BaseModel:
        """A ``reads`` action on the node; raises :class:`RemoteError`."""
        async with self._noted(name, arguments):
            body = await self._tool(name, arguments, min(deadline_s, self._most_s))
            return self._read(name, body)

    async def run(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        deadline_s: float,
        on_progress: Callable[[str], None] = lambda doing: None,
    ) -> BaseModel:
        """An action that touches the node, to which a person has agreed here: confirmed there, then waited for.

        The node's own operator role and confirmation hold besides. Cancelling this cancels the job there. Raises
        :class:`RemoteError`, of the kind ``busy`` when the node works on something else.
        """
        async with self._noted(name, arguments):
            return await self._run(name, arguments, deadline_s, on_progress)

    async def _run(
        self, name: str, arguments: Mapping[str, Any], deadline_s: float, on_progress: Callable[[str], None]
    ) -> BaseModel:
        asked = await self._tool(name, arguments, 20.0)
        if "confirm" not in asked:
            raise RemoteError("failed", f"{self.node.name} did not ask to confirm {name}.")
        job = await self._tool(name, {**arguments, "confirm": asked["confirm"]}, 20.0)
        identifier = str(job.get("job", ""))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        missed = 0
        finished = False
        try:
            while job.get("state") in ("queued", "running"):
                if loop.time() - begun > deadline_s:
                    raise RemoteError("failed", f"{name} on {self.node.name} did not end within {deadline_s:g} s.")
                if job["state"] == "queued" and loop.time() - begun > _QUEUE_S:
                    raise RemoteError("busy", f"{self.node.name} works on another test; wait until that is over.")
                on_progress(clean(str(job.get("doing") or ""))[:120])
                try:
                    job = await self._tool("get_job", {"job": identifier, "wait_s": min(_WAIT_S, 2.0)}, _WAIT_S + 10)
                    missed = 0
                except RemoteError as error:
                    missed += 1
                    if error.kind != "unreachable" or missed > 2:
                        raise
                    await asyncio.sleep(0.5)
            finished = True
        finally:
            if not finished:
                with contextlib.suppress(RemoteError):
                    await asyncio.shield(self._tool("get_job", {"job": identifier, "cancel": True, "wait_s": 0}, 5.0))
        if job.get("state") != "done" or not isinstance(job.get("result"), dict):
            raise RemoteError("failed", clean(str(job.get("error") or f"{name} ended as {job.get('state')}"))[:500])
        return self._read(name, job["result"])

    def _read(self, name: str, body: Mapping[str, Any]) -> BaseModel:
        from pydantic import ValidationError

        try:
            return registry.get(name).output_model.model_validate(body)
        except ValidationError as error:
            problem = str(error).splitlines()[0]
            raise RemoteError("failed", f"{self.node.name} answers in another form than this version knows: {problem}") from None  # fmt: skip

    async def _tool(self, name: str, arguments: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        self._number += 1
        message = {
            "jsonrpc": "2.0",
            "id": self._number,
            "method": "tools/call",
            "params": {
                "name": name,
                "arguments": dict(arguments),
                "_meta": {
                    _KEYS + "protocolVersion": PROTOCOL,
                    _KEYS + "clientInfo": {"name": "vllm-diagnose", "version": __version__},
                    _KEYS + "clientCapabilities": {},
                },
            },
        }
        headers = {
            **self.node.headers,
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": PROTOCOL,
            "Mcp-Method": "tools/call",
            "Mcp-Name": name,
        }
        limits = Limits(deadline_s=deadline_s, connect_s=3.0, max_bytes=_MOST_BYTES, max_decompressed_bytes=_MOST_BYTES)
        try:
            reply = await self._outbound.post(self.node.address, message, headers=headers, limits=limits)
            if reply.status in (401, 403):
                raise RemoteError("refused", f"{self.node.name} does not take the token (status {reply.status}); make one there with vllm-diagnose token create.")  # fmt: skip
            if reply.status == 404:
                raise RemoteError("refused", f"{self.node.address} is no tool server of vllm-diagnose (status 404).")
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                answer = _last_event(reply.text)
            else:
                answer = reply.json()
        except OutboundError as error:
            raise RemoteError("unreachable", f"{self.node.name}: {error}") from None
        return self._result(name, answer, reply.status)

    def _result(self, name: str, answer: Any, status: int) -> dict[str, Any]:
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), dict):
            error = answer.get("error") if isinstance(answer, dict) else None
            said = error.get("message") if isinstance(error, dict) else None
            title = answer.get("title") if isinstance(answer, dict) else None
            raise RemoteError("refused", f"{self.node.name} refuses {name}: {clean(str(said or title or f'status {status}'))[:300]}")  # fmt: skip
        result = answer["result"]
        if result.get("isError"):
            texts = [str(part.get("text", "")) for part in result.get("content", ()) if isinstance(part, dict)]
            raise RemoteError("failed", f"{self.node.name}: {clean(' '.join(texts))[:500]}")
        body = result.get("structuredContent")
        if not isinstance(body, dict):
            raise RemoteError("failed", f"{self.node.name} answered {name} without data.")
        return body


def _last_event(text: str) -> Any:
    """The last message of a server-sent answer; those before it are progress."""
    found: Any = None
    for block in text.replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].lstrip() for line in block.split("\n") if line.startswith("data:"))
        with contextlib.suppress(ValueError):
            found = json.loads(data) if data else found
    return found
