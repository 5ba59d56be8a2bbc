"""The checks of all nodes at once, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from assistant.nodes.gather import check_all, describe_all
from assistant.nodes.gathered import Gathered
from assistant.nodes.verdict import judge
from tools.sanity.results import Check, Language, Report

if TYPE_CHECKING:
    from assistant.nodes.remote import RemoteTools

CHECKS = ("check_gpu", "check_host", "check_network")
_RANK = {"bad": 0, "note": 1, "unknown": 2, "ok": 3, "skipped": 4}


@dataclass(frozen=True, slots=True)
class NodeChecked:
    """One node's rows, the worst first; ``lost`` says why there are none."""

    name: str
    checks: tuple[Check, ...] = ()
    lost: str = ""

    def count(self, status: str) -> int:
        """How many rows have this status."""
        return sum(check.status == status for check in self.checks)

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Sorts the worst first: silent nodes, then by faults, then by notes."""
        return (0 if self.lost else 1, -self.count("bad"), -self.count("note"), self.name)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes, the worst first, and the report over what differs between them."""

    nodes: tuple[NodeChecked, ...] = ()
    together: Report = field(default_factory=lambda: Report(tool="cluster", verdict="unknown", summary=""))

    @property
    def bad(self) -> int:
        """Nodes with faults."""
        return sum(node.count("bad") > 0 for node in self.nodes)

    @property
    def lost(self) -> int:
        """Nodes that did not answer."""
        return sum(bool(node.lost) for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "nodes": [
                {"name": node.name, "lost": node.lost or None, "bad": node.count("bad"), "notes": node.count("note"),
                 "checks": [check.model_dump(mode="json") for check in node.checks]}
                for node in self.nodes
            ],
            "together": self.together.model_dump(mode="json"),
        }  # fmt: skip


async def look_at_fleet(tools: Sequence[RemoteTools], lang: Language, *, on_done: Callable[[int], None] = lambda done: None) -> Fleet:  # fmt: skip
    """Describe and check every node; one that does not answer costs nobody else's answer."""
    gathered = Gathered(tuple(node.node.name for node in tools))
    await describe_all(tools, gathered)
    left = [node for node in tools if node.node.name not in gathered.lost]
    lost = dict(gathered.lost)
    found = await check_all(left, CHECKS, lang, lost, on_done)
    gathered.lost = lost
    return fleet_of(gathered, {name: [cast("Report", report) for report in mine.values()] for name, mine in found.items()}, lang)  # fmt: skip


def fleet_of(gathered: Gathered, found: Mapping[str, Sequence[Report]], lang: Language) -> Fleet:
    """All nodes in order: those that are lost, and those whose reports were ``found``."""
    nodes = [NodeChecked(name, lost=why) for name, why in gathered.lost.items()]
    for name, reports in found.items():
        rows = [row for report in reports for row in report.checks]
        nodes.append(NodeChecked(name, tuple(sorted(rows, key=lambda row: _RANK[row.status]))))
    gathered.lost.clear()  # they stand in a row of their own
    return Fleet(tuple(sorted(nodes, key=lambda node: node.rank)), judge(gathered, lang))
