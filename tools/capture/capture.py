"""`capture`: the moment of a stall, before a restart destroys it. The server stays alive and is never paused."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field

from tools.capture.bundle import write_bundle
from tools.capture.judging import Doing, Judged, Look, culprit, judge, progress_of
from tools.capture.stacks import dump, kernel_threads
from tools.gpu.holders import busy
from tools.kernel_log import kernel_log
from tools.outbound import AddressError, Allowance, Limits, Outbound, OutboundError
from tools.processes import Process, Server, listeners, log_tail, process, same_namespace
from tools.redaction import clean, redact
from tools.registry import ActionError, Context, action
from tools.sanity.choose import find_server, only_here, port_of, server_at
from tools.sanity.results import Asked, Report, Sheet, Status

_MOST_PROCESSES = 64
_SCRAPE = Limits(deadline_s=3.0, connect_s=1.0, max_bytes=8 << 20, cut=True)
#: Helpers of Python's multiprocessing below a server; they hold no part of the work.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


class CaptureInput(Asked):
    """Which server, and where to keep what was seen."""

    url: str | None = Field(None, description="address of the server, which must run on this machine")
    seconds: float = Field(2.0, ge=0.2, le=30, description="time between the first and the last look")
    bundle: str | None = Field(None, description="folder to write the redacted bundle into")


class Row(BaseModel):
    """One process of the server: what it is doing, and its frames, innermost first."""

    pid: int
    name: str
    doing: Doing
    state: str
    wchan: str = ""
    thread: str = ""
    frames: list[str] = Field(default_factory=list)
    cpu_percent: float = 0.0
    why: str = ""


class CaptureReport(Report):
    """What was captured. ``stuck`` is the process that keeps the others waiting, ``alive`` whether the server lives."""

    processes: list[Row] = Field(default_factory=list)
    stuck: int | None = None
    alive: bool = True
    bundle: str = ""
    log: str = ""


@action(name="capture", title="Stacks and state of a stuck server", effect="runs", deadline_s=120)
async def capture(given: CaptureInput, context: Context) -> CaptureReport:
    """Python stacks, kernel state and CPU use of every process of a server, its GPU processes, last kernel lines, two
    metrics pages and log tail, into a redacted bundle. Names the process and frame that keep the others waiting. Raises
    ``ActionError`` where no server is found."""
    only_here(context, bundle=given.bundle)
    server = await asyncio.to_thread(_server, given)
    sheet = Sheet("capture", given.lang)
    sheet.where = "server"
    members = [p for p in server.processes if not _is_helper(p)][:_MOST_PROCESSES]
    url = given.url or await asyncio.to_thread(_own_url, server)
    pages: list[str] = []
    looks: dict[int, list[Look]] = {p.pid: [] for p in members}
    for number in range(3):
        if number:
            await asyncio.sleep(given.seconds / 2)
        context.report(number / 4, sheet.word("capture-progress", number=number + 1, processes=len(members)))
        await asyncio.to_thread(_look, looks)
        if url is not None and number != 1:
            pages.append(await _scrape(url, given.url is None, context))
    pages = [page for page in pages if page]
    progress = progress_of(pages)
    rows = [judge(p.pid, p.title, looks[p.pid], progress) for p in members]
    return await asyncio.to_thread(_judged, sheet, given, server, rows, pages)


def _is_helper(found: Process) -> bool:
    return any(name in part for part in found.command for name in _HELPERS)


def _server(given: CaptureInput) -> Server:
    if given.url is not None and given.pid is None:
        found = server_at(given.url)
        if found is None:
            raise ActionError(
                f"No process of this machine that may be seen listens on port {port_of(given.url)}. Run capture on the "
                "server's node, as its user or root, or give --pid."
            )
        return found
    found = find_server(given.pid)
    if found is None:
        raise ActionError("No running vLLM server was found on this machine; give --pid of one of its processes.")
    return found


def _own_url(server: Server) -> str | None:
    """The server's own address on loopback, where it shares our network."""
    if same_namespace(server.main.pid, "net") is False:
        return None
    for port, pids in sorted(listeners().items()):
        if server.main.pid in pids:
            return f"http://127.0.0.1:{port}"
    return None


def _look(looks: dict[int, list[Look]]) -> None:
    for pid, taken in looks.items():
        found = process(pid)
        seen = dump(pid) if found is not None and found.state != "Z" else None
        taken.append(
            Look(
                time.monotonic(),
                found.state if found is not None else "",
                kernel_threads(pid),
                seen.threads if seen is not None else (),
                seen.why if seen is not None else "",
            )
        )


async def _scrape(url: str, ours: bool, context: Context) -> str:
    policy = context.policy
    try:
        if ours:  # found through /proc: it is the captured server's own port
            policy = replace(policy, allowed=(*policy.allowed, Allowance.of(url)))
        async with Outbound(policy, limits=_SCRAPE) as outbound:
            reply = await outbound.get(url.rstrip("/") + "/metrics")
    except (OutboundError, AddressError):
        return ""
    return redact(clean(reply.text)) if reply.status == 200 else ""


def _judged(sheet: Sheet, given: CaptureInput, server: Server, rows: list[Judged], pages: list[str]) -> CaptureReport:
    stuck, row = culprit(rows)
    name = f"{row.name} (pid {row.pid})" if row is not None else ""
    frame = row.frames[0] if row is not None and row.frames else row.wchan if row is not None else ""
    unseen = [r for r in rows if not r.frames and r.doing not in ("zombie", "gone")]
    sheet.fact("capture.stuck", stuck, frame, name or None)
    if row is not None:
        sheet.fact("capture.process", row.name, frame, name)
        if frame:
            sheet.fact("capture.frame", frame, frame, name)
    if unseen:
        refused = any("ermission" in r.why for r in unseen)
        identity = "capture.refused" if refused else "capture.unseen"
        sheet.add(identity, "note" if row is not None else "unknown", why=unseen[0].why or "-", count=len(unseen))
    tail = log_tail(server.main.pid)
    sheet.add("capture.log", "ok" if tail else "skipped", len(tail.splitlines()) if tail else None)
    sheet.add("capture.metrics", "ok" if len(pages) == 2 else "note", len(pages))
    kernel = kernel_log(200)
    sheet.add("capture.kernel", "ok" if kernel.lines else "unknown", len(kernel.lines) or None, why=kernel.why)
    for holder in busy()[:16]:
        sheet.add("capture.gpu", "ok", f"GPU {holder.gpu}: {holder.name} (pid {holder.pid}), {holder.bytes / 2**30:.1f} GiB")  # fmt: skip
    alive = process(server.main.pid) is not None
    summary = sheet.word(f"capture-{stuck}", name=name, frame=frame or "-", count=len(rows))
    base = sheet.report(summary)
    verdict: Status = "ok" if stuck == "none" else "note" if stuck == "collective" else "bad"
    if stuck == "none" and len(unseen) == len(rows):
        verdict = "unknown"
    report = CaptureReport(
        **base.model_dump(exclude={"verdict"}),
        verdict=verdict,
        processes=[
            Row(
                pid=r.pid, name=r.name, doing=r.doing, state=r.state, wchan=r.wchan, thread=r.thread, frames=list(r.frames),
                cpu_percent=round(r.cpu_percent, 1), why=redact(clean(r.why)),
            )
            for r in rows
        ],
        stuck=row.pid if row is not None and stuck != "none" else None,
        alive=alive,
        log=tail,
    )  # fmt: skip
    if given.bundle is not None:
        folder = Path(given.bundle)
        if not folder.is_absolute():
            raise ActionError(f"bundle {given.bundle!r} must be an absolute path of a new folder.")
        report.bundle = write_bundle(folder, report, pages, kernel.lines)
    return report
