"""What the workers on all nodes of a site have said, and how to say something to all of them.

A site is what starts programs on its nodes itself: a Ray cluster, Slurm, Kubernetes. Its launcher brings
:mod:`tools.launchers.node_worker` to each node and passes lines both ways; this module keeps what came back.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.launchers.links import LinksReport, PeerSeen
from tools.launchers.node import NodeDescription
from tools.sanity.launch import Event, Ran, Send
from tools.sanity.results import plain

_HERE = Path(__file__).parent
#: What :mod:`tools.launchers.checks_worker` imports of ours, with all that those import.
GATHERING = (
    "tools.proc", "tools.kernel_log", "tools.host.facts", "tools.host.packages", "tools.network.facts",
    "tools.network.interfaces", "tools.gpu.facts", "tools.gpu.cards", "tools.gpu.nvml",
)  # fmt: skip
_MOST_NODES = 1024
_MOST_SETTINGS = 64
#: What Ray's driver may say of the cluster and of a node; each has a sentence, ``launcher-KIND`` or ``launcher-lost-KIND``.
_REFUSALS = ("no-ray", "no-cluster", "ray-version", "no-gpu-node", "unknown-node")
_LOSSES = ("died", "unplaced")


class SiteError(Exception):
    """The site cannot be used. ``kind`` names the sentence ``launcher-KIND`` of the knowledge; ``values`` fill it."""

    def __init__(self, kind: str, **values: object) -> None:
        super().__init__(f"{kind}: {values}")
        self.kind, self.values = kind, values


def node_program() -> str:
    """The text of the worker with the programs that it starts, ready to be run."""
    programs = {
        "links": (_HERE / "link_worker.py").read_text("utf-8"),
        "ranks": (_HERE.parent / "sanity" / "rank_worker.py").read_text("utf-8"),
        "checks": bundled((_HERE / "checks_worker.py").read_text("utf-8"), {"modules": gathering_modules()}),
    }
    return bundled((_HERE / "node_worker.py").read_text("utf-8"), programs)


def gathering_modules() -> str:
    """The modules that gather facts on a node, and our pynvml, since not every interpreter there has one; packed."""
    import pynvml

    texts = {name: (_HERE.parents[1] / f"{name.replace('.', '/')}.py").read_text("utf-8") for name in GATHERING}
    texts["pynvml"] = Path(pynvml.__file__).read_text("utf-8")
    return base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()


def bundled(source: str, programs: Mapping[str, str]) -> str:
    """A self-contained program whose global ``PROGRAMS`` holds the texts of others."""
    return f"exec(compile({source!r}, '<vllm-diagnose>', 'exec'), {{'__name__': '__main__', 'PROGRAMS': {dict(programs)!r}}})"


def host_names(text: str) -> list[str]:
    """The nodes of a host list as Slurm writes it.

    >>> host_names("gpu[01-03,7],login")
    ['gpu01', 'gpu02', 'gpu03', 'gpu7', 'login']
    """
    found: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]*)(?:\[([\d,\-]+)\])?([^,\[\]]*)(?:,|$)", text):
        if not ranges:
            found += [prefix + suffix] if prefix + suffix else []
            continue
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            if not first.isdigit() or (last and not last.isdigit()) or int(last or first) - int(first) > 4096:
                continue
            found += [f"{prefix}{n:0{len(first)}}{suffix}" for n in range(int(first), int(last or first) + 1)]
    return found[:4096]


@dataclass
class Part:
    """One node: its name, what it said, and why nothing more is to be expected of it (``lost``: the name of a sentence
    and a detail). ``clocks`` are its clock by number of the question, with ours when the answer came."""

    task: int
    name: str
    hello: Event | None = None
    said: dict[str, list[Event]] = field(default_factory=dict)
    ended: dict[str, Event] = field(default_factory=dict)
    clocks: dict[int, tuple[float, float]] = field(default_factory=dict)
    lost: tuple[str, str] | None = None
    over: bool = False

    @property
    def silent(self) -> bool:
        """Whether nothing more will come."""
        return self.lost is not None or self.over


class Site:
    """The nodes of a test by number. ``send`` reaches all of them, once the launcher has set it.

    ``refused`` is why the site cannot be used, ``over`` that its launcher has ended, ``last_words`` what it said then.
    ``alone`` nodes take no commands and go through the whole by themselves.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.parts: dict[int, Part] = {number: Part(number, name) for number, name in enumerate(names)}
        self.expected: int | None = len(self.parts) or None
        self.refused: SiteError | None = None
        self.over = False
        self.last_words = ""
        self.alone = False
        self.send: Send = lambda line: None
        self.on_stage: Callable[[str, str, int], None] = lambda node, stage, rank: None
        self._news = asyncio.Event()

    def command(self, **what: Any) -> None:
        """Tell all nodes to do something."""
        self.send(json.dumps(what))

    def changed(self) -> None:
        """Wake whoever waits."""
        self._news.set()

    def take(self, event: Event) -> None:
        """Keep one event of a node or of the launcher; what does not fit is left out, since it comes from elsewhere."""
        try:
            self._take(event)
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        finally:
            self.changed()

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "nodes":
            rows = event["nodes"][:_MOST_NODES]
            for row in rows:
                self.part(int(row["task"])).name = plain(row["name"], 80)
            self.expected = len(rows)
        elif kind == "refused" and event["kind"] in _REFUSALS:
            values = {key: plain(value, 300) for key, value in event.items() if key not in ("event", "kind", "task")}
            self.refused = SiteError(str(event["kind"]), **values)
        elif kind == "lost":
            why = event["kind"] if event["kind"] in _LOSSES else "broken"
            self.lose(int(event["lost"]), why, str(event["text"]))
        elif kind == "over":
            part = self.part(int(event["of"]))
            part.over = True
            if part.hello is None:
                self.lose(part.task, "broken", str(event["text"]))
        elif "task" in event:
            self._of_node(self.part(int(event["task"])), kind, event)

    def _of_node(self, part: Part, kind: str, event: Event) -> None:
        if kind == "node":
            part.hello = event
            for task, name in enumerate(host_names(str(event.get("nodes") or ""))[: self.expected or 0]):
                known = self.part(task)  # Slurm numbers its tasks in the order of its nodes
                known.name = known.name or plain(name, 80)
            part.name = part.name or plain(event["name"], 80)
        elif kind == "said":
            what = event["what"]
            if not isinstance(what, dict) or not isinstance(what.get("event"), str):
                raise ValueError("an event of a node has no name")
            part.said.setdefault(str(event["of"]), []).append(what)
            if event["of"] == "ranks" and what.get("event") == "begin":
                self.on_stage(part.name, str(what["stage"]), int(what["rank"]))
        elif kind == "ended":
            part.ended[str(event["of"])] = event
        elif kind == "clock":
            part.clocks[int(event["number"])] = (float(event["clock"]), time.time())
        elif kind == "unmet":
            part.lost = part.lost or ("unmet", ", ".join(plain(name, 80) for name in event["names"][:8]))
        elif kind == "bye":
            part.over = True

    def part(self, task: int) -> Part:
        """The node of this number."""
        if task not in self.parts:
            if not 0 <= task < _MOST_NODES:
                raise ValueError(f"{task} is no number of a node")
            self.parts[task] = Part(task, "")
        return self.parts[task]

    def lose(self, task: int, kind: str, text: str) -> None:
        """Nothing more will come from this node."""
        part = self.part(task)
        part.lost = part.lost or (kind, plain(text))
        self.changed()

    async def wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Until ``ready``, the launcher has ended, the site is refused, or ``seconds`` are over; says whether ``ready``."""
        try:
            async with asyncio.timeout(seconds):
                while not ready() and not self.over and self.refused is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return ready()

    def all_here(self) -> bool:
        """Whether every expected node has described itself or is lost."""
        return self.expected is not None and len(self.parts) >= self.expected and all(
            part.hello is not None or part.lost is not None for part in self.parts.values()
        )  # fmt: skip

    def all_ended(self, of: str) -> bool:
        """Whether every node has ended this, or will not any more."""
        return all(of in part.ended or part.silent for part in self.parts.values())


def description(part: Part) -> NodeDescription:
    """What a node said of itself; raises ``ValueError`` where it is not in that form."""
    hello = part.hello or {}
    settings = {plain(k, 60): plain(v, 120) for k, v in list(hello["settings"].items())[:_MOST_SETTINGS]}
    return NodeDescription(
        name=plain(hello["host"], 80),
        address=plain(hello["address"], 60) if hello.get("address") else None,
        interface=plain(hello["interface"], 60) if hello.get("interface") else None,
        clock=float(hello["clock"]),
        gpus=max(0, min(int(hello.get("gpus") or 0), 64)),
        settings=settings,
    )


def links_of(part: Part, of: str) -> LinksReport:
    """What a node found out about its links, as ``check_links`` says it."""
    hello = part.hello or {}
    events = part.said.get(of, [])
    listening = next((e for e in events if e.get("event") == "listening"), {})
    peers = [PeerSeen(peer=e["peer"], ports=e["ports"], largest=e["largest"]) for e in events if e.get("event") == "peer"]  # fmt: skip
    return LinksReport(
        address=str(hello.get("address")), mtu=hello.get("mtu"), taken=listening.get("taken", {}), peers=peers
    )


def ran_of(part: Part) -> Ran:
    """How the ranks of a node fared, as if they had been started from here."""
    ended = part.ended.get("ranks", {})
    return Ran(part.said.get("ranks", []), str(ended.get("stderr", "")), bool(ended.get("late")), ended.get("status"))
