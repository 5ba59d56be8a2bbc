"""The Kubernetes API as the launcher needs it: make and delete three objects, watch pods, follow their logs.

Watches and 410 Gone: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes .
Deletion with its dependents: https://kubernetes.io/docs/concepts/architecture/garbage-collection/ .
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from tools.addresses import parse_url
from tools.outbound import Limits, Outbound, OutboundError
from tools.sanity.results import plain
from tools.sources.base import error_text, rows, split_lines, table, text
from tools.sources.kubeconfig import Cluster

_MOST = 32 << 20
_LIMITS = Limits(20.0, max_bytes=_MOST, max_decompressed_bytes=_MOST)
#: Seconds that one watch lasts; then it is begun anew from where it was.
WATCH_S = 60
_GROUPS = {"jobs": "apis/batch/v1", "services": "api/v1", "configmaps": "api/v1", "pods": "api/v1", "events": "api/v1"}


class ApiError(Exception):
    """The API did not do what it was asked. ``status`` is 0 where no answer came."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}" if status else said)
        self.status, self.said = status, said


@dataclass(frozen=True, slots=True)
class Watched:
    """One change: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK`` of an object."""

    kind: str
    object: dict[str, Any]

    @property
    def version(self) -> str:
        """Where a later watch may go on."""
        return text(table(self.object.get("metadata")).get("resourceVersion"))


@dataclass(frozen=True, slots=True)
class Api:
    """One namespace of a cluster. Methods raise :class:`ApiError`."""

    cluster: Cluster
    namespace: str
    outbound: Outbound = field(repr=False)

    async def create(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object and return it as the cluster keeps it."""
        return await self._ask("POST", self._url(kind), body)

    async def delete(self, kind: str, name: str) -> None:
        """Delete an object with what belongs to it; one that is not there is deleted already."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self._ask("DELETE", self._url(kind, name), options)
        except ApiError as error:
            if error.status != 404:
                raise

    async def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        return await self._ask("GET", self._url(kind, name))

    async def list(self, kind: str, **query: str) -> tuple[list[dict[str, Any]], str]:
        """Objects, and the version from which a watch goes on."""
        found = await self._ask("GET", self._url(kind, query={"limit": "1000", **query}))
        return rows(found.get("items")), text(table(found.get("metadata")).get("resourceVersion"))

    async def watch(self, kind: str, version: str, **query: str) -> AsyncGenerator[Watched, None]:
        """Changes since ``version``, for a minute. Raises ``ApiError`` with the status 410 where that is forgotten."""
        asked = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        limits = Limits(WATCH_S + 15.0, max_bytes=_MOST, max_decompressed_bytes=_MOST)
        url = self._url(kind, query={**asked, **query})
        try:
            async with self.outbound.stream(url, headers=self.cluster.headers, limits=limits) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await error_text(answer))
                async for block in split_lines(answer.chunks):
                    for line in block:
                        change = _change(line)
                        if change is not None:
                            yield change
        except OutboundError as error:
            raise ApiError(0, str(error)) from None

    async def follow(self, pod: str, container: str, *, follow: bool, seconds: float) -> AsyncGenerator[bytes, None]:
        """Lines of a pod's log from its beginning; with ``follow`` as they come, until the container has ended."""
        query = {"container": container, **({"follow": "true"} if follow else {})}
        limits = Limits(seconds, max_bytes=_MOST, max_decompressed_bytes=_MOST)
        url = self._url("pods", pod, "log", query)
        try:
            async with self.outbound.stream(url, headers=self.cluster.headers, limits=limits) as answer:
                if answer.status != 200:
                    raise _refused(answer.status, await error_text(answer))
                async for block in split_lines(answer.chunks):
                    for line in block:
                        yield line
        except OutboundError as error:
            raise ApiError(0, str(error)) from None

    def _url(self, kind: str, name: str = "", part: str = "", query: Mapping[str, str] | None = None) -> str:
        path = f"{_GROUPS[kind]}/namespaces/{quote(self.namespace, safe='')}/{kind}"
        path += "".join(f"/{quote(piece, safe='')}" for piece in (name, part) if piece)
        return str(parse_url(self.cluster.address).at(path)) + (f"?{urlencode(query)}" if query else "")

    async def _ask(self, method: Any, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json", **self.cluster.headers}
        try:
            reply = await self.outbound.request(method, url, body=body, headers=headers, limits=_LIMITS)
            if reply.status >= 300:
                raise _refused(reply.status, reply.body)
            return table(reply.json())
        except OutboundError as error:
            raise ApiError(0, str(error)) from None


def _refused(status: int, body: bytes) -> ApiError:
    found = json_status(body)
    said = text(found.get("message"), 600) or " ".join(body[:300].decode("utf-8", "replace").split())
    return ApiError(status, plain(said, 600))


def json_status(body: bytes) -> dict[str, Any]:
    """The Status object that the API answers errors with, or an empty one."""
    try:
        return table(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _change(line: bytes) -> Watched | None:
    found = json_status(line)
    kind, thing = text(found.get("type")), table(found.get("object"))
    if kind == "ERROR":
        code = thing.get("code")
        raise ApiError(code if isinstance(code, int) else 500, plain(text(thing.get("message"))))
    return Watched(kind, thing) if kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") else None
