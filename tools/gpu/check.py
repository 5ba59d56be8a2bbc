"""`check_gpu`: the cards, their driver, who holds their memory, and what slows or breaks them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from tools.gpu.cards import Card, Machine, link_gb_per_s, read_machine
from tools.gpu.nvml import NoNvmlError, opened
from tools.kernel_log import kernel_log
from tools.processes import PROC, interpreter, read
from tools.registry import Context, action
from tools.sanity.choose import find_server
from tools.sanity.results import Asked, Report, Sheet

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([^)]{1,60})\): (\d{1,3})\b")
#: The oldest driver for each CUDA major version (CUDA Toolkit release notes, table of minor version compatibility).
OLDEST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
#: vLLM's own kernels are built from compute capability 7.0 on, and 7.5 from 0.12 (its installation page).
_OLDEST_CAPABILITY = (7, 0)
_TORCH_CUDA = re.compile(r"^cuda(?:: [^=]+)? = '([\d.]+)'", re.MULTILINE)


class GpuInput(Asked):
    """Looks at all cards of this machine."""


@action(name="check_gpu", title="State of the GPUs", effect="reads", deadline_s=20)
async def check_gpu(given: GpuInput, context: Context) -> Report:
    """Driver, memory and who holds it, ECC, row remapping, Xid events, clocks, power, PCIe, NVLink, P2P, MIG and fabric of
    every card. Without a GPU it says so and what it looked at. Raises ``ActionError`` for a process that is not there."""
    return await asyncio.to_thread(look, given)


def look(given: GpuInput, module: Any = None) -> Report:
    """The whole check. ``module`` stands in for pynvml in tests."""
    sheet = Sheet("check_gpu", given.lang)
    server = find_server(given.pid)
    events = _kernel(sheet)
    try:
        with opened(module) as nvml:
            machine = read_machine(nvml)
    except NoNvmlError as error:
        _without_nvml(sheet, error)
        _amd(sheet)
        return sheet.report()
    _driver(sheet, machine, server.main.pid if server else None)
    for card in machine.cards:
        _card(sheet, card, server.processes if server else ())
    _pairs(sheet, machine)
    sheet.fact("gpu.count", len(machine.cards))
    if machine.cards:
        sheet.fact("gpu.name", machine.cards[0].name)
    if not events:
        sheet.add("gpu.xid", "ok", 0)
    return sheet.report()


def _kernel(sheet: Sheet) -> int:
    """Xid events of the kernel's log; the newest of each kind. Returns how many were seen."""
    from knowledge.catalog import load

    log = kernel_log()
    if log.why and not log.lines:
        sheet.add("gpu.xid", "unknown", why=log.why)
        sheet.unknown("gpu.xid", log.why)
        return -1
    newest: dict[tuple[str, int], str] = {}
    for line in log.lines:
        if found := _XID.search(line):
            newest[found[1], int(found[2])] = line
    events = load().gpu_events
    for (bus, number), line in list(newest.items())[-8:]:
        event = events.get(f"xid-{number}")
        meaning = f"{event.name}: {event.meaning[sheet.lang]}" if event else ""
        sheet.add("gpu.xid", "bad", number, quote=line, bus=bus, meaning=meaning)
        sheet.fact("gpu.xid", number, line)
    return len(newest)


def _without_nvml(sheet: Sheet, error: NoNvmlError) -> None:
    """There is no usable NVML: no GPU at all, a driver that is not loaded, or a container that got none."""
    nodes = sorted(node.name for node in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+|kfd|accel\d+", node.name))
    loaded = Path("/proc/driver/nvidia/version").exists()
    pci = [
        path.name
        for path in Path("/sys/bus/pci/devices").glob("*")
        if read(path / "vendor", 16).strip() == "0x10de" and read(path / "class", 16).startswith(("0x0302", "0x0300"))
    ]
    looked = "NVML, /dev, /proc/driver/nvidia, PCI"
    if pci or loaded or any(name.startswith("nvidia") for name in nodes):
        sheet.add("gpu.driver", "bad", detail=str(error), cards=len(pci), nodes=", ".join(nodes) or "-")
    else:
        sheet.add("gpu.none", "note", looked=looked, detail=str(error))
        sheet.fact("gpu.count", 0, str(error))


def _amd(sheet: Sheet) -> None:
    """AMD cards through amdsmi, where it is installed; the kernel's own list otherwise."""
    if not Path("/dev/kfd").exists():
        return
    try:
        import amdsmi
    except (ImportError, OSError, KeyError):
        sheet.add("gpu.amd", "unknown")
        return
    try:
        amdsmi.amdsmi_init()
        try:
            for number, handle in enumerate(amdsmi.amdsmi_get_processor_handles()):
                board = amdsmi.amdsmi_get_gpu_asic_info(handle)
                used = amdsmi.amdsmi_get_gpu_vram_usage(handle)
                sheet.add("gpu.card", "ok", f"{number}: {board.get('market_name', '?')}, {used.get('vram_used')} / {used.get('vram_total')} MiB")  # fmt: skip
        finally:
            amdsmi.amdsmi_shut_down()
    except amdsmi.AmdSmiException as error:
        sheet.add("gpu.driver", "bad", detail=str(error), cards=0, nodes="/dev/kfd")


def _driver(sheet: Sheet, machine: Machine, pid: int | None) -> None:
    sheet.fact("gpu.driver", machine.driver)
    shown = f"{machine.driver}, CUDA {machine.cuda[0]}.{machine.cuda[1]}" if machine.cuda else machine.driver
    wanted = _torch_cuda(pid)
    driver = tuple(int(part) for part in re.findall(r"\d+", machine.driver)[:3])
    oldest = OLDEST_DRIVER.get(wanted[0]) if wanted else None
    if wanted and oldest and driver and driver < oldest:
        needs = ".".join(map(str, oldest))
        sheet.add("gpu.driver-age", "bad", shown, wanted=f"{wanted[0]}.{wanted[1]}", needs=needs, driver=machine.driver)
        sheet.fact("gpu.driver_too_old", True, f"{machine.driver}, CUDA {wanted[0]} needs {needs}")
    elif wanted and machine.cuda and wanted > machine.cuda:
        sheet.add("gpu.driver-age", "note", shown, wanted=f"{wanted[0]}.{wanted[1]}")
    else:
        sheet.add("gpu.driver-age", "ok", shown)


def _torch_cuda(pid: int | None) -> tuple[int, int] | None:
    """The CUDA version that the server's torch was built for, from its version.py; torch is not imported."""
    if pid is None or (python := interpreter(pid)) is None:
        return None
    library = PROC / str(pid) / "root" / str(python.parent.parent)[1:]
    for path in library.glob("lib*/python3*/*-packages/torch/version.py"):
        if found := _TORCH_CUDA.search(read(path)):
            major, _, minor = found[1].partition(".")
            return int(major), int(minor.partition(".")[0] or 0)
    return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)


def _card(sheet: Sheet, card: Card, processes: tuple[Any, ...]) -> None:
    at = f"GPU {card.index}"
    if card.lost:
        sheet.add("gpu.lost", "bad", at, detail=card.lost)
        sheet.fact("gpu.lost", True, card.lost, at)
        return
    free, total = _gib(card.free), _gib(card.total)
    capability = f", sm_{card.capability[0]}{card.capability[1]}" if card.capability else ""
    line = f"{at}: {card.name}{capability}, {free} / {total} GiB free"
    if card.capability is not None and card.capability < _OLDEST_CAPABILITY:
        sheet.add("gpu.card", "bad", line)
    else:
        sheet.add("gpu.card", "ok", line)
    own = {process.pid for process in processes}
    others = [holder for holder in card.holders if holder.pid not in own]
    if others:
        taken = sum(holder.bytes for holder in others)
        who = ", ".join(f"{h.name} (pid {h.pid}, {h.bytes / 2**30:.1f} GiB)" for h in others[:4])
        ghosts = [h for h in others if h.alive is False]
        sheet.add("gpu.holders", "note", at, who=who, gib=_gib(taken))
        if ghosts:
            sheet.add("gpu.ghosts", "note", at, pids=", ".join(str(h.pid) for h in ghosts))
        sheet.fact("gpu.other_processes_gib", round(taken / 2**30, 2), who, at)
    _health(sheet, card, at)


def _health(sheet: Sheet, card: Card, at: str) -> None:
    if card.ecc_uncorrected:
        sheet.add("gpu.ecc", "bad", at, count=card.ecc_uncorrected)
        sheet.fact("gpu.ecc_uncorrected", card.ecc_uncorrected, process=at)
    if card.rows is not None and (card.rows[2] or card.rows[3]):
        status = "bad" if card.rows[3] else "note"
        sheet.add("gpu.rows", "bad" if card.rows[3] else "note", at, pending=card.rows[2], failed=card.rows[3])
        sheet.fact("gpu.row_remapping", "failed" if status == "bad" else "pending", process=at)
    if card.slowed:
        sheet.add("gpu.slowed", "bad" if set(card.slowed) - {"power-cap"} else "note", at, reasons=", ".join(card.slowed),
                  clock=card.clock or 0, most=card.clock_most or 0, temperature=card.temperature or 0, power=round(card.power or 0), limit=round(card.power_limit or 0))  # fmt: skip
        sheet.fact("gpu.slowed_by", ", ".join(card.slowed), process=at)
    if card.pcie is not None and card.pcie_most is not None:
        now, most = f"{card.pcie[0]} x{card.pcie[1]}", f"{card.pcie_most[0]} x{card.pcie_most[1]}"
        if card.pcie[1] < card.pcie_most[1]:
            sheet.add("gpu.pcie", "bad", at, now=now, most=most)
            sheet.fact("gpu.pcie_narrow", True, f"{now} of {most}", at)
        elif card.pcie[0] < card.pcie_most[0] and (card.clock or 0) > (card.clock_most or 1) // 2:
            sheet.add("gpu.pcie", "note", at, now=now, most=most)  # idle cards lower it themselves
    if card.links_up and card.links_down:
        sheet.add("gpu.nvlink", "bad", at, up=card.links_up, down=card.links_down)
        sheet.fact("gpu.nvlinks_down", card.links_down, process=at)
    if card.mig:
        sheet.add("gpu.mig", "note", at)
    if card.exclusive:
        sheet.add("gpu.exclusive", "bad", at)
    if card.fabric is not None and card.fabric != "completed":
        sheet.add("gpu.fabric", "bad", at, state=card.fabric)
        sheet.fact("gpu.fabric", card.fabric, process=at)


def _pairs(sheet: Sheet, machine: Machine) -> None:
    if len(machine.cards) < 2:
        return
    shut = [f"{a}-{b}" for (a, b), works in machine.p2p.items() if not works]
    if shut:
        sheet.add("gpu.p2p", "note", ", ".join(shut[:12]))
        sheet.fact("gpu.p2p_missing", len(shut), ", ".join(shut[:12]))
    elif machine.p2p:
        sheet.add("gpu.p2p", "ok", len(machine.p2p))
    speed = link_gb_per_s(machine)
    if speed is not None:
        sheet.add("gpu.link", "ok", round(speed, 1), unit="GB/s")
