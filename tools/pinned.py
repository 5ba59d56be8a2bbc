"""How a connection is opened for ``tools/outbound.py``, and by nothing else: to addresses that were checked.

A name is resolved once per connection, all its addresses are judged, and one of exactly those is connected to. With a
proxy the tunnel is asked for that address as well, so the proxy does not look the name up a second time.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tools.addresses import AddressError, Allowance, IPAddress, Policy, Url, literal, parse_url

if TYPE_CHECKING:
    import httpcore

ErrorKind = Literal["refused", "name", "connect", "timeout", "tls", "proxy", "protocol", "size", "redirect"]
Resolver = Callable[[str, int], Awaitable[list[str]]]


#: A host with more addresses than this is not tried further; every one of them is checked all the same.
MAX_TRIED_ADDRESSES = 4
_PROXY_ANSWER_BYTES = 16 * 1024


class OutboundError(Exception):
    """Nothing usable came back. The message is a sentence; ``kind`` lets a caller tell a refusal from an outage.

    Of a "timeout", ``connected`` says that the server had taken the connection: it is there, and late.
    """

    def __init__(self, kind: ErrorKind, sentence: str, *, connected: bool = False) -> None:
        super().__init__(sentence)
        self.kind: ErrorKind = kind
        self.connected = connected


async def system_resolver(host: str, port: int) -> list[str]:
    """Every address the system knows for ``host``, in its order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def source_address(destination: str) -> str | None:
    """The address of this machine from which the kernel would speak to ``destination``; None where no route leads there.

    A datagram socket is connected and asked for its name; nothing is sent.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((destination, 80))
        except OSError:
            return None
        return str(asked.getsockname()[0])


def addresses_of_name(name: str) -> list[str]:
    """What the system's resolver makes of a name of this machine; raises ``OSError``. Blocks, so call it in a thread."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)))


def is_here(host: str) -> bool:
    """Whether a name or address leads to this machine: the kernel speaks to its own addresses from themselves. Blocks."""
    try:
        found = addresses_of_name(host)
    except (OSError, UnicodeError):
        return False
    return bool(found) and (ip_address(found[0].partition("%")[0]).is_loopback or source_address(found[0]) == found[0])


class PinnedBackend:
    """A network backend for httpcore that connects to checked addresses only.

    It has the methods of ``httpcore.AsyncNetworkBackend`` without inheriting from it, so that httpcore is imported
    when the first request is made and not when this module is.
    """

    def __init__(
        self, policy: Policy, allowance: Allowance, resolve: Resolver, connected: dict[tuple[str, int], str]
    ) -> None:
        self._policy = policy
        self._allowance = allowance
        self._resolve = resolve
        self._connected = connected

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore calls it by this name)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        seconds = timeout or 3.0
        if self._policy.goes_direct(host):
            addresses = await self.checked_addresses(host, port)
            stream, address = await self.connect_any(host, addresses, port, seconds)
        else:
            stream, address = await self._through_proxy(host, port, seconds)
        self._connected[(host, port)] = address
        return stream

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise OutboundError("refused", "Unix sockets are not opened.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def checked_addresses(self, host: str, port: int) -> list[IPAddress]:
        """Every address of ``host``; raises :class:`OutboundError` if a single one of them is not permitted."""
        if host != self._allowance.host or port != self._allowance.port:
            raise OutboundError("refused", f"{host}:{port} is not the server that was allowed.")
        addresses = await self._look_up(host, port)
        try:
            for address in addresses:
                self._policy.check(self._allowance, address)
        except AddressError as error:
            raise OutboundError("refused", str(error)) from None
        return addresses

    async def _look_up(self, host: str, port: int) -> list[IPAddress]:
        if (address := literal(host)) is not None:
            return [address]
        try:
            texts = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise OutboundError("name", f"The name {host} could not be resolved{because(error)}.") from None
        addresses = [literal(text) for text in texts]
        if not addresses or None in addresses:
            raise OutboundError("name", f"The name {host} has no usable address.")
        return [address for address in addresses if address is not None]

    async def connect_any(
        self, host: str, addresses: list[IPAddress], port: int, seconds: float
    ) -> tuple[httpcore.AsyncNetworkStream, str]:
        """Connect to the first of ``addresses`` that takes it; each attempt has its share of ``seconds``."""
        import httpcore

        tried = addresses[:MAX_TRIED_ADDRESSES]
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in tried:
            numeric = _numeric(address)
            try:
                stream = await httpcore.AnyIOBackend().connect_tcp(numeric, port, timeout=seconds / len(tried))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return stream, str(address)
        raise failure

    async def _through_proxy(self, host: str, port: int, seconds: float) -> tuple[httpcore.AsyncNetworkStream, str]:
        """A tunnel through the configured proxy to a checked address, with its name kept for TLS and Host."""
        import httpcore

        try:
            target = _numeric((await self.checked_addresses(host, port))[0])
        except OutboundError as error:
            if error.kind != "name" or not self._policy.proxy_resolves_names:
                raise
            target = host
        proxy, credentials = split_proxy(self._policy.proxy or "")
        try:
            addresses = await self._look_up(proxy.host, proxy.port)
            stream, _ = await self.connect_any(proxy.host, addresses, proxy.port, seconds)
            if proxy.scheme == "https":
                stream = await stream.start_tls(tls_context(self._policy.ca_file), proxy.host, seconds)
        except (httpcore.NetworkError, httpcore.TimeoutException, OutboundError) as error:
            raise OutboundError("proxy", f"The proxy {proxy.authority} took no connection{because(error)}.") from None
        authority = f"[{target}]:{port}" if ":" in target else f"{target}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if credentials:
            lines.append("Proxy-Authorization: Basic " + base64.b64encode(credentials.encode()).decode())
        await stream.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _PROXY_ANSWER_BYTES:
            chunk = await stream.read(1, timeout=seconds)  # one at a time: what follows belongs to the target
            if not chunk:
                break
            answer += chunk
        status = answer.split(b"\r\n", 1)[0].split(b" ")
        if len(status) < 2 or status[1] != b"200":
            await stream.aclose()
            said = answer.split(b"\r\n", 1)[0].decode("latin-1")[:100]
            raise OutboundError("proxy", f"The proxy {proxy.authority} refused a tunnel to {authority}: {said!r}.")
        return stream, f"{target} through {proxy.authority}"


def _numeric(address: IPAddress) -> str:
    """The address as it is connected to; a mapped one as the IPv4 address it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def split_proxy(text: str) -> tuple[Url, str]:
    """A proxy URL without its ``user:password``, and those."""
    scheme, _, rest = text.partition("://")
    credentials, at, host = rest.rpartition("@")
    try:
        return parse_url(f"{scheme}://{host}" if at else text), credentials
    except AddressError as error:
        raise OutboundError("proxy", f"The configured proxy cannot be used. {error}") from None


def tls_context(
    ca_file: str | None, ca_data: str | None = None, client_cert: tuple[str, str] | None = None
) -> ssl.SSLContext:
    """A context that trusts ``ca_data`` or ``ca_file``, or the bundled public authorities; the environment is not asked."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca_data is not None:
            context.load_verify_locations(cadata=ca_data)
        else:
            if ca_file is None:
                import certifi

                ca_file = certifi.where()
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError, ValueError) as error:
        where = ca_file or "the configuration"
        raise OutboundError("tls", f"The certificates in {where} cannot be read{because(error)}.") from None
    if client_cert is not None:
        _show_certificate(context, *client_cert)
    return context


def _show_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate with its key from text; OpenSSL only reads files, so they stand in one that has no name."""
    try:
        number = os.memfd_create("client-certificate")
    except (AttributeError, OSError):
        raise OutboundError("tls", "This system has no memory files; client certificates cannot be used.") from None
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(f"{certificate.strip()}\n{key.strip()}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{number}", password=lambda: b"")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise OutboundError("tls", f"The client certificate cannot be used{because(error)}.") from None
    finally:
        os.close(number)


def check_socket(path: str) -> None:
    """Raise :class:`OutboundError` unless ``path`` is a Unix socket that only its owner or root could have put there.

    Whoever may replace the socket could answer in its name, so it must be absolute, belong to root or to this user,
    and lie in a folder that others cannot write to.
    """
    refused = f"The socket {path!r:.200} is not opened: "
    where = Path(path)
    if not where.is_absolute() or "\0" in path or ".." in where.parts:
        raise OutboundError("refused", f"{refused}its path must be absolute and without '..'.")
    try:
        found, folder = where.stat(), where.resolve().parent.stat()
    except OSError as error:
        raise OutboundError("connect", f"The socket {path} cannot be looked at{because(error)}.") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise OutboundError("refused", f"{refused}it is no socket.")
    if found.st_uid not in (0, os.geteuid()):
        raise OutboundError("refused", f"{refused}it belongs to another user.")
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise OutboundError("refused", f"{refused}everybody may write to its folder.")


def because(error: BaseException) -> str:
    """``: reason`` for the end of a sentence, or nothing when the error says nothing."""
    text = (getattr(error, "strerror", None) or str(error)).strip().rstrip(".")
    return f": {text[:200]}" if text else ""
