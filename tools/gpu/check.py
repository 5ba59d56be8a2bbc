"""`check_gpu`: the cards, their driver, who holds their memory, and what slows or breaks them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import Any

from tools.gpu.cards import Card, Machine, link_gb_per_s
from tools.gpu.facts import AmdCards, GpuFacts, Unusable, gather, torch_cuda_of
from tools.processes import PROC, interpreter
from tools.registry import Context, action
from tools.sanity.choose import find_server
from tools.sanity.results import Asked, Report, Sheet

#: The oldest driver for each CUDA major version (CUDA Toolkit release notes, table of minor version compatibility).
OLDEST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
#: vLLM's own kernels are built from compute capability 7.0 on, and 7.5 from 0.12 (its installation page).
_OLDEST_CAPABILITY = (7, 0)


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
    found = gather(module, _torch_cuda(server.main.pid if server else None))
    judge(sheet, found, {process.pid for process in server.processes} if server else set())
    return sheet.report()


def judge(sheet: Sheet, found: GpuFacts, own: Collection[int] = ()) -> None:
    """Rows and facts for what was found; ``own`` are the processes that may hold memory."""
    _kernel(sheet, found)
    if found.amd is not None:
        _amd(sheet, found.amd)
    machine = found.machine
    if machine is None:
        _without_nvml(sheet, found.unusable or Unusable("?"))
        return
    _driver(sheet, machine, found.torch_cuda)
    for card in machine.cards:
        _card(sheet, card, own)
    _pairs(sheet, machine)
    sheet.fact("gpu.count", len(machine.cards))
    if machine.cards:
        sheet.fact("gpu.name", machine.cards[0].name)
    if not found.events and not found.no_log:
        sheet.add("gpu.xid", "ok", 0)


def _kernel(sheet: Sheet, found: GpuFacts) -> None:
    """Xid events of the kernel's log; the newest of each kind."""
    from knowledge.catalog import load

    if found.no_log:
        sheet.add("gpu.xid", "unknown", why=found.no_log)
        sheet.unknown("gpu.xid", found.no_log)
        return
    events = load().gpu_events
    for seen in found.events:
        event = events.get(f"xid-{seen.number}")
        meaning = f"{event.name}: {event.meaning[sheet.lang]}" if event else ""
        sheet.add("gpu.xid", "bad", seen.number, quote=seen.line, bus=seen.bus, meaning=meaning)
        sheet.fact("gpu.xid", seen.number, seen.line)


def _without_nvml(sheet: Sheet, seen: Unusable) -> None:
    if seen.pci or seen.driver or any(name.startswith("nvidia") for name in seen.files):
        sheet.add("gpu.driver", "bad", detail=seen.why, cards=seen.pci, nodes=", ".join(seen.files) or "-")
    else:
        sheet.add("gpu.none", "note", looked="NVML, /dev, /proc/driver/nvidia, PCI", detail=seen.why)
        sheet.fact("gpu.count", 0, seen.why)


def _amd(sheet: Sheet, seen: AmdCards) -> None:
    if not seen.installed:
        sheet.add("gpu.amd", "unknown")
    for line in seen.lines:
        sheet.add("gpu.card", "ok", line)
    if seen.error:
        sheet.add("gpu.driver", "bad", detail=seen.error, cards=0, nodes="/dev/kfd")


def _driver(sheet: Sheet, machine: Machine, wanted: tuple[int, int] | None) -> None:
    sheet.fact("gpu.driver", machine.driver)
    shown = f"{machine.driver}, CUDA {machine.cuda[0]}.{machine.cuda[1]}" if machine.cuda else machine.driver
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
    found = (torch_cuda_of(path) for path in library.glob("lib*/python3*/*-packages/torch/version.py"))
    return next((version for version in found if version is not None), None)


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)


def _card(sheet: Sheet, card: Card, own: Collection[int]) -> None:
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
    shut = [pair for pair, works in machine.p2p.items() if not works]
    if shut:
        sheet.add("gpu.p2p", "note", ", ".join(shut[:12]))
        sheet.fact("gpu.p2p_missing", len(shut), ", ".join(shut[:12]))
    elif machine.p2p:
        sheet.add("gpu.p2p", "ok", len(machine.p2p))
    speed = link_gb_per_s(machine)
    if speed is not None:
        sheet.add("gpu.link", "ok", round(speed, 1), unit="GB/s")
