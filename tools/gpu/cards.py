"""The state of every NVIDIA card of this machine, as plain data.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from tools.gpu.nvml import GpuLostError, Nvml
from tools.proc import PROC, read

#: Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a busy card down against its will (nvml.h): software power
#: cap, hardware slowdown, software and hardware thermal slowdown, power brake.
SLOWED = {0x4: "power-cap", 0x8: "hw-slowdown", 0x20: "sw-thermal", 0x40: "hw-thermal", 0x80: "power-brake"}
#: GB/s in one direction: PCIe generation -> per lane, after encoding (PCI-SIG); NVLink version -> per link (NVIDIA's
#: data sheets: 20, 25, 25, 25, 50 GB/s a link and direction for NVLink 1 to 5).
PCIE_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
NVLINK_LINK = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 50.0}
_MOST_LINKS = 18  # NVML_NVLINK_MAX_LINKS


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a GPU. ``alive`` is False where it is not seen in our /proc."""

    gpu: int
    pid: int
    name: str
    bytes: int
    alive: bool | None = None


@dataclass
class Card:
    """One card; None is "it does not say". Memory in bytes, clocks in MHz, power in W, temperature in Celsius."""

    index: int
    name: str = ""
    uuid: str = ""
    bus: str = ""
    capability: tuple[int, int] | None = None
    total: int | None = None
    free: int | None = None
    holders: tuple[Holder, ...] = ()
    ecc_uncorrected: int | None = None
    rows: tuple[int, int, int, int] | None = None  # correctable, uncorrectable, pending, failed
    slowed: tuple[str, ...] = ()
    clock: int | None = None
    clock_most: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    temperature_limit: int | None = None
    pcie: tuple[int, int] | None = None  # generation, width
    pcie_most: tuple[int, int] | None = None
    links_up: int = 0
    links_down: int = 0
    link_version: int | None = None
    mig: bool | None = None
    exclusive: bool | None = None
    fabric: str | None = None
    lost: str = ""


@dataclass
class Machine:
    """All cards with what is common to them. ``p2p`` says of pairs ("0-1") whether they read each other's memory."""

    driver: str = ""
    cuda: tuple[int, int] | None = None
    cards: list[Card] = field(default_factory=list)
    p2p: dict[str, bool] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)


def read_machine(nvml: Nvml) -> Machine:
    """Everything NVML says. A card that is lost keeps its place with ``lost`` filled."""
    machine = Machine(driver=_text(nvml.ask("nvmlSystemGetDriverVersion")))
    version = nvml.ask("nvmlSystemGetCudaDriverVersion_v2")
    if version:
        machine.cuda = (version // 1000, version % 1000 // 10)
    handles: dict[int, Any] = {}
    for index in range(nvml.ask("nvmlDeviceGetCount") or 0):
        card = Card(index)
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
            if handle is None:
                card.lost = nvml.refused.get("nvmlDeviceGetHandleByIndex", "no handle")
            else:
                handles[index] = handle
                _read_card(nvml, handle, card)
        except GpuLostError as error:
            card.lost = str(error)
            handles.pop(index, None)
        machine.cards.append(card)
    read_index = nvml.constant("NVML_P2P_CAPS_INDEX_READ") or 0
    for a, first in handles.items():
        for b, second in handles.items():
            if a < b:
                status = nvml.ask("nvmlDeviceGetP2PStatus", first, second, read_index)
                if status is not None:
                    machine.p2p[f"{a}-{b}"] = int(status) == 0
                level = nvml.ask("nvmlDeviceGetTopologyCommonAncestor", first, second)
                if level is not None:
                    machine.levels[f"{a}-{b}"] = int(level)
    return machine


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _read_card(nvml: Nvml, handle: Any, card: Card) -> None:
    ask = nvml.ask
    card.name = _text(ask("nvmlDeviceGetName", handle))
    card.uuid = _text(ask("nvmlDeviceGetUUID", handle))
    pci = ask("nvmlDeviceGetPciInfo", handle)
    card.bus = _text(pci.busId) if pci is not None else ""
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    card.capability = (int(capability[0]), int(capability[1])) if capability else None
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    if memory is not None:
        card.total, card.free = int(memory.total), int(memory.free)
    card.holders = read_holders(nvml, handle, card.index)
    corrected = nvml.constant("NVML_MEMORY_ERROR_TYPE_UNCORRECTED")
    aggregate = nvml.constant("NVML_VOLATILE_ECC")
    errors = ask("nvmlDeviceGetTotalEccErrors", handle, corrected, aggregate)
    card.ecc_uncorrected = None if errors is None else int(errors)
    rows = ask("nvmlDeviceGetRemappedRows", handle)
    card.rows = tuple(int(value) for value in rows) if rows is not None else None  # type: ignore[assignment]
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # the name until driver 535
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    card.slowed = tuple(name for bit, name in SLOWED.items() if reasons and int(reasons) & bit)
    graphics = nvml.constant("NVML_CLOCK_SM")
    card.clock = ask("nvmlDeviceGetClockInfo", handle, graphics)
    card.clock_most = ask("nvmlDeviceGetMaxClockInfo", handle, graphics)
    power, limit = ask("nvmlDeviceGetPowerUsage", handle), ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    card.power = power / 1000 if power is not None else None
    card.power_limit = limit / 1000 if limit is not None else None
    card.temperature = ask("nvmlDeviceGetTemperature", handle, nvml.constant("NVML_TEMPERATURE_GPU"))
    card.temperature_limit = ask(
        "nvmlDeviceGetTemperatureThreshold", handle, nvml.constant("NVML_TEMPERATURE_THRESHOLD_SLOWDOWN")
    )
    _read_links(nvml, handle, card)
    mig = ask("nvmlDeviceGetMigMode", handle)
    card.mig = bool(mig[0]) if mig is not None else None
    mode = ask("nvmlDeviceGetComputeMode", handle)
    card.exclusive = None if mode is None else int(mode) == nvml.constant("NVML_COMPUTEMODE_EXCLUSIVE_PROCESS")
    card.fabric = _fabric(nvml, handle)


def _read_links(nvml: Nvml, handle: Any, card: Card) -> None:
    ask = nvml.ask
    now = (ask("nvmlDeviceGetCurrPcieLinkGeneration", handle), ask("nvmlDeviceGetCurrPcieLinkWidth", handle))
    most = (ask("nvmlDeviceGetMaxPcieLinkGeneration", handle), ask("nvmlDeviceGetMaxPcieLinkWidth", handle))
    card.pcie = (int(now[0]), int(now[1])) if None not in now else None
    card.pcie_most = (int(most[0]), int(most[1])) if None not in most else None
    for link in range(_MOST_LINKS):
        state = ask("nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            continue
        if int(state) == 1:
            card.links_up += 1
            version = ask("nvmlDeviceGetNvLinkVersion", handle, link)
            card.link_version = int(version) if version is not None else card.link_version
        else:
            card.links_down += 1


def _fabric(nvml: Nvml, handle: Any) -> str | None:
    """The state of the fabric that NVSwitch machines need before CUDA works; None where there is none."""
    kind = getattr(nvml.module, "c_nvmlGpuFabricInfo_v2_t", None)
    info: Any = None
    if kind is not None:
        info = kind()
        if nvml.ask("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info)) is None:
            info = None
    if info is None:
        return None
    names = {1: "not-started", 2: "in-progress", 3: "completed"}
    if int(info.state) == 3 and int(info.status) != 0:
        return f"failed ({int(info.status)})"
    return names.get(int(info.state))


def read_holders(nvml: Nvml, handle: Any, index: int) -> tuple[Holder, ...]:
    """Who holds memory of a card. In a container NVML may list nobody, or numbers of the host's processes."""
    found: list[Holder] = []
    for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for entry in nvml.ask(function, handle) or ():
            pid = int(entry.pid)
            if any(h.pid == pid for h in found):
                continue
            name = _command(pid)
            alive = bool(name)
            name = name or _text(nvml.ask("nvmlSystemGetProcessName", pid))
            found.append(Holder(index, pid, name or "?", int(entry.usedGpuMemory or 0), alive))
    return tuple(found)


def _command(pid: int) -> str:
    """The command line of a process, or its short name where it has none; nothing where /proc does not show it."""
    words = [word for word in read(PROC / str(pid) / "cmdline").rstrip("\0 ").split("\0") if word]
    return " ".join(words)[:120] or read(PROC / str(pid) / "stat").rpartition(")")[0].partition("(")[2]


def link_gb_per_s(machine: Machine) -> float | None:
    """What the slowest pair of cards should reach in one direction, in GB/s; None for fewer than two cards."""
    if len(machine.cards) < 2:
        return None
    speeds: list[float] = []
    for card in machine.cards:
        if card.links_up and card.link_version in NVLINK_LINK:
            speeds.append(card.links_up * NVLINK_LINK[card.link_version or 0])
        elif card.pcie_most is not None and card.pcie_most[0] in PCIE_LANE:
            speeds.append(PCIE_LANE[card.pcie_most[0]] * card.pcie_most[1])
    return min(speeds) if speeds else None
