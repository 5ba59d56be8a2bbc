"""`check_network`: which address vLLM will choose here and why, and what could keep ranks or the hub out of reach."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field

from tools.network.facts import CHOSEN, HUB_S, PROXIES, Hub, NetworkFacts, hub_of, measure, offline
from tools.network.interfaces import candidates, in_network_of
from tools.outbound import AddressError, Allowance, Limits, Outbound, OutboundError
from tools.pinned import addresses_of_name, source_address
from tools.processes import PROC, Server, listeners, process, read, same_namespace
from tools.registry import Context, action
from tools.sanity.choose import find_server
from tools.sanity.results import Asked, Report, Sheet, Status, plain


class NetworkInput(Asked):
    """Looks at the network of this machine or of the server's container."""

    hub: bool = Field(True, description="also try to reach the model hub")


@action(name="check_network", title="Network of this node", effect="reads", deadline_s=20)
async def check_network(given: NetworkInput, context: Context) -> Report:
    """The address vLLM will choose and why, what the host name resolves to, interfaces with speed and MTU, candidates for
    VLLM_HOST_IP and the socket interfaces, ports, proxies, the model hub and RDMA devices."""
    sheet = Sheet("check_network", given.lang)
    server = await asyncio.to_thread(find_server, given.pid)
    environment: Mapping[str, str] = server.environment if server else os.environ
    hub = asyncio.create_task(_hub(environment, context)) if given.hub else None
    try:
        seen = await asyncio.to_thread(_look, sheet, server, environment)
        await asyncio.to_thread(_ports, sheet, server)
    finally:
        reached = await hub if hub is not None else None
    judge(sheet, replace(seen, hub=reached))
    return sheet.report()


def judge(sheet: Sheet, seen: NetworkFacts) -> None:
    """Rows and facts for what was found. Raises ``ValueError`` where an address is none."""
    _interfaces(sheet, seen)
    _address(sheet, seen)
    _host_name(sheet, seen)
    _chosen_names(sheet, seen)
    _proxies(sheet, seen.environment)
    _rdma(sheet, seen)
    if seen.hub is not None:
        status: Status = "ok" if seen.hub.status == "ok" else "bad" if seen.hub.status == "bad" else "skipped"
        sheet.add("net.hub", status, seen.hub.url, detail=seen.hub.detail)
        if status != "skipped":
            sheet.fact("hub.reachable", "yes" if status == "ok" else "no", seen.hub.detail)


def _look(sheet: Sheet, server: Server | None, environment: Mapping[str, str]) -> NetworkFacts:
    """Measured in the server's own network where that is another one and may be entered, here otherwise."""
    if server is not None and same_namespace(server.main.pid, "net") is False:
        pid = server.main.pid
        root = PROC / str(pid) / "root"
        seen = in_network_of(pid, lambda: _measure(environment, root / "sys/class/net"))
        if seen is not None:
            sheet.where = "server"
            return _with_hosts_of(seen, root, server.environment)
        sheet.add("net.elsewhere", "note", pid=pid)
    elif server is not None:
        sheet.where = "server"
        if same_namespace(server.main.pid, "mnt") is False:
            return _with_hosts_of(_measure(environment), PROC / str(server.main.pid) / "root", server.environment)
    return _measure(environment)


def _measure(environment: Mapping[str, str], sys_net: Path = Path("/sys/class/net")) -> NetworkFacts:
    return measure(environment, addresses_of_name, source_address, sys_net)


def _with_hosts_of(seen: NetworkFacts, root: Path, environment: Mapping[str, str]) -> NetworkFacts:
    """The same with the host name as the container's /etc/hosts has it, which is what the server resolves it by first."""
    host = environment.get("HOSTNAME") or read(root / "etc/hostname", 300).strip() or seen.host
    found: list[str] = []
    for line in read(root / "etc/hosts").splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if host in names and address not in found:
            found.append(address)
    return replace(seen, host=host, resolved=tuple(found) or seen.resolved)


def _interfaces(sheet: Sheet, seen: NetworkFacts) -> None:
    for row in seen.rows[:16]:
        if row.loopback or not row.addresses:
            continue
        parts = [row.name, ", ".join(row.addresses), f"MTU {row.mtu}" if row.mtu else ""]
        parts.append(f"{row.speed} Mbit/s" if row.speed else "")
        line = " · ".join(part for part in parts if part)
        sheet.add("net.interface", "ok" if row.up else "note", line)
    usable = candidates(list(seen.rows))
    if not any(row.loopback and row.up for row in seen.rows):
        sheet.add("net.loopback-down", "bad")
    if usable:
        named = "; ".join(f"VLLM_HOST_IP={next(a for a in row.addresses if '.' in a)} NCCL_SOCKET_IFNAME={row.name} GLOO_SOCKET_IFNAME={row.name}" for row in usable[:3])  # fmt: skip
        sheet.add("net.candidates", "ok", named)
        sheet.fact("network.candidates", ", ".join(row.name for row in usable[:8]))
        fastest = max(usable, key=lambda row: row.speed or 0)
        if (fastest.speed or 0) > (usable[0].speed or 0) > 0:
            sheet.add("net.faster", "note", fastest.name, speed=fastest.speed, used=usable[0].name, slower=usable[0].speed)  # fmt: skip


def _address(sheet: Sheet, seen: NetworkFacts) -> None:
    own = {address: row for row in seen.rows for address in row.addresses}
    given = seen.environment.get("VLLM_HOST_IP")
    if given:
        shown = plain(given, 60)
        if given not in own:
            sheet.add("net.address", "bad", shown)
            sheet.fact("network.address_problem", "not-ours", shown)
        else:
            sheet.add("net.address-given", "ok", shown)
        return
    if seen.address is None:
        sheet.add("net.address-none", "note")
        sheet.fact("network.address_problem", "no-route")
        return
    sheet.fact("network.address", seen.address)
    row = own.get(seen.address)
    name = row.name if row else "?"
    if row is not None and (row.virtual or ip_address(seen.address).is_loopback):
        sheet.add("net.address-virtual", "note", seen.address, interface=name)
        sheet.fact("network.address_problem", "virtual", f"{seen.address} ({name})")
    else:
        sheet.add("net.address-route", "ok", seen.address, interface=name)


def _host_name(sheet: Sheet, seen: NetworkFacts) -> None:
    if seen.resolved is None:
        sheet.add("net.host-name", "note", seen.host, detail=seen.error)
        sheet.fact("host.name_resolves", "no", seen.host)
        return
    shown = f"{seen.host} = {', '.join(seen.resolved[:4])}"
    if all(ip_address(address.partition("%")[0]).is_loopback for address in seen.resolved):
        sheet.add("net.host-loopback", "note", shown)
        sheet.fact("host.name_resolves", "loopback", shown)
        return
    own = {address for row in seen.rows for address in row.addresses}
    if not own.intersection(seen.resolved):
        sheet.add("net.host-foreign", "bad", shown)
        sheet.fact("host.name_resolves", "foreign", shown)
        return
    sheet.add("net.host-name", "ok", shown)
    sheet.fact("host.name_resolves", "own", shown)


def _chosen_names(sheet: Sheet, seen: NetworkFacts) -> None:
    known = {row.name: row for row in seen.rows}
    for variable in CHOSEN:
        value = seen.environment.get(variable)
        if not value:
            continue
        sheet.fact(f"environment.{variable}", value)
        if not variable.endswith("_IFNAME"):
            continue
        exact, exclude = value.startswith("="), value.startswith("^")
        names = [name for name in value.lstrip("=^").split(",") if name]
        gloo = variable != "NCCL_SOCKET_IFNAME"  # NCCL takes beginnings of names, GLOO whole ones
        missing = [n for n in names if not (n in known if exact or gloo else any(k.startswith(n) for k in known))]
        down = [n for n in names if n in known and not known[n].up]
        if (missing or down) and not exclude:
            sheet.add("net.ifname", "bad", f"{variable}={plain(value, 80)}", names=", ".join(known))
            sheet.fact("network.interface_problem", "down" if down and not missing else "missing", f"{variable}={value}")  # fmt: skip
        else:
            sheet.add("net.ifname", "ok", f"{variable}={plain(value, 80)}")


def _ports(sheet: Sheet, server: Server | None) -> None:
    taken = listeners()
    if server is not None and same_namespace(server.main.pid, "net") is not False:
        own = {p.pid for p in server.processes}
        ports = sorted(port for port, pids in taken.items() if pids & own)
        sheet.add("net.ports", "ok", ", ".join(map(str, ports[:24])) or "-")
    elif server is None and 8000 in taken:
        owner = next((found for pid in taken[8000] if (found := process(pid))), None)
        who = f"{' '.join(owner.command)[:80]} (pid {owner.pid})" if owner else "?"
        sheet.add("net.port-taken", "note", 8000, who=who)


def _proxies(sheet: Sheet, environment: Mapping[str, str]) -> None:
    given = [name for name in PROXIES if environment.get(name)]
    if not given:
        return
    spared = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    local = any(part.strip() in ("localhost", "127.0.0.1", "*") for part in spared.split(","))
    shown = f"{given[0]}={plain(environment[given[0]], 120)}"
    sheet.add("net.proxy", "ok" if local else "note", shown)


async def _hub(environment: Mapping[str, str], context: Context) -> Hub:
    """Whether the hub that the server would use takes a connection."""
    url = hub_of(environment)
    if offline(environment):
        return Hub("skipped", url, "HF_HUB_OFFLINE")
    try:
        policy = replace(context.policy, allowed=(*context.policy.allowed, Allowance.of(url)))
        async with Outbound(policy, limits=Limits(deadline_s=HUB_S, connect_s=HUB_S)) as outbound:
            reached = await outbound.reach(url)
    except (OutboundError, AddressError) as error:
        return Hub("bad", url, str(error))
    return Hub("ok", url, f"{reached.address}, {reached.connect_s * 1000:.0f} ms")


def _rdma(sheet: Sheet, seen: NetworkFacts) -> None:
    if not seen.rdma:
        return
    down = sum(port.state != "ACTIVE" for port in seen.rdma)
    status: Status = "ok" if seen.rdma_devices and down < len(seen.rdma) else "note"
    shown = "; ".join(f"{port.name} {port.state} {port.layer} {port.rate}" for port in seen.rdma[:8])
    sheet.add("net.rdma", status, shown, down=down, device="yes" if seen.rdma_devices else "no")
