"""`run_nccl_test`: do the ranks of this node find each other and add up numbers, and if not, who is at fault and where."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tools.gpu.holders import refuse_busy
from tools.processes import listeners, process
from tools.redaction import clean, redact
from tools.registry import ActionError, Context, action
from tools.sanity.choose import Chosen, choose, only_here
from tools.sanity.launch import Event, LaunchError, Ran, run_program
from tools.sanity.nccl_bisect import Trial, accuses_custom, runs_without_custom, trials_for
from tools.sanity.nccl_output import NcclSaid, read_nccl
from tools.sanity.results import Asked, Language, Report, Sheet, Status, plain

WORKER = Path(__file__).with_name("rank_worker.py")
#: Seconds over the stages' own that starting, taking stacks and ending may take.
_MARGIN_S = 20.0
_MOST_LOG = 200_000


class NcclInput(Asked):
    """A test of the ranks of one node."""

    ranks: int | None = Field(None, ge=1, le=64, description="ranks of the group; one a GPU, or 2, unless given")
    python: str | None = Field(None, description="vLLM's interpreter; that of the running server unless given")
    master: str | None = Field(None, description="HOST:PORT where the ranks meet; loopback unless given")
    first_rank: int = Field(0, ge=0, le=63, description="number of the first rank started here")
    here: int | None = Field(None, ge=1, le=64, description="ranks started here; all unless given")
    stage_s: float | None = Field(None, ge=1, le=600, description="seconds each stage may take")
    cpu_only: bool = Field(False, description="leave the GPU stages out")
    bisect: bool = Field(True, description="on failure, try one change at a time")
    on_busy_gpu: bool = Field(False, description="run although another process holds GPU memory")


class Finding(BaseModel):
    """One fault: its kind, the stage, and the ranks that are at fault or that met it."""

    kind: str
    stage: str
    ranks: list[int]
    severity: Status
    text: str
    quote: str = ""
    stacks: dict[str, str] = Field(default_factory=dict)


class RankRow(BaseModel):
    """How one rank went through one stage; ``unknown`` began it and did not come through."""

    rank: int
    status: Status
    seconds: float | None = None


class StageRow(BaseModel):
    """How one stage went, for all ranks: ``seconds`` of the slowest. ``ranks`` are those of this node that began it."""

    stage: str
    status: Status
    title: str
    seconds: float | None = None
    why: str = ""
    ranks: list[RankRow] = Field(default_factory=list)


class Tried(BaseModel):
    """One change of the environment or of the server's flags, and whether the test passed with it."""

    change: str
    passed: bool


class NcclReport(Report):
    """The result. ``cure`` is the first change that made the test pass; it is a work-around, at the price in ``cost``.
    ``vllm_version`` is that of the vLLM which the ranks could import.
    ``failed_at`` is when the first rank failed, in seconds since 1970 on this machine's clock."""

    ranks: int = 0
    python: str = ""
    stages: list[StageRow] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    tried: list[Tried] = Field(default_factory=list)
    cure: str | None = None
    cost: str | None = None
    transports: dict[str, str] = Field(default_factory=dict)
    vllm_version: str | None = None
    failed_at: float | None = None
    log: str = ""


def script() -> str:
    """The text of the self-contained test."""
    return WORKER.read_text("utf-8")


@action(name="run_nccl_test", title="Test of the collectives between the ranks of one node", effect="loads", deadline_s=1800)  # fmt: skip
async def run_nccl_test(given: NcclInput, context: Context) -> NcclReport:
    """Starts one process a rank and takes them through rendezvous, barrier, shared memory, GLOO, NCCL, vLLM's own
    communicator, a CUDA graph and bandwidth, each with a deadline. Names the rank and stage at fault; leaves nothing
    running. Raises ``ActionError`` where it may not or cannot start."""
    if given.master is not None:
        host, colon, port = given.master.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ActionError(f"master {plain(given.master)!r} is not HOST:PORT; for example 10.0.0.4:29500.")
    only_here(context, python=given.python)
    chosen = await asyncio.to_thread(choose, given.python, given.pid)
    if not given.cpu_only:
        await asyncio.to_thread(refuse_busy, given.on_busy_gpu, cpu_only=True)
    environment = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV,NET", "TORCH_NCCL_BLOCKING_WAIT": "0"}
    environment = {**environment, **chosen.environment, "NCCL_DEBUG": "INFO"}
    ran = await _once(given, chosen, environment, Trial(), context)
    report = judged(given.lang, ran, chosen.command[-1])
    speeds = next((e["facts"]["bus_gb_per_s"] for e in ran.events if "bus_gb_per_s" in (e.get("facts") or {})), None)
    if speeds:
        await asyncio.to_thread(compare_bandwidth, report, given.lang, speeds)
    worst = next((f for f in report.findings if f.severity == "bad"), None)
    if worst is not None and given.bisect:
        await _bisect(given, chosen, environment, worst, report, context)
    return report


async def _once(given: NcclInput, chosen: Chosen, environment: Mapping[str, str], trial: Trial, context: Context, note: str = "") -> Ran:  # fmt: skip
    arguments = ["--child"]
    for option, value in (
        ("--ranks", given.ranks),
        ("--first-rank", given.first_rank),
        ("--here", given.here),
        ("--master", given.master),
        ("--stage-seconds", given.stage_s),
    ):
        if value:
            arguments += [option, str(value)]
    if given.cpu_only:
        arguments.append("--cpu-only")
    if not trial.custom or (chosen.server is not None and runs_without_custom(chosen.server.main.command)):
        arguments.append("--no-custom-all-reduce")
    sheet = Sheet("run_nccl_test", given.lang)
    names: list[str] = []

    def follow(event: Event) -> None:
        if event["event"] == "start":
            names[:] = list(event.get("stages") or ())
        elif event["event"] == "begin" and event.get("stage") in names:
            share = names.index(event["stage"]) / len(names)
            context.report(share, sheet.word("nccl-progress", stage=event["stage"], rank=event["rank"], note=note))

    try:
        from tools.sanity.rank_worker import STAGES

        seconds = sum(given.stage_s if given.stage_s and s != "import" else STAGES[s] for s in STAGES) + _MARGIN_S
        return await run_program(
            chosen.command, script(), arguments, environment=trial.on(environment), deadline_s=seconds, on_event=follow
        )
    except LaunchError as error:
        raise ActionError(str(error)) from None


async def _bisect(given: NcclInput, chosen: Chosen, environment: Mapping[str, str], worst: Finding, report: NcclReport, context: Context) -> None:  # fmt: skip
    """Try one change at a time until the test passes. Where a change cures NCCL and vLLM's own all-reduce fails next, that
    is left out as well: both read the peers' memory, and a variable of NCCL's turns off only one of them."""
    from tools.network.interfaces import candidates

    names = [interface.name for interface in await asyncio.to_thread(candidates)]
    if (given.here or given.ranks) == given.ranks and not given.first_rank:
        names.append("lo")  # all ranks are on this machine, so loopback connects them
    version = report.vllm_version
    trials = trials_for(worst.stage, worst.kind, worst.quote, environment, names)
    while trials:
        trial = trials.pop(0)
        shown = trial.shown(version)
        ran = await _once(given, chosen, environment, trial, context, note=f"({shown})")
        passed = _passed(ran)
        report.tried.append(Tried(change=shown, passed=passed))
        if passed:
            if await _fails_still(given, chosen, environment, report, context):
                _cured(report, trial, given.lang)
            return
        after = next((f for f in judged(given.lang, ran, report.python).findings if f.severity == "bad"), None)
        if after is not None and trial.custom and accuses_custom(after.stage, after.kind, after.quote):
            trials.insert(0, trial.without_custom())


async def _fails_still(given: NcclInput, chosen: Chosen, environment: Mapping[str, str], report: NcclReport, context: Context) -> bool:  # fmt: skip
    """Whether the fault comes back without any change. One that does not was cured by nothing, and would accuse a part
    for ever that happened to be left out when it had passed."""
    sheet = Sheet(report.tool, given.lang)
    ran = await _once(given, chosen, environment, Trial(), context, note=f"({sheet.word('nccl-unchanged')})")
    if not _passed(ran):
        return True
    report.tried.append(Tried(change=sheet.word("nccl-unchanged"), passed=True))
    report.summary += sheet.word("nccl-not-again")
    return False


def _passed(ran: Ran) -> bool:
    return any(e["event"] == "verdict" and e.get("passed") is True for e in ran.events)


def _cured(report: NcclReport, trial: Trial, lang: Language) -> None:
    sheet = Sheet(report.tool, lang)
    report.cure = trial.shown(report.vllm_version)
    report.cost = " ".join(sheet.word(f"bisect-{part}") for part in trial.parts)
    sheet.fact("collective.cure", trial.name)
    report.facts += sheet.facts
    report.summary += sheet.word("nccl-cured", change=report.cure)


def compare_bandwidth(report: NcclReport, lang: Language, speeds: Mapping[str, float], module: Any = None) -> None:
    """Hold the measured bus bandwidth (GB/s by size in MiB) against what the links between the cards should give.

    NCCL reaches most of a link with large messages; less than half of it is worth a look, less than a fifth a fault (data
    that goes through host memory where it should not, or a link that fell back). ``module`` stands in for pynvml in tests.
    """
    from tools.gpu.cards import link_gb_per_s, read_machine
    from tools.gpu.nvml import NoNvmlError, opened

    try:
        with opened(module) as nvml:
            expected = link_gb_per_s(read_machine(nvml))
    except NoNvmlError:
        return
    if not expected:
        return
    sheet = Sheet(report.tool, lang)
    best = max(speeds.values())
    status: Status = "ok" if best >= 0.5 * expected else "note" if best >= 0.2 * expected else "bad"
    sheet.add("nccl.bandwidth", status, round(best, 1), unit="GB/s", expected=round(expected, 1))
    report.checks += sheet.checks
    if status == "bad":
        sheet.fact("collective.share_of_link", round(best / expected, 3))
        report.facts += sheet.facts
        report.verdict = "bad"


def judged(lang: Language, ran: Ran, python: str) -> NcclReport:
    """The report of one run: rows a stage, findings with their sentences, facts for the diagnosis."""
    sheet = Sheet("run_nccl_test", lang)
    start = next((e for e in ran.events if e["event"] == "start"), {})
    verdict = next((e for e in reversed(ran.events) if e["event"] == "verdict"), None)
    outputs = {int(e["rank"]): redact(clean(str(e["text"]))) for e in ran.events if e["event"] == "output"}
    states = {int(e["rank"]): e for e in ran.events if e["event"] == "state"}
    findings = [_finding(sheet, raw, states) for raw in (verdict or {}).get("findings", [])]
    if verdict is None:
        kind = "test-late" if ran.late else "test-broken"
        said = plain(ran.stderr.strip().splitlines()[-1]) if ran.stderr.strip() else ""
        text = sheet.word(f"nccl-{kind}", detail=said, stage="", ranks="")
        findings.append(Finding(kind=kind, stage="start", ranks=[], severity="bad", text=text, quote=said))
    bad = [f for f in findings if f.severity == "bad"]
    for finding in bad:
        process_name = f"rank {finding.ranks[0]}" if finding.ranks else None
        sheet.fact("collective.fault", finding.kind, finding.quote, process_name)
        sheet.fact("collective.stage", finding.stage, finding.quote)
    if verdict is not None and not bad:
        sheet.fact("collective.fault", "none")
    for raw in (verdict or {}).get("findings", []):
        if raw["kind"] == "shm-too-small" and raw.get("facts", {}).get("total_bytes"):
            sheet.fact("host.shm_bytes", int(raw["facts"]["total_bytes"]), raw["text"])
    version = next((str(e["facts"]["vllm"]) for e in ran.events if "vllm" in (e.get("facts") or {})), None)
    if version is not None:
        sheet.fact("server.version", version)
    nccl = read_nccl(outputs)
    _nccl_rows(sheet, nccl)
    ranks = int(start.get("ranks", 0))
    if bad:
        summary = bad[0].text
    else:
        passed = [row for row in _stages(sheet, start, ran, findings) if row.status == "ok"]
        summary = sheet.word("nccl-passed", ranks=ranks, stages=len(passed))
    report = sheet.report(summary)
    stages = _stages(sheet, start, ran, findings)
    status: Status = "bad" if bad else "note" if findings else "ok"
    traces = [str((e.get("facts") or {}).get("trace", "")) for e in ran.events if e["event"] == "failed"]
    log = "\n".join([*outputs.values(), *(redact(clean(trace)) for trace in traces)])
    return NcclReport(
        **report.model_dump(exclude={"verdict"}),
        verdict=status,
        ranks=ranks,
        python=str(start.get("python", python)),
        stages=stages,
        findings=findings,
        transports=dict(nccl.transports or {}),
        vllm_version=plain(version, 40) if version is not None else None,
        failed_at=min(
            (
                float(e["at"])
                for e in ran.events
                if e["event"] == "failed" or (e["event"] == "exit" and e.get("signal"))
            ),
            default=None,
        ),
        log=log[-_MOST_LOG:],
    )


def _nccl_rows(sheet: Sheet, nccl: NcclSaid) -> None:
    if nccl.version:
        sheet.add("nccl.version", "ok", nccl.version)
    if nccl.interface or nccl.network:
        sheet.add("nccl.network", "ok", " · ".join(part for part in (nccl.interface, nccl.network) if part))
    for pair, transport in list((nccl.transports or {}).items())[:16]:
        sheet.add("nccl.transport", "ok", f"{pair} {transport}")
    if nccl.warning:
        sheet.add("nccl.warning", "note", f"rank {nccl.warning[0]}: {nccl.warning[1]}", quote=nccl.warning[1])


def _finding(sheet: Sheet, raw: Mapping[str, Any], states: Mapping[int, Event]) -> Finding:
    ranks = [int(rank) for rank in raw["ranks"]]
    facts = raw.get("facts") or {}
    detail = plain(raw.get("text") or "")
    if raw["kind"] == "port-in-use" and facts.get("port"):
        detail = _owner(int(facts["port"])) or detail
    shown = ", ".join(map(str, ranks)) or "?"
    stacks = {str(r): redact(clean(str(states[r].get("stack", ""))))[-4000:] for r in ranks if r in states}
    if not any(stacks.values()):
        stacks = {str(r): redact(clean(str(s.get("stack", ""))))[-4000:] for r, s in states.items()}
    return Finding(
        kind=raw["kind"],
        stage=raw["stage"],
        ranks=ranks,
        severity=raw["severity"],
        text=sheet.word(f"nccl-{raw['kind']}", ranks=shown, stage=raw["stage"], detail=detail),
        quote=redact(clean(str(raw.get("text") or "")))[:500],
        stacks={rank: stack for rank, stack in stacks.items() if stack},
    )


def _owner(port: int) -> str:
    owners = [found for pid in sorted(listeners().get(port, ())) if (found := process(pid)) is not None]
    return ", ".join(f"{port}: {' '.join(p.command)[:80]} (pid {p.pid})" for p in owners[:3])


def _ranks(of_stage: list[Event], at_fault: set[int]) -> list[RankRow]:
    """One row a rank that began the stage; the last that it said counts, and whom a finding names is at fault."""
    said: dict[str, Status] = {"begin": "unknown", "done": "ok", "skipped": "skipped", "failed": "bad"}
    rows: dict[int, RankRow] = {}
    for event in of_stage:
        if event["event"] in said:
            rank = int(event["rank"])
            status = "bad" if rank in at_fault else said[event["event"]]
            rows[rank] = RankRow(rank=rank, status=status, seconds=event.get("seconds"))
    return [rows[rank] for rank in sorted(rows)]


def _stages(sheet: Sheet, start: Event, ran: Ran, findings: list[Finding]) -> list[StageRow]:
    rows: list[StageRow] = []
    bad = {finding.stage for finding in findings if finding.severity == "bad"}
    for stage in start.get("stages") or ():
        of_stage = [e for e in ran.events if e.get("stage") == stage]
        done = [float(e["seconds"]) for e in of_stage if e["event"] == "done"]
        by_rank = sorted((e for e in of_stage if e["event"] == "skipped"), key=lambda e: int(e["rank"]))
        skipped = str(by_rank[0]["why"]) if by_rank else None  # vLLM tells why on the first rank of a node only
        title = sheet.word(f"nccl-stage-{stage}")
        if stage in bad:
            rows.append(StageRow(stage=stage, status="bad", title=title))
        elif skipped is not None:
            reason, _, rest = skipped.partition(": ")
            why = sheet.word(f"nccl-skip-{reason}", detail=rest)
            rows.append(StageRow(stage=stage, status="skipped", title=title, why=why))
        elif done:
            why = _speeds(of_stage) if stage == "bandwidth" else ""
            rows.append(StageRow(stage=stage, status="ok", title=title, seconds=max(done), why=why))
        else:
            rows.append(StageRow(stage=stage, status="unknown", title=title, why=sheet.word("nccl-not-reached")))
        rows[-1].ranks = _ranks(
            of_stage, {r for f in findings if f.stage == stage and f.severity == "bad" for r in f.ranks}
        )
    return rows


def _speeds(events: list[Event]) -> str:
    found = next((e["facts"].get("bus_gb_per_s") for e in events if e["event"] == "done"), None) or {}
    return ", ".join(f"{size} MiB: {speed} GB/s" for size, speed in found.items())
