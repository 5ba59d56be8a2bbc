"""The result of a check or test of one node as blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from assistant.diagnosis.model import Language
from assistant.render.blocks import Block, Command, Heading, Item, Quotation, Text, Tone
from knowledge.catalog import Catalog

if TYPE_CHECKING:
    from assistant.nodes.fleet import Fleet
    from tools.capture.capture import CaptureReport
    from tools.sanity.nccl import NcclReport
    from tools.sanity.results import Report

_TONES: dict[str, Tone] = {"ok": "good", "note": "unsure", "bad": "bad", "unknown": "unsure", "skipped": "quiet"}
_ORDER = {"bad": 0, "note": 1, "unknown": 2, "ok": 3, "skipped": 4}


def report_blocks(report: Report, catalog: Catalog, lang: Language, heading: str) -> Iterator[Block]:
    """Any result: the summary, then its rows, the worst first."""
    yield Heading(catalog.word(f"heading-sanity-{heading}", lang), _TONES[report.verdict], 1)
    yield Text(report.summary)
    for check in sorted(report.checks, key=lambda c: _ORDER[c.status]):
        value = "" if check.value is None or f"{check.value}" in check.text else f"{check.value} {check.unit}".strip()
        tags = (catalog.word(f"status-{check.status}", lang),) if check.status not in ("ok", "skipped") else ()
        said = check.text and check.text != report.summary
        body: list[Block] = [Text(check.text, "quiet" if check.status == "ok" else "plain")] if said else []
        if check.quote and check.quote not in check.text and check.quote not in value:
            body.append(Quotation(report.tool, check.quote))
        yield Item(f"{check.title}: {value}" if value else check.title, tags, tuple(body))


def nccl_blocks(report: NcclReport, catalog: Catalog, lang: Language) -> Iterator[Block]:
    """The test of the ranks: what is at fault, the stages, what NCCL said, what was tried."""
    word = catalog.word
    yield Heading(word("heading-sanity-nccl", lang), _TONES[report.verdict], 1)
    yield Text(report.summary)
    for finding in report.findings:
        if finding.text not in report.summary:
            yield Item(finding.text, (word(f"status-{finding.severity}", lang),))
        for rank, stack in list(finding.stacks.items())[:4]:
            yield Quotation(word("heading-sanity-stack", lang, name=f"rank {rank}"), _innermost(stack))
    if report.stages:
        yield Heading(word("heading-sanity-stages", lang))
        for row in report.stages:
            value = f"{row.seconds:.2f} s" if row.seconds is not None else ""
            tail = ", ".join(part for part in (value, row.why) if part)
            yield Item(f"{row.title}: {tail}" if tail else row.title, (word(f"status-{row.status}", lang),))
    for check in report.checks:
        tags = (word(f"status-{check.status}", lang),) if check.status in ("note", "bad") else ()
        body = (Text(check.text, "quiet"),) if check.text else ()
        yield Item(f"{check.title}: {check.value} {check.unit}".rstrip(), tags, body)
    if report.tried:
        yield Heading(word("heading-sanity-tried", lang))
        for tried in report.tried:
            yield Item(tried.change, (word(f"label-cure-{'yes' if tried.passed else 'no'}", lang),))
    if report.cure is not None:
        yield Text(word("label-work-around-cost", lang, change=report.cure, cost=report.cost or ""), "unsure")


def _innermost(stack: str, most: int = 14) -> str:
    """A faulthandler's text, cut to the frames that say where it hangs."""
    lines = stack.strip().splitlines()
    return "\n".join(lines[:most] + (["…"] if len(lines) > most else []))


def capture_blocks(report: CaptureReport, catalog: Catalog, lang: Language) -> Iterator[Block]:
    """The captured server: what stands out, then every process with its state and innermost frame."""
    word = catalog.word
    yield Heading(word("heading-sanity-capture", lang), _TONES[report.verdict], 1)
    yield Text(report.summary)
    for check in report.checks:
        tags = (word(f"status-{check.status}", lang),) if check.status not in ("ok", "skipped") else ()
        yield Item(f"{check.title}: {check.value}" if check.value is not None else check.title, tags, (Text(check.text, "quiet"),) if check.text else ())  # fmt: skip
    yield Heading(word("heading-sanity-processes", lang))
    for row in report.processes:
        where = row.frames[0] if row.frames else row.wchan or "?"
        yield Item(
            f"{row.name} (pid {row.pid}): {word(f'capture-doing-{row.doing}', lang)}",
            (row.state, f"{row.cpu_percent:.0f} % CPU"),
            (Text(where, "quiet"),),
        )
    if report.stuck is not None:
        frames = next((row.frames for row in report.processes if row.pid == report.stuck), [])
        if frames:
            yield Quotation(word("heading-sanity-stack", lang, name=f"pid {report.stuck}"), "\n".join(frames[:14]))
    if report.bundle:
        yield Heading(word("heading-save", lang))
        yield Command(report.bundle)


def fleet_blocks(fleet: Fleet, catalog: Catalog, lang: Language, *, full: bool = False) -> Iterator[Block]:
    """All nodes, the worst first: of each what is wrong, or that it does not answer; then what differs between them."""
    word = catalog.word
    tone: Tone = "bad" if fleet.bad or fleet.lost else "good"
    yield Heading(word("heading-fleet-check", lang), tone, 1)
    yield Text(word("fleet-summary", lang, nodes=len(fleet.nodes), bad=fleet.bad, lost=fleet.lost))
    for node in fleet.nodes:
        if node.lost:
            body: tuple[Block, ...] = (Text(word("fleet-lost", lang, detail=node.lost)),)
            yield Item(node.name, (word("status-bad", lang),), body)
            continue
        worst = "bad" if node.count("bad") else "note" if node.count("note") else "ok"
        rows = [
            row
            for row in node.checks
            if full or row.status == "bad" or (worst != "bad" and row.status == "note") or row.id == "cluster.check"
        ]
        lines = [
            f"{row.title}: {row.value} {row.unit}".rstrip() if row.value is not None else row.title for row in rows
        ]
        texts = [f"{line} · {row.text}" if row.text else line for line, row in zip(lines, rows, strict=True)]
        most = 200 if full else 6
        yield Item(node.name, (word(f"status-{worst}", lang),), tuple(Text(text) for text in texts[:most]))
    if differing := [row for row in fleet.together.checks if row.status in ("bad", "note")]:
        yield Heading(word("fleet-differences", lang))
        for row in differing:
            yield Item(str(row.value), (word(f"status-{row.status}", lang),), (Text(row.text, "quiet"),))
