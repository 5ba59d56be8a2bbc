"""What `check_network` needs to know of one network namespace, as plain data. Nothing here judges or connects.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.network.interfaces import Interface, interfaces
from tools.proc import read

#: Where vLLM's get_ip() points its socket (vllm/utils/network_utils.py, 0.32.0); nothing is sent there.
_AFAR = ("8.8.8.8", "2001:4860:4860::8888")
CHOSEN = ("VLLM_HOST_IP", "VLLM_LOOPBACK_IP", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_IB_HCA")  # fmt: skip
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_OTHERS = ("no_proxy", "NO_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_MOST_INTERFACES = 64
#: Seconds for the name and the connection of the hub; all checks together are to take less than two.
HUB_S = 1.2


@dataclass(frozen=True)
class RdmaPort:
    """One port of an RDMA device: its name, its state in the kernel's words ("ACTIVE"), link layer and rate."""

    name: str
    state: str
    layer: str
    rate: str


@dataclass(frozen=True)
class Hub:
    """Whether the model hub takes a connection: "ok", "bad" or "skipped", its address, and what was seen."""

    status: str
    url: str
    detail: str = ""


@dataclass(frozen=True)
class NetworkFacts:
    """``resolved`` is what the host's name leads to, with ``error`` where that is None; ``address`` the one that vLLM will
    choose; ``rdma_devices`` whether their files in /dev are there; ``environment`` the variables that choose addresses."""

    rows: tuple[Interface, ...]
    host: str
    resolved: tuple[str, ...] | None
    error: str
    address: str | None
    environment: dict[str, str] = field(default_factory=dict)
    rdma: tuple[RdmaPort, ...] = ()
    rdma_devices: bool = False
    hub: Hub | None = None


def measure(
    environment: Mapping[str, str],
    resolve: Callable[[str], list[str]],
    source: Callable[[str], str | None],
    sys_net: Path = Path("/sys/class/net"),
) -> NetworkFacts:
    """Look. ``resolve`` asks the system's resolver and raises ``OSError``; ``source`` is the own address towards another."""
    host = os.uname().nodename
    resolved: tuple[str, ...] | None = None
    error = ""
    try:
        resolved = tuple(resolve(host))
    except OSError as problem:
        error = str(problem)
    return NetworkFacts(
        rows=tuple(interfaces(sys_net)[:_MOST_INTERFACES]),
        host=host,
        resolved=resolved,
        error=error,
        address=next((found for afar in _AFAR if (found := source(afar))), None),
        environment={name: environment[name] for name in (*CHOSEN, *PROXIES, *_OTHERS) if name in environment},
        rdma=tuple(_rdma()),
        rdma_devices=Path("/dev/infiniband").is_dir(),
    )


def hub_of(environment: Mapping[str, str]) -> str:
    """The model hub that huggingface_hub would ask."""
    return environment.get("HF_ENDPOINT") or "https://huggingface.co"


def offline(environment: Mapping[str, str]) -> bool:
    """Whether huggingface_hub is told to ask no hub."""
    return environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _rdma() -> list[RdmaPort]:
    return [
        RdmaPort(
            f"{port.parts[-3]}:{port.name}",
            read(port / "state", 64).partition(":")[2].strip(),
            read(port / "link_layer", 64).strip(),
            read(port / "rate", 64).strip(),
        )
        for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*"))[:_MOST_INTERFACES]
    ]
