"""`profile_server`: a short run of the server's own profiler, and what its trace says: top kernels and gaps."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tools.outbound import AddressError, Limits, Outbound, OutboundError
from tools.processes import PROC, Server, same_namespace
from tools.registry import ActionError, Context, action
from tools.sanity.choose import find_server, only_here
from tools.sanity.results import Asked, Report, Sheet, plain

_START = Limits(deadline_s=15.0, connect_s=2.0, max_bytes=1 << 20)
#: Stopping writes the trace, which takes minutes for long ones; a short run writes it in seconds.
_STOP = Limits(deadline_s=200.0, connect_s=2.0, max_bytes=1 << 20)
_MOST_TRACE = 4 << 30
_MOST_LINE = 1 << 20
_MOST_EVENTS = 1_000_000
_READ_S = 60.0
_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
_CPU = ("cpu_op",)


class ProfileInput(Asked):
    """Which server, and for how long."""

    url: str = Field(description="address of the server")
    seconds: float = Field(3.0, ge=0.5, le=60, description="how long the profiler runs")
    trace_folder: str | None = Field(None, description="folder of the traces, where it cannot be found")


class Hot(BaseModel):
    """One kernel or operator: how long it ran, how often, and its share of all."""

    name: str
    seconds: float
    calls: int
    share: float


class ProfileReport(Report):
    """What the trace says. ``busy`` is the share of time in which anything ran; ``gap_ms`` the longest pause."""

    trace: str = ""
    device: str = ""
    top: list[Hot] = Field(default_factory=list)
    busy: float | None = None
    gap_ms: float | None = None


@action(name="profile_server", title="Profile of a running server", effect="loads", deadline_s=300)
async def profile_server(given: ProfileInput, context: Context) -> ProfileReport:
    """Starts the server's torch profiler, stops it after some seconds, and names the top kernels and gaps of the trace. The
    profiler must have been enabled at the server's start. Raises ``ActionError`` with what is missing."""
    only_here(context, trace_folder=given.trace_folder)
    sheet = Sheet("profile_server", given.lang)
    base = given.url.rstrip("/")
    since = time.time()
    try:
        async with Outbound(context.policy) as outbound:
            context.report(0.1, sheet.word("profile-starting"))
            started = await outbound.post(f"{base}/start_profile", {}, limits=_START)
            if started.status == 404:
                raise ActionError(sheet.word("profile-not-enabled"))
            if started.status != 200:
                raise ActionError(sheet.word("profile-refused", status=started.status, detail=started.text[:200]))
            try:
                context.report(0.3, sheet.word("profile-running", seconds=given.seconds))
                await asyncio.sleep(given.seconds)
            finally:  # whatever happens to us, the server must not go on profiling
                context.report(0.6, sheet.word("profile-stopping"))
                await asyncio.shield(outbound.post(f"{base}/stop_profile", {}, limits=_STOP))
    except (OutboundError, AddressError) as error:
        raise ActionError(str(error)) from None
    server = await asyncio.to_thread(find_server, given.pid)
    folder = _folder(given, server)
    if folder is None:
        raise ActionError(sheet.word("profile-no-folder"))
    path = await asyncio.to_thread(_newest, folder, since)
    if path is None:
        raise ActionError(sheet.word("profile-no-trace", folder=str(folder)))
    context.report(0.8, path.name)
    events = await asyncio.to_thread(read_trace, path)
    return _judged(sheet, path, events)


def _folder(given: ProfileInput, server: Server | None) -> Path | None:
    """Where the server writes its traces: --profiler-config of newer versions, VLLM_TORCH_PROFILER_DIR of older ones."""
    if given.trace_folder:
        return Path(given.trace_folder)
    if server is None:
        return None
    root = PROC / str(server.main.pid) / "root" if same_namespace(server.main.pid, "mnt") is False else Path("/")
    named = server.environment.get("VLLM_TORCH_PROFILER_DIR")
    for word in server.main.command:
        _, _, value = word.partition("profiler-config.torch_profiler_dir=")
        named = value or named
        if word.startswith("{") or "={" in word:
            try:
                table = json.loads(word[word.index("{") :])
            except ValueError:
                continue
            if isinstance(table, dict) and isinstance(table.get("torch_profiler_dir"), str):
                named = table["torch_profiler_dir"]
    words = list(server.main.command)
    for flag in ("--profiler-config.torch_profiler_dir",):
        if flag in words and words.index(flag) + 1 < len(words):
            named = words[words.index(flag) + 1]
    return root / named.lstrip("/") if named else None


def _newest(folder: Path, since: float) -> Path | None:
    """The largest trace written since the profiler was started; a rank's own comes before the front end's."""
    if not folder.is_dir():
        return None
    found = [p for p in folder.rglob("*.json*") if p.is_file() and p.stat().st_mtime >= since - 1 and "trace" in p.name]
    return max(found, key=lambda p: ("rank" in p.name, p.stat().st_size), default=None)


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The kernels and operators of a Chrome trace, plain or gzipped, as torch writes it: an event begins and ends with a
    brace on a line of its own. Read line by line, because a second of a busy server is hundreds of megabytes. Raises
    :class:`ActionError` for what cannot be read; of a trace that is too long the beginning is read."""
    found: list[dict[str, Any]] = []
    block: list[str] | None = None
    wanted = tuple(f'"cat": "{name}"' for name in (*_KERNELS, *_CPU))
    size, end = 0, time.monotonic() + _READ_S
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") if path.suffix == ".gz" else path.open(encoding="utf-8", errors="replace") as lines:  # fmt: skip
            while line := lines.readline(_MOST_LINE):
                size += len(line)
                if block is None:
                    block = [] if line == "  {\n" else None
                    continue
                if len(block) == 1 and not any(name in part for part in (block[0], line) for name in wanted):
                    block = None  # the first two lines hold phase and category
                    continue
                if not line.startswith("  }"):
                    block.append(line)
                    continue
                if event := _event(block):
                    found.append(event)
                block = None
                if len(found) >= _MOST_EVENTS or size > _MOST_TRACE or time.monotonic() > end:
                    break
    except (OSError, EOFError) as error:
        raise ActionError(f"The trace {path.name} cannot be read: {plain(error)}.") from None
    return found


def _event(block: list[str]) -> dict[str, Any] | None:
    """One event of its lines, with what is needed of it; None for another kind, or one that is broken."""
    if not block:
        return None
    try:
        raw = json.loads("{" + "".join(block) + "}")
        if raw.get("ph") != "X":
            return None
        return {key: raw[key] for key in ("name", "cat", "ts", "dur", "pid", "tid")}
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None


def top(events: Iterable[dict[str, Any]], most: int = 10) -> list[Hot]:
    """The events that took most time, summed by name; times of a trace are in microseconds."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        name = str(event.get("name", "?"))[:160]
        seconds[name] += float(event["dur"]) / 1e6
        calls[name] += 1
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds, key=lambda name: (-seconds[name], name))[:most]
    return [Hot(name=plain(n, 160), seconds=round(seconds[n], 6), calls=calls[n], share=round(seconds[n] / total, 4)) for n in ranked]  # fmt: skip


def spans(events: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """(share of the time from the first to the last event in which something ran, longest pause in ms)."""
    times = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if isinstance(e.get("ts"), int | float))  # fmt: skip
    if not times:
        return 0.0, 0.0
    busy, gap, end = 0.0, 0.0, times[0][0]
    for start, stop in times:
        gap = max(gap, start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - times[0][0]
    return (busy / whole if whole else 1.0), gap / 1000


def leaves(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CPU operators that call no other one: an outer operator's time would count twice."""
    kept: list[dict[str, Any]] = []
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_thread[event.get("pid"), event.get("tid")].append(event)
    for rows in by_thread.values():
        rows.sort(key=lambda e: (float(e["ts"]), -float(e["dur"])))
        for event, following in zip(rows, [*rows[1:], None], strict=True):
            if following is None or float(following["ts"]) >= float(event["ts"]) + float(event["dur"]):
                kept.append(event)
    return kept


def _judged(sheet: Sheet, path: Path, events: list[dict[str, Any]]) -> ProfileReport:
    kernels = [e for e in events if e.get("cat") in _KERNELS]
    device = "gpu" if kernels else "cpu"
    chosen = kernels or leaves([e for e in events if e.get("cat") in _CPU])
    if not chosen:
        sheet.add("profile.empty", "note", path.name)
        return ProfileReport(**sheet.report().model_dump(), trace=path.name, device=device)
    hottest = top(chosen)
    busy, gap = spans(chosen)
    for hot in hottest:
        sheet.add("profile.hot", "ok", f"{hot.share:.1%}  {hot.seconds * 1000:.1f} ms  x{hot.calls}  {hot.name}")
    sheet.add("profile.busy", "note" if device == "gpu" and busy < 0.7 else "ok", f"{busy:.0%}", gap=round(gap, 1))
    summary = sheet.word(f"profile-summary-{device}", busy=f"{busy:.0%}", gap=round(gap, 1), name=hottest[0].name, share=f"{hottest[0].share:.0%}")  # fmt: skip
    return ProfileReport(**sheet.report(summary).model_dump(), trace=path.name, device=device, top=hottest, busy=round(busy, 4), gap_ms=round(gap, 3))  # fmt: skip
