"""What NCCL says about itself with NCCL_DEBUG=INFO: version, network, transport of each pair, first warning.

Lines it reads (NCCL 2.18 to 2.28)::

    node1:733:733 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.4<0>
    node1:733:812 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
    node1:733:812 [1] transport/p2p.cc:275 NCCL WARN Cuda failure 217 'peer access is not supported'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_VERSION = re.compile(r"NCCL version (\d+(?:\.\d+)+)")
_NETWORK = re.compile(r"NCCL INFO (?:Using network (\S+)|NET/(\S+) : Using (.+))")
_BOOTSTRAP = re.compile(r"NCCL INFO Bootstrap\s*:\s*Using ([^:\s]+):([0-9A-Fa-f.:\[\]]+)")
_CHANNEL = re.compile(r"NCCL INFO Channel \d+(?:/\d+)? : (\d+)\[\w+\] -> (\d+)\[\w+\] (?:\[\w+\] )?via (\S+)")
_WARN = re.compile(r"NCCL WARN (.+)")


@dataclass(frozen=True, slots=True)
class NcclSaid:
    """``transports`` maps "0->1" to "P2P/CUMEM"; ``warning`` is (rank, text) of the first warning."""

    version: str = ""
    network: str = ""
    interface: str = ""
    transports: Mapping[str, str] | None = None
    warning: tuple[int, str] | None = None


def read_nccl(outputs: Mapping[int, str]) -> NcclSaid:
    """Reads what the ranks printed, by rank."""
    version = network = interface = ""
    transports: dict[str, str] = {}
    warning: tuple[int, str] | None = None
    for rank, text in sorted(outputs.items()):
        for line in text.splitlines():
            if "NCCL" not in line:
                continue
            if not version and (found := _VERSION.search(line)):
                version = found[1]
            if not interface and (found := _BOOTSTRAP.search(line)):
                interface = f"{found[1]} {found[2]}"
            if found := _NETWORK.search(line):
                network = (found[1] or f"{found[2]} {found[3].strip()}")[:200] if not network or found[3] else network
            if found := _CHANNEL.search(line):
                transports.setdefault(f"{found[1]}->{found[2]}", found[3])
            if warning is None and (found := _WARN.search(line)):
                warning = (rank, found[1].strip()[:400])
    return NcclSaid(version, network, interface, transports, warning)
