"""The network interfaces of this machine or of a process's container, with their addresses, speed and use.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from tools.proc import PROC, read

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_AF_INET, _AF_INET6 = 2, 10
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
#: Bridges, virtual cables and tunnels of container engines and VPNs: they are up, and lead to no other node.
_VIRTUAL = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "tun", "tap", "wg", "dummy", "ifb", "lxc", "podman", "kube", "tailscale", "nerdctl")  # fmt: skip


@dataclass(frozen=True)
class Interface:
    """One interface. ``speed`` in Mbit/s where the driver says; ``default`` where the default route leads through it."""

    name: str
    up: bool
    loopback: bool
    addresses: tuple[str, ...] = ()
    mtu: int | None = None
    speed: int | None = None
    default: bool = False

    @property
    def virtual(self) -> bool:
        return self.loopback or self.name.startswith(_VIRTUAL)


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
    ("destination", ctypes.POINTER(_SockAddr)),
    ("extra", ctypes.c_void_p),
)


def interfaces(sys_net: Path = Path("/sys/class/net"), route: Path = PROC / "thread-self" / "net" / "route") -> list[Interface]:  # fmt: skip
    """All interfaces by getifaddrs(3); the way to the rest of the world first, loopback last."""
    found: dict[str, tuple[int, list[str]]] = {}
    library = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if library.getifaddrs(ctypes.byref(head)) != 0:
        return []
    try:
        entry = head
        while entry:
            item = entry.contents
            _, addresses = found.setdefault(item.name.decode("utf-8", "replace"), (item.flags, []))
            if text := _address(item.address):
                addresses.append(text)
            entry = item.next
    finally:
        library.freeifaddrs(head)
    default = _default_interface(route)
    rows = [
        Interface(
            name,
            bool(flags & _IFF_UP and flags & _IFF_RUNNING),
            bool(flags & _IFF_LOOPBACK),
            tuple(addresses),
            _number(sys_net / name / "mtu"),
            _number(sys_net / name / "speed"),
            name == default,
        )
        for name, (flags, addresses) in found.items()
    ]
    return sorted(rows, key=lambda row: (row.loopback, not row.default, row.virtual, not row.up, row.name))


def _address(pointer: Any) -> str:
    if not pointer:
        return ""
    data = bytes(pointer.contents.data)
    if pointer.contents.family == _AF_INET:
        return str(IPv4Address(data[2:6]))
    if pointer.contents.family == _AF_INET6:
        address = IPv6Address(data[6:22])
        return "" if address.is_link_local else str(address)
    return ""


def _number(path: Path) -> int | None:
    text = read(path, 32).strip()
    return int(text) if text.isdigit() else None


def _default_interface(route: Path) -> str:
    best = (1 << 32, "")
    for line in read(route).splitlines()[1:]:
        values = line.split()
        if len(values) > 7 and values[1] == "00000000" and values[7] == "00000000":
            best = min(best, (int(values[6]), values[0]))
    return best[1]


def candidates(rows: list[Interface] | None = None) -> list[Interface]:
    """Interfaces that can connect this node to another one, the likeliest first."""
    rows = interfaces() if rows is None else rows
    return [row for row in rows if row.up and not row.virtual and any("." in address for address in row.addresses)]


def in_network_of(pid: int, function: Callable[[], T]) -> T | None:
    """Run ``function`` in the network of another process; None where that is not permitted.

    A thread of its own enters the namespace and ends, so that nothing else in this process moves.
    """
    answer: list[T] = []

    def work() -> None:
        try:
            descriptor = os.open(PROC / str(pid) / "ns" / "net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) == 0:
                answer.append(function())
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    return answer[0] if answer else None
