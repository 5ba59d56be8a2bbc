"""`describe_node`: what must be the same on all nodes of one group, and how the others reach this one."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tools.host.packages import canonical
from tools.launchers.node_worker import PACKAGES, PREFIXES
from tools.network.interfaces import Interface, candidates, interfaces
from tools.pinned import source_address
from tools.processes import PROC, Server, interpreter, servers
from tools.registry import ActionError, Context, action
from tools.sanity.choose import choose, find_server
from tools.sanity.results import Asked, plain

_MOST_SETTINGS = 64
_MOST_FILES = 3_000


class NodeLink(BaseModel):
    """One interface that leads to other nodes. ``mtu`` in bytes, ``speed`` in Mbit/s."""

    name: str
    addresses: list[str]
    mtu: int | None = None
    speed: int | None = None


class NodeDescription(BaseModel):
    """``address`` is where other ranks reach this node, on ``interface``; ``clock`` is in seconds since 1970;
    ``settings`` maps what should be the same everywhere to its value."""

    name: str
    address: str | None
    interface: str | None
    clock: float
    gpus: int = 0
    settings: dict[str, str] = Field(default_factory=dict)
    links: list[NodeLink] = Field(default_factory=list)


@action(name="describe_node", title="Settings of this node", effect="reads", deadline_s=20)
async def describe_node(given: Asked, context: Context) -> NodeDescription:
    """Versions, driver, NCCL and GLOO variables, interfaces with MTU, and the address at which other ranks reach this
    node."""
    return await asyncio.to_thread(_describe, given.pid)


def _describe(pid: int | None) -> NodeDescription:
    # Of several servers here, the one with the lowest number speaks for the node.
    server = find_server(pid) if pid is not None else min(servers(), key=lambda s: s.main.pid, default=None)
    environment: Mapping[str, str] = server.environment if server else os.environ
    rows = interfaces()
    usable = candidates(rows)
    address, name = address_of(rows, environment)
    found: dict[str, str] = {"kernel": platform.release(), "machine": platform.machine()}
    found |= {variable: plain(value, 120) for variable, value in sorted(environment.items()) if variable.startswith(PREFIXES)}  # fmt: skip
    found |= _versions(server, pid)
    gpus, more = _cards()
    mtu = next((row.mtu for row in rows if row.name == name), None)
    if mtu:
        found["MTU"] = str(mtu)
    settings = dict(list((found | more).items())[:_MOST_SETTINGS])
    links = [NodeLink(name=r.name, addresses=list(r.addresses), mtu=r.mtu, speed=r.speed) for r in usable[:8]]
    return NodeDescription(
        name=plain(platform.node(), 80),
        address=address,
        interface=name,
        clock=time.time(),
        gpus=gpus,
        settings=settings,
        links=links,
    )


def address_of(rows: list[Interface], environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The address and interface that ranks here will use: as vLLM and NCCL are told, else the way to the world."""
    by_address = {address: row.name for row in rows for address in row.addresses}
    told = environment.get("VLLM_HOST_IP")
    if told in by_address:
        return told, by_address[told]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = [part for part in environment.get(variable, "").lstrip("=").split(",") if part and part[0] != "^"]
        for row in rows:
            if row.up and row.addresses and any(row.name.startswith(part) for part in wanted):
                return _first(row), row.name
    routed = source_address("8.8.8.8") or source_address("2001:4860:4860::8888")
    if routed in by_address:
        return routed, by_address[routed]
    usable = candidates(rows)
    return (_first(usable[0]), usable[0].name) if usable else (None, None)


def _first(row: Interface) -> str:
    """An IPv4 address where there is one."""
    return next((address for address in row.addresses if "." in address), row.addresses[0])


def _versions(server: Server | None, pid: int | None) -> dict[str, str]:
    """Versions of the packages beside the interpreter that ranks would run with, from their metadata on disk."""
    if server is not None and (python := interpreter(server.main.pid)) is not None:
        library = PROC / str(server.main.pid) / "root" / str(python.parent.parent).lstrip("/")
    else:
        try:
            library = Path(choose(None, pid).command[-1]).absolute().parent.parent
        except ActionError:
            return {}
    found: dict[str, str] = {}
    for number, path in enumerate(library.glob("lib*/python3*/*-packages/*.dist-info")):
        if number >= _MOST_FILES:
            break
        package, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        if canonical(package) in PACKAGES:
            found[canonical(package)] = plain(version, 60)
    return found


def _cards() -> tuple[int, dict[str, str]]:
    """How many GPUs there are; driver, models and clocks as NVML says them."""
    from tools.gpu.nvml import GpuLostError, NoNvmlError, opened

    try:
        with opened() as nvml:
            count = int(nvml.ask("nvmlDeviceGetCount") or 0)
            found = {"GPU driver": _text(nvml.ask("nvmlSystemGetDriverVersion"))}
            handles = [nvml.ask("nvmlDeviceGetHandleByIndex", number) for number in range(count)]
            names = [_text(nvml.ask("nvmlDeviceGetName", handle)) for handle in handles if handle is not None]
            clocks = {nvml.ask("nvmlDeviceGetMaxClockInfo", h, nvml.constant("NVML_CLOCK_SM")) for h in handles if h is not None}  # fmt: skip
            found["GPUs"] = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
            found["GPU clock"] = ", ".join(sorted(str(clock) for clock in clocks if clock is not None))
            return count, {name: value for name, value in found.items() if value}
    except (NoNvmlError, GpuLostError):
        return 0, {}


def _text(value: Any) -> str:
    return plain(value.decode("utf-8", "replace") if isinstance(value, bytes) else value or "", 80)
