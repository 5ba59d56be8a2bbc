"""`measure_loading`: how fast the model's files can be read here, how long the same start takes without reading them, and so
whether download, disk or device limits it."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from tools.gpu.holders import refuse_busy
from tools.host.check import View, argument, files_of_model
from tools.host.facts import file_system, read_mounts
from tools.processes import Server, log_tail
from tools.registry import ActionError, Context, action
from tools.sanity.choose import choose, find_server, only_here
from tools.sanity.dummy_load import DummyLoad, engine_arguments, load_dummy, refuse_without_room
from tools.sanity.results import Asked, Report, Sheet

_CHUNK = 8 << 20
#: Bytes read at most, and seconds that reading may take.
MOST_BYTES = 4 << 30
MOST_S = 20.0
Limit = Literal["download", "disk", "device", "weights"]
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
    dummy: bool = Field(False, description="also load the model with invented weights, which reads no file")
    python: str | None = Field(None, description="with dummy: vLLM's interpreter; that of the server unless given")
    on_busy_gpu: bool = Field(False, description="with dummy: run although another process holds GPU memory")


class LoadingReport(Report):
    """The result; ``log`` holds what vLLM printed where the load with invented weights failed."""

    log: str = ""


@action(name="measure_loading", title="Read speed of the model's files", effect="loads", deadline_s=480)
async def measure_loading(given: LoadingInput, context: Context) -> LoadingReport:
    """Reads up to 4 GiB of the weights past the page cache, for at most 20 s, and says how long reading them all takes. Asked
    for it, starts vLLM's engine with invented weights besides, for at most seven minutes.
    Raises ``ActionError`` where there are no weights, no interpreter, no room, or somebody uses the GPU."""
    only_here(context, model=given.model, python=given.python)
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
    chosen = await asyncio.to_thread(choose, given.python, given.pid) if given.dummy else None
    if chosen is not None:
        await asyncio.to_thread(refuse_busy, given.on_busy_gpu)
        await asyncio.to_thread(refuse_without_room, size)
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
    log, dummy = "", None
    if chosen is not None:
        arguments = engine_arguments(server, folder, ranks, share=given.on_busy_gpu)
        dummy = await load_dummy(chosen, arguments, context, sheet)
        log = dummy.output
    times = _times(given, server)
    if times is not None:
        _limit(sheet, times, expected, dummy)
    return LoadingReport(**sheet.report().model_dump(), log=log)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a start: ``weights`` of loading the weights, ``model`` of making the model as well, both without the
    ``download`` before."""

    weights: float
    model: float
    download: float = 0.0


def _limit(sheet: Sheet, times: Times, expected: float, dummy: DummyLoad | None) -> None:
    known = dummy.seconds if dummy is not None else None
    limit = limit_of(times, expected, known)
    row = f"loading.limit-{limit}" if known is None or limit == "download" else f"loading.limit-{limit}-measured"
    took = round(times.weights if known is None else times.model, 1)
    download, invented = round(times.download, 1), round(known or 0.0, 1)
    sheet.add(row, "note", took, unit="s", expected=round(expected, 1), download=download, dummy=invented)
    sheet.fact("loading.limit", limit)


#: From this share of the seconds on, one thing explains the rest.
_MOST_OF = 0.6


def limit_of(times: Times, expected: float, dummy: float | None = None) -> Limit:
    """What took most of a start: seconds that reading the weights takes here (``expected``) and that the same start takes
    without any (``dummy``), held against what it took.

    Without ``dummy`` what is not the disk can only be said to be the device. With it the device is measured, and a rest that
    neither explains is named as what it is: the way of real ``weights`` between disk and device, or a slower disk then.

    >>> limit_of(Times(weights=100, model=110), expected=10, dummy=95)
    'device'
    >>> limit_of(Times(weights=100, model=110), expected=80, dummy=8)
    'disk'
    >>> limit_of(Times(weights=100, model=110), expected=10, dummy=8)
    'weights'
    """
    if times.download > times.weights:
        return "download"
    if dummy is None:
        return "disk" if expected > _MOST_OF * times.weights else "device"
    if dummy > _MOST_OF * times.model and dummy >= expected:
        return "device"
    return "disk" if expected > _MOST_OF * max(0.0, times.model - dummy) else "weights"


#: What vLLM prints of it (default_loader.py, base_loader.py, weight_utils.py and the model runners, 0.4 to 0.32.0).
_WEIGHTS_TOOK = re.compile(r"Loading weights took (\d+(?:\.\d+)?) seconds")
_MADE = re.compile(r"Initializing model took (\d+(?:\.\d+)?) seconds")
_MODEL_TOOK = re.compile(r"(?:Model loading|Loading model weights) took .*? and (\d+(?:\.\d+)?) seconds")
_DOWNLOAD = re.compile(r"Time spent downloading weights for \S+: (\d+(?:\.\d+)?) seconds")


def _times(given: LoadingInput, server: Server | None) -> Times | None:
    """What a start took, of the slowest rank, as given or as the server's log says; None where nobody does."""
    text = log_tail(server.main.pid) if server is not None else ""
    patterns = (_WEIGHTS_TOOK, _MADE, _MODEL_TOOK, _DOWNLOAD)
    weights, made, model, fetched = (max(map(float, found.findall(text)), default=None) for found in patterns)
    download = given.download_s if given.download_s is not None else fetched or 0.0
    if given.took_s is not None:
        return Times(given.took_s, given.took_s, download)
    if model is not None:
        model = max(model - (fetched or 0.0), weights or 0.0)  # vLLM downloads inside what it calls loading the model
    elif weights is not None:
        model = weights + (made or 0.0)
    if model is None:
        return None
    return Times(weights if weights is not None else model, model, download)


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
