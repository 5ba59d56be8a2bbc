"""What `check_gpu` needs to know of a machine, as plain data. Nothing here judges.

Stands alone (standard library, Python 3.9, and pynvml), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.cards import Machine, read_machine
from tools.gpu.nvml import NoNvmlError, opened
from tools.kernel_log import kernel_log
from tools.proc import read

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([^)]{1,60})\): (\d{1,3})\b")
_TORCH_CUDA = re.compile(r"^cuda(?:: [^=]+)? = '([\d.]+)'", re.MULTILINE)
#: Of the Xid events, the newest of each kind, so many are kept.
_MOST_EVENTS = 8


@dataclass(frozen=True)
class Xid:
    """One of NVIDIA's events in the kernel's log: the card's PCI address, the event's number, and the line."""

    bus: str
    number: int
    line: str


@dataclass(frozen=True)
class Unusable:
    """Why NVML cannot be used, and what of GPUs is seen without it: files in /dev, cards on PCI, a driver that is loaded."""

    why: str
    files: tuple[str, ...] = ()
    pci: int = 0
    driver: bool = False


@dataclass(frozen=True)
class AmdCards:
    """AMD cards, a line each; ``error`` is what amdsmi said instead, ``installed`` whether there is one."""

    lines: tuple[str, ...] = ()
    error: str = ""
    installed: bool = True


@dataclass(frozen=True)
class GpuFacts:
    """``machine`` or why there is none (``unusable``); ``events`` are the newest Xids of ``event_kinds`` kinds, and
    ``no_log`` is why the kernel's log could not be read; ``torch_cuda`` is the CUDA that the server's torch was built for."""

    machine: Machine | None = None
    unusable: Unusable | None = None
    events: tuple[Xid, ...] = ()
    event_kinds: int = 0
    no_log: str = ""
    amd: AmdCards | None = None
    torch_cuda: tuple[int, int] | None = None


def gather(module: Any = None, torch_cuda: tuple[int, int] | None = None) -> GpuFacts:
    """Look. ``module`` stands in for pynvml in tests."""
    log = kernel_log()
    newest: dict[tuple[str, int], str] = {}
    for line in log.lines:
        if found := _XID.search(line):
            newest[found[1], int(found[2])] = line
    events = tuple(Xid(bus, number, line) for (bus, number), line in list(newest.items())[-_MOST_EVENTS:])
    machine, unusable, amd = None, None, None
    try:
        with opened(module) as nvml:
            machine = read_machine(nvml)
    except NoNvmlError as error:
        unusable, amd = _without_nvml(error), _amd()
    return GpuFacts(machine, unusable, events, len(newest), "" if log.lines else log.why, amd, torch_cuda)


def _without_nvml(error: NoNvmlError) -> Unusable:
    """There is no usable NVML: no GPU at all, a driver that is not loaded, or a container that got none."""
    pci = [
        path.name
        for path in Path("/sys/bus/pci/devices").glob("*")
        if read(path / "vendor", 16).strip() == "0x10de" and read(path / "class", 16).startswith(("0x0302", "0x0300"))
    ]
    return Unusable(
        why=str(error),
        files=tuple(sorted(node.name for node in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+|kfd|accel\d+", node.name))),
        pci=len(pci),
        driver=Path("/proc/driver/nvidia/version").exists(),
    )  # fmt: skip


def _amd() -> AmdCards | None:
    """AMD cards through amdsmi, where it is installed; None where the kernel has no such cards."""
    if not Path("/dev/kfd").exists():
        return None
    try:
        import amdsmi
    except (ImportError, OSError, KeyError):
        return AmdCards(installed=False)
    lines: list[str] = []
    try:
        amdsmi.amdsmi_init()
        try:
            for number, handle in enumerate(amdsmi.amdsmi_get_processor_handles()):
                board = amdsmi.amdsmi_get_gpu_asic_info(handle)
                used = amdsmi.amdsmi_get_gpu_vram_usage(handle)
                lines.append(f"{number}: {board.get('market_name', '?')}, {used.get('vram_used')} / {used.get('vram_total')} MiB")  # fmt: skip
        finally:
            amdsmi.amdsmi_shut_down()
    except amdsmi.AmdSmiException as error:
        return AmdCards(tuple(lines), error=str(error))
    return AmdCards(tuple(lines))


def torch_cuda_of(version_py: Path) -> tuple[int, int] | None:
    """The CUDA version that a torch was built for, from its version.py; torch is not imported."""
    if found := _TORCH_CUDA.search(read(version_py)):
        major, _, minor = found[1].partition(".")
        return int(major), int(minor.partition(".")[0] or 0)
    return None
