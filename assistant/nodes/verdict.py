"""From what all nodes said to who is at fault: the node, the pair, the setting, and the rank that failed first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from assistant.nodes.gathered import Gathered
from tools.sanity.rank_worker import FOLLOWS, STAGES
from tools.sanity.results import Fact, Language, Report, Sheet, Status

if TYPE_CHECKING:
    from tools.launchers.links import LinksReport, PeerSeen
    from tools.sanity.nccl import Finding

#: Differences that keep a group from working or make its numbers differ; others only deserve a look.
_GRAVE = ("MTU", "vllm", "torch", "nvidia-nccl-", "GPU driver", "NCCL_", "GLOO_")
#: Interfaces carry other names on other machines; that alone is no fault.
_NAMES = ("_SOCKET_IFNAME", "_IB_HCA")
#: Seconds that clocks may differ before times of two nodes mislead whoever reads their logs side by side.
_CLOCK_S = 1.0
#: Kinds of findings that say a peer did not answer: they name the one who noticed, not the one who caused.
_NOTICED = (*FOLLOWS, "rank-never-started", "ranks-missing", "gloo-unreachable", "master-unreachable", "stage-hang")


def judge(gathered: Gathered, lang: Language) -> Report:
    """The verdict over all nodes; its first row is what the summary says."""
    sheet = Sheet("cluster", lang)
    facts: list[Fact] = []
    for name, why in gathered.lost.items():
        sheet.add("cluster.lost", "bad", name, detail=why)
    for name, why in gathered.died.items():
        sheet.add("cluster.died", "bad", name, detail=why)
    broken = _links(sheet, gathered)
    cut = _cut(sheet, gathered)
    for name, why in gathered.failed.items():
        if name not in gathered.lost:
            sheet.add("cluster.failed", "bad", name, detail=why)
    differs(sheet, {name: node.settings for name, node in gathered.described.items()})
    _ranks(sheet, gathered, facts, explained=bool(broken or cut or gathered.died))
    _clocks(sheet, gathered)
    _places(sheet, gathered)
    if gathered.left:
        sheet.add("cluster.left", "note", gathered.left)
    order = {"cluster.lost": 0, "cluster.died": 0, "cluster.cut": 1, "cluster.link": 2, "cluster.port": 3, "cluster.mtu": 4, "cluster.rank": 5, "cluster.failed": 6}  # fmt: skip
    bad = sorted((c for c in sheet.checks if c.status == "bad"), key=lambda c: order.get(c.id, 9))
    passed = bool(gathered.tests) and all(report.verdict != "bad" for report in gathered.tests.values())
    plan = gathered.plan
    if bad:
        summary = bad[0].text or f"{bad[0].title}: {bad[0].value}"
    elif passed and plan is not None and len(gathered.tests) == len(plan.places):
        summary = sheet.word("cluster-passed", ranks=plan.ranks, nodes=len(plan.places))
    else:
        summary = ""
    report = sheet.report(summary)
    report.facts += facts
    return report


def differs(sheet: Sheet, settings: Mapping[str, Mapping[str, str]]) -> None:
    """One row for each setting that is not the same on all nodes, naming who stands apart from the most."""
    names = sorted({key for mine in settings.values() for key in mine})
    for key in names:
        values = {node: mine.get(key) for node, mine in settings.items()}
        if len(set(values.values())) < 2:
            continue
        counts = Counter(values.values())
        usual, often = counts.most_common(1)[0]
        clear = often > len(values) / 2
        odd = {node: value for node, value in values.items() if not clear or value != usual}
        shown = ", ".join(f"{node}: {'-' if value is None else value}" for node, value in list(odd.items())[:6])
        if clear:
            shown += sheet.word("cluster-others", value="-" if usual is None else usual)
        grave = key.startswith(_GRAVE) and not key.endswith(_NAMES)
        status: Status = "bad" if grave else "note"
        sheet.add("cluster.differs", status, f"{key} ({shown})", name=key, shown=shown)


def _links(sheet: Sheet, gathered: Gathered) -> set[tuple[str, str]]:
    """Rows for pairs that do not reach each other; returns those pairs."""
    names = _by_address(gathered)
    broken: set[tuple[str, str]] = set()
    told: set[tuple[str, str]] = set()
    for name, report in gathered.links.items():
        for port, why in report.taken.items():
            sheet.add("cluster.taken", "bad", f"{name}: {port}", node=name, port=port, detail=why)
        for peer in report.peers:
            other = names.get(peer.peer, peer.peer)
            pair = (min(name, other), max(name, other))
            theirs = gathered.links.get(other)
            open_ports = [port for port, state in peer.ports.items() if state == "open"]
            shut = {p: s for p, s in peer.ports.items() if s != "open" and not (theirs and p in theirs.taken)}
            if not open_ports and shut:
                broken.add(pair)
                if pair not in told:
                    told.add(pair)
                    sheet.add("cluster.link", "bad", f"{name} → {other}", detail=_states(sheet, shut.values()))
            elif shut:
                sheet.add("cluster.port", "bad", f"{name} → {other}", ports=", ".join(shut), detail=_states(sheet, shut.values()))  # fmt: skip
            elif open_ports:
                _mtu(sheet, name, other, report, peer)
    return broken


def _mtu(sheet: Sheet, name: str, other: str, report: LinksReport, peer: PeerSeen) -> None:
    if report.mtu and (peer.largest or 0) < min(report.mtu, 65535):
        shown = peer.largest if peer.largest is not None else "-"
        sheet.add("cluster.mtu", "bad", f"{name} → {other}", mtu=report.mtu, largest=shown)


def _states(sheet: Sheet, states: Iterable[str]) -> str:
    known = {"refused", "silent", "other"}
    return ", ".join(sheet.word(f"cluster-state-{s}") if s in known else s for s in dict.fromkeys(states))


def _cut(sheet: Sheet, gathered: Gathered) -> set[tuple[str, str]]:
    """Pairs that reached each other before the test and not after it."""
    names = _by_address(gathered)
    found: set[tuple[str, str]] = set()
    for name, report in gathered.again.items():
        for peer in report.peers:
            other = names.get(peer.peer, peer.peer)
            before = gathered.links.get(name)
            was = next((seen for seen in before.peers if seen.peer == peer.peer), None) if before else None
            if was is None or "open" not in was.ports.values() or "open" in peer.ports.values():
                continue
            pair = (min(name, other), max(name, other))
            if pair not in found and not gathered.died.keys() & set(pair):  # a dead node is more than a cut cable
                found.add(pair)
                sheet.add("cluster.cut", "bad", f"{pair[0]} ↔ {pair[1]}", one=pair[0], other=pair[1])
    return found


def _ranks(sheet: Sheet, gathered: Gathered, facts: list[Fact], *, explained: bool) -> None:
    """The rank at fault. Where a pair is cut, what ranks noticed of it is a consequence and only noted."""
    plan = gathered.plan
    if plan is None:
        return
    order = list(STAGES)
    told: list[tuple[int, int, float, str, Finding]] = []
    for name, report in gathered.tests.items():
        clock = gathered.clocks.get(name)
        at = report.failed_at - (clock.ahead if clock else 0.0) if report.failed_at else float("inf")
        for finding in report.findings:
            if finding.severity == "bad":
                place = order.index(finding.stage) if finding.stage in order else -1
                told.append((finding.kind in _NOTICED, place, at, name, finding))
    if not told:
        return
    told.sort(key=lambda entry: entry[:3])
    noticed, _, _, name, finding = told[0]
    owner = plan.node_of(finding.ranks[0]) if finding.ranks else name
    status: Status = "note" if explained and noticed else "bad"
    ranks = ", ".join(map(str, finding.ranks)) or "?"
    stage = sheet.word(f"nccl-stage-{finding.stage}")
    sheet.add("cluster.rank", status, f"{owner}: rank {ranks}", node=owner, ranks=ranks, stage=stage, detail=finding.text)  # fmt: skip
    _first(sheet, gathered)
    if status == "bad":
        facts += [fact for fact in gathered.tests[name].facts if fact.name.startswith("collective.")]


def _first(sheet: Sheet, gathered: Gathered) -> None:
    """Which node's ranks failed first, where the clocks can tell: their error is shown and must be smaller."""
    times = sorted(
        (report.failed_at - gathered.clocks[name].ahead, gathered.clocks[name].within, name)
        for name, report in gathered.tests.items()
        if report.failed_at is not None and name in gathered.clocks
    )
    if len(times) < 2:
        return
    (one, within, name), (two, other_within, other) = times[:2]
    apart, doubt = two - one, within + other_within
    status: Status = "ok" if apart > doubt else "unknown"
    sheet.add("cluster.first", status, name if apart > doubt else f"{name}, {other}", apart=round(apart, 3), doubt=round(doubt, 3), other=other)  # fmt: skip


def _clocks(sheet: Sheet, gathered: Gathered) -> None:
    ahead = {name: clock.ahead for name, clock in gathered.clocks.items()}
    if len(ahead) < 2:
        return
    first, last = min(ahead, key=ahead.__getitem__), max(ahead, key=ahead.__getitem__)
    apart = ahead[last] - ahead[first]
    doubt = gathered.clocks[first].within + gathered.clocks[last].within
    if apart > _CLOCK_S + doubt:
        sheet.add("cluster.clock", "note", f"{last} - {first}", seconds=round(apart, 2))


def _places(sheet: Sheet, gathered: Gathered) -> None:
    plan = gathered.plan
    if plan is None:
        return
    if plan.star:
        sheet.add("cluster.star", "ok", plan.places[0].name, nodes=len(plan.places))
    for place in plan.places[:64]:
        last = place.first_rank + place.here - 1
        ranks = str(place.first_rank) if last == place.first_rank else f"{place.first_rank}-{last}"
        sheet.add("cluster.place", "ok", f"{place.name} ({place.address}): rank {ranks}")


def _by_address(gathered: Gathered) -> dict[str, str]:
    return {place.address: place.name for place in gathered.plan.places} if gathered.plan else {}
