"""The only module that opens a connection to a target.

A request passes these gates, in order: the URL is read strictly, its server must be allowed, the host is resolved,
every address it resolves to must be permitted, and the connection is opened to one of exactly those addresses, so a
name that changes its answer between check and use gains nothing. TLS and the Host header keep the name. Redirects
stay on the same host and pass all gates again. Everything ends at one deadline and at a size limit, compressed and
decompressed. Neither proxies, certificates nor credentials are taken from the environment.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from tools.addresses import AddressError, Allowance, Policy, Url, parse_url
from tools.pinned import (
    OutboundError,
    PinnedBackend,
    Resolver,
    because,
    check_socket,
    system_resolver,
    tls_context,
)
from tools.wire import PIECE_BYTES, Decoder, Form, request_headers, without_credentials

if TYPE_CHECKING:
    import httpcore

__all__ = [
    "PIECE_BYTES",
    "AddressError",
    "Allowance",
    "Form",
    "Limits",
    "Outbound",
    "OutboundError",
    "Policy",
    "Reached",
    "Reply",
    "Resolver",
    "Streamed",
    "parse_url",
    "system_resolver",
]

MAX_REDIRECTS = 3
#: What is called with each piece of a body that need not be kept as a whole.
Take = Callable[[bytes], object]
#: What may be asked for on a Unix socket: Docker's Engine API, to look. Nothing there is ever changed.
_SOCKET_PATHS = re.compile(
    r"/(?:v\d+\.\d+/)?(?:version|info|events|containers/(?:json|[\w.-]+/(?:json|logs)))(?:\?.*)?"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes that one request may take.

    ``deadline_s`` covers everything from the first look-up to the last byte; ``connect_s`` one attempt to connect.
    ``cut`` returns what arrived when a size limit is met, marked as truncated, instead of raising.
    """

    deadline_s: float = 10.0
    connect_s: float = 3.0
    max_bytes: int = 64 * 1024 * 1024
    max_decompressed_bytes: int = 128 * 1024 * 1024
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered. ``address`` is the one that was connected to, or the proxy's word for it."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    address: str
    truncated: bool = False

    @property
    def text(self) -> str:
        """The body as UTF-8; what is not UTF-8 becomes a replacement character."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON; raises :class:`OutboundError` when it is not."""
        try:
            return jsonlib.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise OutboundError("protocol", f"{self.url} did not answer with JSON: {error}.") from None


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose body is still coming: ``chunks`` yields it, unpacked, and raises :class:`OutboundError`.

    ``chunks`` ends at the request's limits: at ``max_decompressed_bytes`` with an error of the kind "size", at the
    deadline with one of the kind "timeout".
    """

    url: str
    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection that was opened and closed again: which address took it, of how many, and the seconds it took."""

    address: str
    addresses: tuple[str, ...]
    resolve_s: float
    connect_s: float


class Outbound:
    """Speaks HTTP to the servers of one :class:`Policy`. Use it as an async context manager.

    ``resolve`` replaces the system's name look-up, for tests.
    """

    def __init__(self, policy: Policy, *, limits: Limits | None = None, resolve: Resolver = system_resolver) -> None:
        self._policy = policy
        self._limits = limits or Limits()
        self._resolve = resolve
        self._pools: dict[str | None, httpcore.AsyncConnectionPool] = {}
        self._connected: dict[tuple[str, int], str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        take: Take | None = None,
    ) -> Reply:
        """GET ``url``. Any status is a reply; raises :class:`OutboundError` when there is none.

        With ``take`` the body of a 200 is handed over piece by piece (at most :data:`PIECE_BYTES` each) instead of
        being kept, so that a large page costs no memory; the reply's own body is empty then.
        """
        return await self.request("GET", url, headers=headers, limits=limits, take=take)

    @asynccontextmanager
    async def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        socket: str | None = None,
    ) -> AsyncIterator[Streamed]:
        """GET ``url`` and hand its body on as it comes, in bounded memory. Redirects are answers here.

        With ``socket`` the request goes to the Unix socket of that path, if the policy names it, and may only look at
        containers (Docker's Engine API); the host of ``url`` is then a mere name. Raises :class:`OutboundError`.
        """
        limits = limits or self._limits
        where = self._parse(url)
        pool = self._pool(self._permit(where)) if socket is None else self._socket_pool(socket, where)
        sent, _ = request_headers(where, None, headers or {})
        progress = _Progress()
        extensions = progress.extensions(limits)
        try:
            async with asyncio.timeout(limits.deadline_s) as clock, AsyncExitStack() as stack:
                try:
                    opened = pool.stream("GET", _core_url(where), headers=sent, extensions=extensions)
                    response = await stack.enter_async_context(opened)
                except _broken_kinds() as error:
                    raise _broken(where, error, limits, progress) from None
                progress.answered = True
                received = _headers_of(response)
                decode = Decoder(str(where), received.get("content-encoding", ""))
                chunks = _unpacked(where, response.aiter_stream(), decode, limits, progress)
                yield Streamed(str(where), response.status, received, chunks)
        except TimeoutError:
            if not clock.expired():
                raise  # of whoever reads the chunks
            raise progress.late(str(where), limits.deadline_s) from None

    async def post(
        self, url: str, body: object, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Reply:
        """POST ``body`` as JSON. Raises :class:`OutboundError`."""
        return await self.request("POST", url, body=body, headers=headers, limits=limits)

    async def request(
        self,
        method: Literal["GET", "HEAD", "POST", "PATCH", "DELETE"],
        url: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        take: Take | None = None,
    ) -> Reply:
        """One request with its redirects. Raises :class:`OutboundError`; cancellation closes the connection."""
        limits = limits or self._limits
        started = time.monotonic()
        where = self._parse(url)
        progress = _Progress()
        try:
            async with asyncio.timeout(limits.deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    reply = await self._once(method, where, body, headers or {}, limits, progress, started, take)
                    target = reply.headers.get("location")
                    if (
                        reply.status not in (301, 302, 303, 307, 308)
                        or target is None
                        or method in ("POST", "PATCH", "DELETE")
                    ):
                        return reply
                    where, before = self._redirected(where, target), where
                    if (where.scheme, where.port) != (before.scheme, before.port):
                        headers = without_credentials(headers or {})
                raise OutboundError("redirect", f"{url} redirects more than {MAX_REDIRECTS} times.")
        except TimeoutError:
            raise progress.late(str(where), limits.deadline_s) from None

    async def reach(self, url: str, *, limits: Limits | None = None) -> Reached:
        """Open a TCP connection to the server of ``url`` itself, past any proxy, and close it again.

        Raises :class:`OutboundError`.
        """
        limits = limits or self._limits
        where = self._parse(url)
        backend = self._backend(self._permit(where))
        import httpcore

        try:
            async with asyncio.timeout(limits.deadline_s):
                started = time.monotonic()
                addresses = await backend.checked_addresses(where.host, where.port)
                resolved = time.monotonic()
                stream, address = await backend.connect_any(where.host, addresses, where.port, limits.connect_s)
                connected = time.monotonic()
                await stream.aclose()
        except (httpcore.ConnectTimeout, TimeoutError):
            raise OutboundError("timeout", f"{where} took no connection within {limits.connect_s:g} s.") from None
        except httpcore.ConnectError as error:
            raise _connect_error(where, error) from None
        return Reached(address, tuple(map(str, addresses)), resolved - started, connected - resolved)

    def _parse(self, url: str) -> Url:
        try:
            return parse_url(url)
        except AddressError as error:
            raise OutboundError("refused", str(error)) from None

    def _permit(self, where: Url) -> Allowance:
        try:
            return self._policy.permit(where)
        except AddressError as error:
            raise OutboundError("refused", str(error)) from None

    def _redirected(self, where: Url, target: str) -> Url:
        """The URL that ``Location: target`` means, if it stays on the same host and does not leave TLS."""
        if target.startswith("/") and not target.startswith("//"):
            target = f"{where.scheme}://{where.authority}{target}"
        elif target.startswith("//"):
            target = f"{where.scheme}:{target}"
        elif "://" not in target and ":" not in target.split("/", 1)[0]:
            base = where.path.split("?", 1)[0].rsplit("/", 1)[0]
            target = f"{where.scheme}://{where.authority}{base}/{target}"
        to = self._parse(target)
        if to.host != where.host or (where.scheme == "https" and to.scheme != "https"):
            raise OutboundError(
                "redirect", f"{where} redirects to {to.scheme}://{to.authority}, another server; that is not followed."
            )
        return to

    async def _once(
        self,
        method: str,
        where: Url,
        body: object,
        headers: Mapping[str, str],
        limits: Limits,
        progress: _Progress,
        started: float,
        take: Take | None,
    ) -> Reply:
        allowance = self._permit(where)
        sent, content = request_headers(where, body, headers)
        parts: list[bytes] = []
        truncated = False
        try:
            async with self._pool(allowance).stream(
                method,
                _core_url(where),
                headers=sent,
                content=content,
                extensions=progress.extensions(limits),
            ) as response:
                progress.answered = True
                received = _headers_of(response)
                decode = Decoder(str(where), received.get("content-encoding", ""))
                keep = take if take is not None and response.status == 200 else parts.append
                async for chunk in response.aiter_stream():
                    progress.raw += len(chunk)
                    limit = limits.max_bytes if progress.raw > limits.max_bytes else 0
                    for piece in decode(chunk):
                        room = limits.max_decompressed_bytes - progress.size
                        progress.size += len(piece)
                        keep(piece[: max(room, 0)])
                        if len(piece) > room:
                            limit = limits.max_decompressed_bytes
                            break
                    if limit and not limits.cut:
                        raise OutboundError("size", f"{where} answered with more than {limit} bytes.")
                    if limit:
                        truncated = True
                        break
                address = self._connected.get((where.host, where.port), where.host)
                return Reply(
                    str(where),
                    response.status,
                    received,
                    b"".join(parts),
                    time.monotonic() - started,
                    address,
                    truncated,
                )
        except _broken_kinds() as error:
            raise _broken(where, error, limits, progress) from None

    def _pool(self, allowance: Allowance) -> httpcore.AsyncConnectionPool:
        import httpcore

        ca_file = allowance.ca_file or self._policy.ca_file
        # Private permission is per server, so servers do not share a pool unless they share all of it.
        identity = hash((allowance.ca_data, allowance.client_cert))
        key = f"{allowance.private}|{ca_file}|{identity}|{allowance.host}|{allowance.port}"
        if key not in self._pools:
            secure = allowance.scheme == "https"
            self._pools[key] = httpcore.AsyncConnectionPool(
                ssl_context=tls_context(ca_file, allowance.ca_data, allowance.client_cert) if secure else None,
                network_backend=cast("httpcore.AsyncNetworkBackend", self._backend(allowance)),
                max_connections=8,
                keepalive_expiry=30.0,
            )
        return self._pools[key]

    def _socket_pool(self, path: str, where: Url) -> httpcore.AsyncConnectionPool:
        import httpcore

        try:
            self._policy.permit_socket(path)
        except AddressError as error:
            raise OutboundError("refused", str(error)) from None
        if where.scheme != "http" or not _SOCKET_PATHS.fullmatch(where.path):
            raise OutboundError("refused", f"{where.path[:200]} is not asked for on a Unix socket.")
        check_socket(path)
        key = f"unix:{path}"
        if key not in self._pools:
            self._pools[key] = httpcore.AsyncConnectionPool(uds=path, max_connections=4)
        return self._pools[key]

    def _backend(self, allowance: Allowance) -> PinnedBackend:
        return PinnedBackend(self._policy, allowance, self._resolve, self._connected)


def _broken_kinds() -> tuple[type[Exception], ...]:
    """What httpcore raises; asked for late, so that it is imported with the first request only."""
    import httpcore

    return (
        httpcore.NetworkError,
        httpcore.TimeoutException,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
        ValueError,
    )


def _broken(where: Url, error: Exception, limits: Limits, progress: _Progress) -> OutboundError:
    """The sentence for what httpcore raised."""
    import httpcore

    if isinstance(error, httpcore.ConnectTimeout) and progress.connected:  # httpcore counts the handshake as connecting
        sentence = f"{where} took the connection, but did not begin to speak TLS within {limits.connect_s:g} s."
        return OutboundError("timeout", sentence, connected=True)
    if isinstance(error, (httpcore.ConnectTimeout, httpcore.PoolTimeout)):
        return OutboundError("timeout", f"{where} took no connection within {limits.connect_s:g} s.")
    if isinstance(error, httpcore.ConnectError):
        return _connect_error(where, error)
    if isinstance(error, (httpcore.ProtocolError, httpcore.UnsupportedProtocol, ValueError)):
        return OutboundError("protocol", f"{where} does not speak HTTP as expected: {error}.")
    return OutboundError("connect", f"{where} broke the connection off{because(error)}.")


def _core_url(where: Url) -> httpcore.URL:
    import httpcore

    return httpcore.URL(
        scheme=where.scheme.encode(), host=where.host.encode(), port=where.port, target=where.path.encode()
    )


def _headers_of(response: httpcore.Response) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}


async def _unpacked(
    where: Url,
    raw: AsyncIterator[bytes],
    decode: Decoder,
    limits: Limits,
    progress: _Progress,
) -> AsyncIterator[bytes]:
    try:
        async for chunk in raw:
            progress.raw += len(chunk)
            limit = limits.max_bytes if progress.raw > limits.max_bytes else 0
            for piece in decode(chunk):
                room = limits.max_decompressed_bytes - progress.size
                progress.size += len(piece)
                if piece[: max(room, 0)]:
                    yield piece[: max(room, 0)]
                if len(piece) > room:
                    limit = limits.max_decompressed_bytes
                    break
            if limit:
                raise OutboundError("size", f"{where} answered with more than {limit} bytes.")
        decode.finish()
    except _broken_kinds() as error:
        raise _broken(where, error, limits, progress) from None


class _Progress:
    """How far a request came, for the sentence that says it came too late."""

    def __init__(self) -> None:
        self.connected = False
        self.answered = False
        self.raw = 0
        self.size = 0

    def extensions(self, limits: Limits) -> dict[str, Any]:
        """What httpcore is asked for beside the request itself: its time limits, and word of each step."""
        return {"timeout": {"connect": limits.connect_s, "pool": limits.deadline_s}, "trace": self._trace}

    async def _trace(self, step: str, _: object) -> None:
        # A connection that is used again opens none; there the request is sent at once.
        if step in ("connection.connect_tcp.complete", "http11.send_request_headers.started"):
            self.connected = True

    def late(self, where: str, deadline_s: float) -> OutboundError:
        if self.answered:
            sentence = f"{where} had sent {self.raw} bytes after {deadline_s:g} s and was not finished."
        elif self.connected:
            sentence = f"{where} took the connection and did not answer within {deadline_s:g} s."
        else:
            sentence = f"{where} did not answer within {deadline_s:g} s."
        return OutboundError("timeout", sentence, connected=self.connected)


def _connect_error(where: Url, error: Exception) -> OutboundError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None and not isinstance(error.args[0] if error.args else None, ssl.SSLError):
        return OutboundError("connect", f"{where.scheme}://{where.authority} refuses connections{because(error)}.")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return OutboundError(
            "tls",
            f"The certificate of {where.authority} is not trusted: {cause.verify_message}; "
            "if it comes from an authority of your own, name its CA file in the settings.",
        )
    return OutboundError("tls", f"{where.authority} does not speak TLS as expected{because(error)}.")
