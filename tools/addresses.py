"""Which addresses may be spoken to: strict URLs, the kind of an IP address, and what was allowed.

Nothing here opens a connection or resolves a name, so it can be used while settings are read and tested with plain
values. ``tools/outbound.py`` asks these functions before it connects anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

IPAddress = IPv4Address | IPv6Address
Kind = Literal["public", "private", "forbidden"]

DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>(?:[/?][^\s\\#\x00-\x20\x7f]*)?)"
    r"(?:\#[^\s\x00-\x20\x7f]*)?"
)
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
_DOTTED_DECIMAL = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")

# Clouds hand out credentials at these addresses. Link-local ones are refused with their whole range below; the rest
# look like ordinary private or public addresses, so they are named. Sources: the providers' documentation of their
# instance metadata services (Alibaba Cloud 100.100.100.200, Azure WireServer 168.63.129.16, AWS fd00:ec2::254 and
# ::23, Google fd20:ce::254, Scaleway fd00:42::42; Oracle's 192.0.0.192 lies in 192.0.0.0/24).
_METADATA = frozenset(
    ip_address(text)
    for text in (
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
    )
)
_FORBIDDEN_4: tuple[tuple[IPv4Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "an unspecified address"),
    (IPv4Network("169.254.0.0/16"), "a link-local address, where clouds keep their metadata service"),
    (IPv4Network("192.0.0.0/24"), "an address reserved for protocols"),
    (IPv4Network("224.0.0.0/4"), "a multicast address"),
    (IPv4Network("240.0.0.0/4"), "a reserved or broadcast address"),
)
_FORBIDDEN_6: tuple[tuple[IPv6Network, str], ...] = (
    (IPv6Network("::/128"), "an unspecified address"),
    (IPv6Network("fe80::/10"), "a link-local address"),
    (IPv6Network("fec0::/10"), "a site-local address"),
    (IPv6Network("ff00::/8"), "a multicast address"),
    (IPv6Network("100::/64"), "a discard-only address"),
    (IPv6Network("2001::/32"), "a Teredo address"),
    (IPv6Network("64:ff9b:1::/48"), "a local translation address"),
)
_SHARED_4 = IPv4Network("100.64.0.0/10")
_STRICTNESS: dict[Kind, int] = {"public": 0, "private": 1, "forbidden": 2}


class AddressError(ValueError):
    """An address that may not be used. The message is a sentence for the person who gave it."""


@dataclass(frozen=True, slots=True)
class Url:
    """A URL read strictly: ``host`` is lower case without brackets or trailing dot, ``path`` keeps the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_literal(self) -> bool:
        """Whether the host is an IP address rather than a name."""
        return literal(self.host) is not None

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header spells it: brackets around IPv6, no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def at(self, path: str) -> Url:
        """The same server with another path: ``/metrics`` beside ``/v1``. A base path is kept in front."""
        base = self.path.split("?", 1)[0].rstrip("/")
        return Url(self.scheme, self.host, self.port, f"{base}/{path.lstrip('/')}")


def literal(host: str) -> IPAddress | None:
    """The IP address that ``host`` is written as, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def parse_url(text: str) -> Url:
    """Read ``http://host[:port][/path]`` strictly.

    Parsers disagree about backslashes, user names, percent signs, non-ASCII digits and numbers such as ``0x7f.1``, and
    attacks live in the disagreement; each of these is refused instead of interpreted. Raises :class:`AddressError`.
    """
    if len(text) > 4096:
        raise AddressError(f"The address is {len(text)} characters long; at most 4096 are taken.")
    shown = _shown(text)
    match = _URL.fullmatch(text)
    scheme = match["scheme"].lower() if match else text.split(":", 1)[0].lower() if ":" in text else ""
    if scheme not in DEFAULT_PORTS:
        if "://" not in text:
            raise AddressError(f"{shown} has no scheme; write http:// or https:// in front of it.")
        raise AddressError(f"{shown} does not begin with http:// or https://; nothing else is opened.")
    if match is None:
        raise AddressError(f"{shown} is not an address: {_what_is_wrong(text)}.")
    port = int(match["port"]) if match["port"] else DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise AddressError(f"{shown} has the port {port}; ports go from 1 to 65535.")
    rest = match["rest"]
    return Url(scheme, _host(match["host"], shown), port, rest if rest.startswith("/") else f"/{rest}")


def _shown(text: str) -> str:
    """The text as an error may show it: printable, short, and without a password written into the address."""
    without_user = re.sub(r"//[^/?#]*@", "//***@", text)
    return "'" + "".join(c if c.isprintable() else "?" for c in without_user[:200]) + "'"


def _what_is_wrong(text: str) -> str:
    authority = re.split(r"[/?#\\]", text.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        return "a user name or password stands in it; give credentials in the settings"
    if "\\" in text or any(c.isspace() or not c.isprintable() for c in text):
        return "it contains a blank, a control character or a backslash"
    if "%" in authority:
        return "its host contains a percent sign"
    if not authority.isascii():
        return "its host is not plain ASCII; write the xn-- form"
    return "write it as http://host:port/path"


def _host(text: str, shown: str) -> str:
    if text.startswith("["):
        try:
            return IPv6Address(text[1:-1]).compressed
        except ValueError:
            raise AddressError(f"{shown} contains {text}, which is not an IPv6 address.") from None
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if any(not label or len(label) > 63 for label in labels):
        raise AddressError(f"{shown} has the host {host!r}, which is not a host name.")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        address = literal(host) if _DOTTED_DECIMAL.fullmatch(host) else None
        if address is None:
            raise AddressError(
                f"{shown} spells its host as the number {host!r}; write an IPv4 address as four decimal numbers."
            )
        return str(address)
    return host


def kind_of(address: IPAddress) -> tuple[Kind, str]:
    """Whether ``address`` is public, private (loopback included) or never to be spoken to, and the reason in words.

    An IPv6 address that carries an IPv4 one (mapped, compatible, translated, NAT64, 6to4, ISATAP) is judged by both,
    and the stricter judgement counts.
    """
    outer = _kind_of_outer(address)
    if isinstance(address, IPv6Address) and (inner := embedded_ipv4(address)) is not None:
        kind, why = _kind_of_outer(inner)
        if _STRICTNESS[kind] >= _STRICTNESS[outer[0]] and kind != "public":
            return kind, f"{why} ({inner}) inside an IPv6 address"
    return outer


def _kind_of_outer(address: IPAddress) -> tuple[Kind, str]:
    if address in _METADATA:
        return "forbidden", "a cloud's metadata service"
    if isinstance(address, IPv4Address):
        for network, why in _FORBIDDEN_4:
            if address in network:
                return "forbidden", why
        if address.is_loopback:
            return "private", "a loopback address"
        if address in _SHARED_4:
            return "private", "a shared carrier address"
    else:
        if address.scope_id is not None:
            return "forbidden", "an address with a zone"
        for network6, why in _FORBIDDEN_6:
            if address in network6:
                return "forbidden", why
        if address.is_loopback:
            return "private", "a loopback address"
        if address.ipv4_mapped is not None:  # newer Pythons call these private whatever they carry
            return "public", "a mapped IPv4 address"
    if not address.is_global:
        return "private", "a private address"
    return "public", "a public address"


def embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, or None.

    RFC 4291 (mapped, compatible), RFC 2765 (translated), RFC 6052 (NAT64), RFC 3056 (6to4), RFC 5214 (ISATAP).
    """
    number = int(address)
    low = number & 0xFFFF_FFFF
    top96 = number >> 32
    if top96 in (0xFFFF, 0xFFFF_0000) or top96 == 0x0064_FF9B << 64:
        return IPv4Address(low)
    if top96 == 0 and low > 1:
        return IPv4Address(low)
    if number >> 112 == 0x2002:
        return IPv4Address(number >> 80 & 0xFFFF_FFFF)
    if number >> 32 & 0xFDFF_FFFF == 0x0000_5EFE:
        return IPv4Address(low)
    return None


@dataclass(frozen=True, slots=True)
class Allowance:
    """One server that may be spoken to, because somebody configured it or typed it on the command line.

    ``private`` permits loopback and private addresses for it; link-local, metadata, multicast and unspecified
    addresses are refused whatever it says. ``ca_file`` names a PEM file that its certificate is checked against;
    ``ca_data`` is such a file's content where a configuration holds it inline. ``client_cert`` is the certificate with
    its key, as PEM text, that is shown to this server and to no other.
    """

    scheme: str
    host: str
    port: int
    private: bool = False
    ca_file: str | None = None
    ca_data: str | None = field(default=None, repr=False)
    client_cert: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        url: str | Url,
        *,
        private: bool | None = None,
        ca_file: str | None = None,
        ca_data: str | None = None,
        client_cert: tuple[str, str] | None = None,
    ) -> Allowance:
        """Allow the server of ``url``.

        ``private=None`` permits private addresses only where the address itself says so: ``localhost`` or a private
        IP literal. A name must be permitted explicitly, or whoever runs its DNS could point it inside.
        Raises :class:`AddressError`.
        """
        where = parse_url(url) if isinstance(url, str) else url
        if private is None:
            address = literal(where.host)
            private = where.host == "localhost" or (address is not None and kind_of(address)[0] == "private")
        return cls(where.scheme, where.host, where.port, private, ca_file, ca_data, client_cert)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides whether and how a connection is opened. Nothing is taken from the environment.

    ``proxy`` is an ``http://`` or ``https://`` URL that may carry ``user:password@``; hosts in ``no_proxy`` (exact
    names, or ``.suffix``) are reached directly. With ``proxy_resolves_names`` a name that does not resolve here is
    given to the proxy as it is; without it such a name is an error. ``sockets`` are the paths of Unix sockets that a
    target names (Docker's); no other is opened.
    """

    allowed: tuple[Allowance, ...] = ()
    private: bool = False
    proxy: str | None = None
    no_proxy: tuple[str, ...] = ()
    proxy_resolves_names: bool = False
    ca_file: str | None = None
    sockets: tuple[str, ...] = ()

    def allowing(self, *more: Allowance) -> Policy:
        """The same policy with ``more`` servers allowed."""
        return replace(self, allowed=self.allowed + more)

    def permit_socket(self, path: str) -> None:
        """Raise :class:`AddressError` unless the Unix socket at ``path`` was named by a target."""
        if path not in self.sockets:
            raise AddressError(f"The socket {path!r:.200} is not among those that a target names.")

    def permit(self, url: Url) -> Allowance:
        """The newest allowance for ``url``; raises :class:`AddressError` when nobody allowed its server."""
        for allowance in reversed(self.allowed):
            if (allowance.scheme, allowance.host, allowance.port) == (url.scheme, url.host, url.port):
                return allowance
        raise AddressError(
            f"{url.scheme}://{url.authority} is not among the allowed targets; "
            "add it to the targets file or give it on the command line."
        )

    def check(self, allowance: Allowance, address: IPAddress) -> None:
        """Raise :class:`AddressError` unless ``address`` may be connected to for ``allowance``."""
        kind, why = kind_of(address)
        named = "" if literal(allowance.host) else f"{allowance.host} leads to "
        if kind == "forbidden":
            raise AddressError(f"{named}{address} is refused: it is {why}.")
        if kind == "private" and not (self.private or allowance.private):
            raise AddressError(
                f"{named}{address} is refused: it is {why}; allow private addresses for this target if that is meant."
            )

    def goes_direct(self, host: str) -> bool:
        """Whether ``host`` is reached without the proxy."""
        if self.proxy is None:
            return True
        return any(host == entry or (entry.startswith(".") and host.endswith(entry)) for entry in self.no_proxy)
