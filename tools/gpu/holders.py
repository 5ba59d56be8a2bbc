"""Whether somebody uses a GPU, for tests that must not disturb them."""

from __future__ import annotations

from typing import Any

from tools.gpu.cards import Holder, read_holders
from tools.gpu.nvml import GpuLostError, NoNvmlError, opened
from tools.registry import ActionError

#: Memory that is taken without any process being listed counts as somebody from here on: a container does not see the
#: host's processes. An idle card's driver takes up to about 0.6 GiB (seen on H100 with driver 550).
UNSEEN_BYTES = 1 << 30


def busy(module: Any = None) -> list[Holder]:
    """Who holds GPU memory, the largest first; empty where there is no NVIDIA card."""
    found: list[Holder] = []
    try:
        with opened(module) as nvml:
            for index in range(nvml.ask("nvmlDeviceGetCount") or 0):
                try:
                    handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
                    memory = nvml.ask("nvmlDeviceGetMemoryInfo", handle) if handle is not None else None
                    holders = read_holders(nvml, handle, index) if handle is not None else ()
                except GpuLostError:
                    continue
                found += holders
                if not holders and memory is not None and int(memory.used) >= UNSEEN_BYTES:
                    found.append(Holder(index, 0, "a process that is not visible here", int(memory.used), None))
    except NoNvmlError:
        return []
    return sorted(found, key=lambda holder: -holder.bytes)


def refuse_busy(permitted: bool, *, cpu_only: bool = False) -> None:
    """Raises ``ActionError``, which names the largest holder, where somebody uses a GPU and that was not agreed to.
    ``cpu_only`` says that the test can leave the GPUs out."""
    held = busy()
    if not held or permitted:
        return
    gpu, pid, name, gib = held[0].gpu, held[0].pid, held[0].name, f"{held[0].bytes / 2**30:.1f}"
    if cpu_only:
        raise ActionError(
            f"GPU {gpu} is in use: process {pid} ({name}) holds {gib} GiB. The test would disturb it. Give --cpu-only, stop that "
            "process, or give --on-busy-gpu if it may be disturbed."
        )
    raise ActionError(
        f"GPU {gpu} is in use: process {pid} ({name}) holds {gib} GiB. The test would disturb it. Stop that process, or give "
        "--on-busy-gpu if it may be disturbed."
    )
