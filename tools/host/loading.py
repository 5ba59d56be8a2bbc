"""`measure_loading`: how fast the model's files can be read here, and so whether download, disk or device limits the start."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import time
from pathlib import Path

from pydantic import Field

from tools.host.check import View, argument, files_of_model
from tools.host.facts import file_system, read_mounts
from tools.processes import Server, log_tail
from tools.registry import ActionError, Context, action
from tools.sanity.choose import find_server, only_here
from tools.sanity.results import Asked, Report, Sheet

_CHUNK = 8 << 20
#: Bytes read at most, and seconds that reading may take.
MOST_BYTES = 4 << 30
MOST_S = 20.0
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf", ".pth")


class LoadingInput(Asked):
    """Which folder, and what is known of a start that was slow."""

    model: str | None = Field(None, description="folder of the weights; that of the running server unless given")
    took_s: float | None = Field(
        None, gt=0, description="seconds that loading took; from the server's log unless given"
    )
    download_s: float | None = Field(None, ge=0, description="seconds of download before; from the log unless given")
    ranks: int | None = Field(
        None, ge=1, le=64, description="ranks that read the files at once; the server's unless given"
    )


@action(name="measure_loading", title="Read speed of the model's files", effect="loads", deadline_s=60)
async def measure_loading(given: LoadingInput, context: Context) -> Report:
    """Reads up to 4 GiB of the weights past the page cache, for at most 20 s, and says how long reading them all takes.
    Raises ``ActionError`` where there are no weights."""
    only_here(context, model=given.model)
    server = await asyncio.to_thread(find_server, given.pid) if given.pid or given.model is None else None
    view = View(server)
    folder = files_of_model(view, given.model)
    if folder is None:
        raise ActionError("There is no local folder of a model to read; give it with --model FOLDER.")
    root = view.at(folder)
    files = sorted((f for f in root.iterdir() if f.suffix in _WEIGHTS and f.is_file()), key=lambda f: -f.stat().st_size)
    if not files:
        raise ActionError(f"{folder} holds no weights ({', '.join(_WEIGHTS)}).")
    sheet = Sheet("measure_loading", given.lang)
    size = sum(f.stat().st_size for f in files)
    stop = [False]
    try:
        count, seconds, direct = await asyncio.to_thread(_read, files, context, stop)
    finally:
        stop[0] = True
    rate = count / max(seconds, 1e-6)
    gib = round(rate / 2**30, 3)
    sheet.add("loading.disk", "ok", gib, unit="GiB/s", files=len(files))
    kind = file_system(folder, read_mounts(view))
    sheet.add("loading.files", "ok", f"{size / 2**30:.2f} GiB, {kind}")
    if not direct:
        sheet.add("loading.cached", "note")
    sheet.fact("loading.disk_gib_per_s", gib)
    ranks = given.ranks or _ranks(server)
    expected = size * (ranks if kind.startswith(("nfs", "fuse", "ceph", "9p")) else 1) / rate
    sheet.add("loading.expected", "ok", round(expected, 1), unit="s", ranks=ranks)
    _limit(sheet, expected, *_times(given, server))
    return sheet.report()


def _limit(sheet: Sheet, expected: float, took: float | None, download: float | None) -> None:
    """Which of the three took most of the start: what reading alone takes is held against what loading took."""
    if took is None:
        return
    limit = "download" if (download or 0.0) > took else "disk" if expected > 0.6 * took else "device"
    sheet.add(f"loading.limit-{limit}", "note", round(took, 1), unit="s", expected=round(expected, 1), download=round(download or 0.0, 1))  # fmt: skip
    sheet.fact("loading.limit", limit)


#: What vLLM prints of it (default_loader.py and weight_utils.py, 0.4 to 0.32.0).
_TOOK = re.compile(r"Loading weights took (\d+(?:\.\d+)?) seconds")
_DOWNLOAD = re.compile(r"Time spent downloading weights for \S+: (\d+(?:\.\d+)?) seconds")


def _times(given: LoadingInput, server: Server | None) -> tuple[float | None, float | None]:
    """Seconds of loading and of the download before it, of the slowest rank, as given or as the server's log says."""
    text = log_tail(server.main.pid) if server is not None else ""
    took, download = (max(map(float, found.findall(text)), default=None) for found in (_TOOK, _DOWNLOAD))
    return given.took_s or took, given.download_s if given.download_s is not None else download


def _ranks(server: Server | None) -> int:
    """The ranks of one node that read the files: --tensor-parallel-size of the server."""
    value = argument(server, "--tensor-parallel-size", "--tensor_parallel_size", "-tp") if server is not None else None
    return int(value) if value is not None and value.isascii() and value.isdigit() and 0 < int(value) <= 64 else 1


def _read(files: list[Path], context: Context, stop: list[bool]) -> tuple[int, float, bool]:
    """Bytes, seconds, and whether the page cache was passed by (O_DIRECT, which not every file system has)."""
    done, started, direct = 0, time.monotonic(), True
    with mmap.mmap(-1, _CHUNK) as aligned:  # O_DIRECT wants an aligned buffer
        for path in files:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                direct = False
            try:
                while count := os.readv(descriptor, [aligned]):
                    done += count
                    if stop[0] or done >= MOST_BYTES or time.monotonic() - started > MOST_S:
                        return done, time.monotonic() - started, direct
                    context.report(min(done / MOST_BYTES, 1.0), f"{done >> 20} MiB")
            finally:
                os.close(descriptor)
    return done, time.monotonic() - started, direct
