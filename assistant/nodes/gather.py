"""Asks all nodes at once: what they are, whether they reach each other, and how their ranks fare together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from assistant.nodes.gathered import Clock, Gathered
from assistant.nodes.plan import PORTS, make_plan
from assistant.nodes.remote import RemoteError
from tools.sanity.results import Sheet

if TYPE_CHECKING:
    from pydantic import BaseModel

    from assistant.nodes.remote import RemoteTools
    from tools.launchers.links import LinksReport
    from tools.launchers.node import NodeDescription
    from tools.sanity.nccl import NcclReport

T = TypeVar("T")
#: Nodes that are asked at the same time. More would make the asking machine slow and not the answer fast.
AT_ONCE = 32
#: Seconds that the check of the links listens: longer for many, whose jobs do not begin at one moment.
_LINKS_S, _LINKS_MANY_S = 12.0, 20.0
Say = Callable[[str, str], None]


def _quiet(node: str, doing: str) -> None:
    return None


async def describe_all(tools: Sequence[RemoteTools], gathered: Gathered) -> None:
    """What each node is, and its clock; who does not answer is ``lost``."""

    async def one(node: RemoteTools) -> None:
        before, started = time.time(), time.monotonic()
        found = cast("NodeDescription", await node.call("describe_node", {}))
        took = time.monotonic() - started
        gathered.described[node.node.name] = found
        gathered.clocks[node.node.name] = Clock(found.clock - (before + took / 2), took / 2)

    await _each(tools, one, gathered.lost)


async def check_all(
    tools: Sequence[RemoteTools],
    checks: Sequence[str],
    lang: str,
    lost: dict[str, str],
    on_done: Callable[[int], None],
) -> dict[str, dict[str, BaseModel]]:
    """The results of reading checks by node and name; who does not answer is in ``lost``."""
    found: dict[str, dict[str, BaseModel]] = {}

    async def one(node: RemoteTools) -> None:
        mine: dict[str, BaseModel] = {}
        for check in checks:
            try:
                mine[check] = await node.call(check, {"lang": lang})
            except RemoteError as error:
                if error.kind != "failed":
                    raise
                sheet = Sheet(check, "zh" if lang == "zh" else "en")  # the node answers; this check has no answer
                sheet.add("cluster.check", "unknown", check, detail=str(error))
                mine[check] = sheet.report()
        found[node.node.name] = mine
        on_done(len(found))

    await _each(tools, one, lost)
    return found


async def try_group(
    tools: Sequence[RemoteTools],
    *,
    lang: str,
    options: Mapping[str, Any],
    ranks_per_node: int | None = None,
    ports: Sequence[int] = PORTS,
    say: Say = _quiet,
) -> Gathered:
    """Describe, try the links, run the ranks of all nodes as one group; after a failure try the links again.

    ``options`` are arguments of ``run_nccl_test`` that are the same everywhere. Raises ``PlanError``.
    """
    gathered = Gathered(tuple(node.node.name for node in tools))
    await describe_all(tools, gathered)
    here = [node for node in tools if node.node.name in gathered.described]
    if gathered.lost:
        return gathered  # a group with a hole in it only proves the hole
    plan = make_plan(
        [(n.node.name, gathered.described[n.node.name]) for n in here], ranks_per_node=ranks_per_node, ports=ports
    )
    gathered.plan = plan
    say("", "links")
    await _links(here, gathered, gathered.links, say)
    if not (gathered.failed or links_broken(gathered)):
        say("", "ranks")
        await _ranks(here, gathered, lang, options, say)
        broken = any(report.verdict == "bad" for report in gathered.tests.values())
        if broken or gathered.failed:
            say("", "links")
            await _links(here, gathered, gathered.again, say, again=True)
    return gathered


def links_broken(gathered: Gathered) -> bool:
    """Whether some pair of nodes has no way to each other at all: ranks would only wait for it."""
    return any(
        all(state != "open" for state in peer.ports.values()) for r in gathered.links.values() for peer in r.peers
    )


async def _links(tools: Sequence[RemoteTools], gathered: Gathered, into: dict[str, LinksReport], say: Say, *, again: bool = False) -> None:  # fmt: skip
    plan = gathered.plan
    assert plan is not None  # noqa: S101 (made before)
    seconds = _LINKS_S if len(tools) <= 8 else _LINKS_MANY_S

    async def one(node: RemoteTools) -> None:
        name = node.node.name
        arguments = {
            "address": plan.place(name).address,
            "peers": [plan.place(peer).address for peer in plan.peers[name]],
            "ports": list(plan.ports),
            "seconds": seconds,
        }
        found = await node.run("check_links", arguments, deadline_s=seconds + 30, on_progress=lambda t: say(name, t))
        into[name] = cast("LinksReport", found)

    await _each(tools, one, {} if again else gathered.failed, together=True)


async def _ranks(tools: Sequence[RemoteTools], gathered: Gathered, lang: str, options: Mapping[str, Any], say: Say) -> None:  # fmt: skip
    plan = gathered.plan
    assert plan is not None  # noqa: S101
    going: dict[str, asyncio.Task[None]] = {}

    async def one(node: RemoteTools) -> None:
        name = node.node.name
        place = plan.place(name)
        arguments = {
            **options,
            "lang": lang,
            "ranks": plan.ranks,
            "first_rank": place.first_rank,
            "here": place.here,
            "master": plan.master,
            "bisect": False,
        }
        found = await node.run("run_nccl_test", arguments, deadline_s=1500, on_progress=lambda text: say(name, text))
        gathered.tests[name] = cast("NcclReport", found)

    async def kept(node: RemoteTools) -> None:
        try:
            await one(node)
        except RemoteError as error:
            gathered.failed[node.node.name] = str(error)
            if error.kind != "unreachable":  # its ranks never began: the others would wait in vain
                for name, task in going.items():
                    if name != node.node.name and name not in gathered.tests:
                        task.cancel()

    for node in tools:
        going[node.node.name] = asyncio.create_task(kept(node))
    try:
        await asyncio.gather(*going.values(), return_exceptions=True)
    finally:
        for task in going.values():
            task.cancel()
        await asyncio.gather(*going.values(), return_exceptions=True)


async def _each(tools: Sequence[RemoteTools], one: Callable[[RemoteTools], Awaitable[None]], lost: dict[str, str], *, together: bool = False) -> None:  # fmt: skip
    gate = asyncio.Semaphore(len(tools) if together else AT_ONCE)

    async def kept(node: RemoteTools) -> None:
        async with gate:
            try:
                await one(node)
            except RemoteError as error:
                lost[node.node.name] = str(error)

    async with asyncio.TaskGroup() as group:
        for node in tools:
            group.create_task(kept(node))
