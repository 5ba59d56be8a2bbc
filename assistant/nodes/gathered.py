"""What was gathered from the nodes, before anybody judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from assistant.nodes.plan import Plan

if TYPE_CHECKING:
    from tools.launchers.links import LinksReport
    from tools.launchers.node import NodeDescription
    from tools.sanity.nccl import NcclReport


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a node's clock is ahead of ours, and by how much that may be wrong; both in seconds."""

    ahead: float
    within: float


@dataclass
class Gathered:
    """By node's name. ``lost`` are nodes that did not answer, with why; ``died`` those that went away while the ranks ran;
    ``again`` are the links after a failed test; ``left`` is the command that removes what a launcher left behind."""

    names: tuple[str, ...]
    described: dict[str, NodeDescription] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    links: dict[str, LinksReport] = field(default_factory=dict)
    tests: dict[str, NcclReport] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    died: dict[str, str] = field(default_factory=dict)
    again: dict[str, LinksReport] = field(default_factory=dict)
    left: str = ""
