"""`measure_loading`: how fast the model's files can be read here, and so whether disk or device limits the loading."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from pathlib import Path

from pydantic import Field

from tools.host.check import View, file_system, model_folder, read_mounts
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
    took_s: float | None = Field(None, gt=0, description="seconds that loading took, to compare with")
    ranks: int = Field(1, ge=1, le=64, description="ranks that read the files at the same time")


@action(name="measure_loading", title="Read speed of the model's files", effect="loads", deadline_s=60)
async def measure_loading(given: LoadingInput, context: Context) -> Report:
    """Reads up to 4 GiB of the weights past the page cache, for at most 20 s, and says how long reading them all takes.
    Raises ``ActionError`` where there are no weights."""
    only_here(context, model=given.model)
    server = await asyncio.to_thread(find_server, given.pid) if given.pid or given.model is None else None
    folder = model_folder(server, given.model)
    view = View(server)
    root = view.at(folder) if folder is not None else None
    if folder is None or root is None or not root.is_dir():
        raise ActionError("There is no local folder of a model to read; give it with --model FOLDER.")
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
    expected = size * (given.ranks if kind.startswith(("nfs", "fuse", "ceph", "9p")) else 1) / rate
    sheet.add("loading.expected", "ok", round(expected, 1), unit="s", ranks=given.ranks)
    if given.took_s is not None:
        limit = "disk" if expected > 0.6 * given.took_s else "device"
        sheet.add(f"loading.limit-{limit}", "note", round(given.took_s, 1), unit="s", expected=round(expected, 1))
        sheet.fact("loading.limit", limit)
    return sheet.report()


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
