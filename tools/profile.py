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

from tools.capture.judging import progress_of
from tools.outbound import AddressError, Limits, Outbound, OutboundError
from tools.processes import PROC, Server, same_namespace
from tools.registry import ActionError, Context, action
from tools.sanity.choose import find_server, only_here, server_at
from tools.sanity.results import Asked, Report, Sheet, plain

_LOOK = Limits(deadline_s=10.0, connect_s=2.0, max_bytes=8 << 20, cut=True)
_START = Limits(deadline_s=15.0, connect_s=2.0, max_bytes=1 << 20)
#: Stopping writes the trace: seconds after a short run, minutes after a long one.
_STOP = Limits(deadline_s=400.0, connect_s=2.0, max_bytes=1 << 20)
_REST_S = 1.0  # no request runs, and none was answered in this time: the server is at rest
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


class Gap(BaseModel):
    """One pause, in which nothing ran: its length, when it began after the trace's first event, and what ran around it."""

    ms: float
    at_ms: float
    after: str
    before: str


class ProfileReport(Report):
    """What the trace says. ``busy`` is the share of time in which anything ran; ``gap_ms`` the longest of the pauses."""

    trace: str = ""
    device: str = ""
    top: list[Hot] = Field(default_factory=list)
    busy: float | None = None
    gap_ms: float | None = None
    gaps: list[Gap] = Field(default_factory=list)


@action(name="profile_server", title="Profile of a running server", effect="loads", deadline_s=600)
async def profile_server(given: ProfileInput, context: Context) -> ProfileReport:
    """Starts the server's torch profiler, stops it after some seconds, and names the top kernels and gaps of the trace. The
    profiler must have been enabled at the server's start. Raises ``ActionError`` with what is missing."""
    only_here(context, trace_folder=given.trace_folder)
    sheet = Sheet("profile_server", given.lang)
    base = given.url.rstrip("/")
    server = await asyncio.to_thread(find_server, given.pid) if given.pid else await asyncio.to_thread(server_at, base)
    folder = _folder(given, server)
    since = time.time()
    try:
        async with Outbound(context.policy) as outbound:
            await _refuse(outbound, base, sheet, folder)
            await _run(outbound, base, sheet, given.seconds, context)
    except (OutboundError, AddressError) as error:
        raise ActionError(str(error)) from None
    assert folder is not None  # noqa: S101 (else it was refused)
    path = await asyncio.to_thread(_newest, folder, since)
    if path is None:
        raise ActionError(sheet.word("profile-no-trace", folder=str(folder)))
    context.report(0.8, path.name)
    events = await asyncio.to_thread(read_trace, path)
    return _judged(sheet, path, events)


async def _refuse(outbound: Outbound, base: str, sheet: Sheet, folder: Path | None) -> None:
    """What would come to nothing is said before the server is touched: no profiler, a trace that we could not read, and a
    server at rest (its workers poll, and vLLM 0.32.0 took four minutes to write the trace of one second of that)."""
    if (await outbound.get(f"{base}/start_profile", limits=_LOOK)).status == 404:
        raise ActionError(sheet.word("profile-not-enabled"))
    if folder is None:
        raise ActionError(sheet.word("profile-no-folder"))
    pages = []
    for pause in (_REST_S, 0.0):
        reply = await outbound.get(f"{base}/metrics", limits=_LOOK)
        pages.append(reply.text if reply.status == 200 else "")
        await asyncio.sleep(pause)
    if progress_of(pages) == "idle":
        raise ActionError(sheet.word("profile-idle"))


async def _run(outbound: Outbound, base: str, sheet: Sheet, seconds: float, context: Context) -> None:
    """Start, wait, stop. A start that we do not see the end of may still take effect, so it is stopped as well; one that
    was refused belongs to somebody else and goes on."""
    ours = True
    try:
        context.report(0.1, sheet.word("profile-starting"))
        started = await outbound.post(f"{base}/start_profile", {}, limits=_START)
        ours = started.status == 200
        if started.status == 404:
            raise ActionError(sheet.word("profile-not-enabled"))
        if not ours:
            raise ActionError(sheet.word("profile-refused", status=started.status, detail=started.text[:200]))
        context.report(0.3, sheet.word("profile-running", seconds=seconds))
        await asyncio.sleep(seconds)
    finally:  # whatever happens to us, the server must not go on profiling
        if ours:
            context.report(0.6, sheet.word("profile-stopping"))
            await asyncio.shield(outbound.post(f"{base}/stop_profile", {}, limits=_STOP))


def _folder(given: ProfileInput, server: Server | None) -> Path | None:
    """Where the server writes its traces: --profiler-config of newer versions, VLLM_TORCH_PROFILER_DIR of older ones."""
    if given.trace_folder:
        return Path(given.trace_folder)
    if server is None:
        return None
    named = _named(list(server.main.command)) or server.environment.get("VLLM_TORCH_PROFILER_DIR")
    if not named or "://" in named:  # a bucket is nothing that we read
        return None
    root = PROC / str(server.main.pid) / "root" if same_namespace(server.main.pid, "mnt") is False else Path("/")
    if named.startswith("~"):
        named = named.replace("~", server.environment.get("HOME", ""), 1)
    if not named.startswith("/"):
        try:
            named = str((PROC / str(server.main.pid) / "cwd").readlink() / named)
        except OSError:
            return None
    return root / named.lstrip("/")


def _named(words: list[str]) -> str | None:
    """The folder in --profiler-config, as JSON or as one of its fields; vLLM takes - and _ alike in a flag's name."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        flag, value = flag.replace("_", "-"), value if equals else following
        if flag == "--profiler-config.torch-profiler-dir":
            return value
        if flag == "--profiler-config":
            try:
                table = json.loads(value)
            except ValueError:
                continue
            if isinstance(table, dict) and isinstance(table.get("torch_profiler_dir"), str):
                return str(table["torch_profiler_dir"])
    return None


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


def spans(events: Iterable[dict[str, Any]], most: int = 3) -> tuple[float, list[Gap]]:
    """(share of the time from the first to the last event in which something ran, longest pauses with what is around)."""
    rows = sorted((float(e["ts"]), float(e["dur"]), str(e.get("name", "?"))) for e in events if isinstance(e.get("ts"), int | float))  # fmt: skip
    if not rows:
        return 0.0, []
    first = end = rows[0][0]
    busy, last, pauses = 0.0, rows[0][2], []
    for start, duration, name in rows:
        if start > end:
            pauses.append((start - end, end - first, last, name))
        busy += max(0.0, start + duration - max(start, end))
        if start + duration >= end:
            end, last = start + duration, name
    longest = sorted(pauses, key=lambda row: -row[0])[:most]
    gaps = [Gap(ms=round(t / 1e3, 3), at_ms=round(at / 1e3, 3), after=plain(a, 160), before=plain(b, 160)) for t, at, a, b in longest]  # fmt: skip
    return (busy / (end - first) if end > first else 1.0), gaps


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
    busy, gaps = spans(chosen)
    gap = gaps[0].ms if gaps else 0.0
    for hot in hottest:
        sheet.add("profile.hot", "ok", f"{hot.share:.1%}  {hot.seconds * 1000:.1f} ms  x{hot.calls}  {hot.name}")
    sheet.add("profile.busy", "note" if device == "gpu" and busy < 0.7 else "ok", f"{busy:.0%}", gap=round(gap, 1))
    for pause in gaps:
        sheet.add("profile.gap", "ok", f"{pause.ms:.1f} ms  {pause.after} … {pause.before}")
    summary = sheet.word(f"profile-summary-{device}", busy=f"{busy:.0%}", gap=round(gap, 1), name=hottest[0].name, share=f"{hottest[0].share:.0%}")  # fmt: skip
    return ProfileReport(**sheet.report(summary).model_dump(), trace=path.name, device=device, top=hottest, busy=round(busy, 4), gap_ms=gap, gaps=gaps)  # fmt: skip
