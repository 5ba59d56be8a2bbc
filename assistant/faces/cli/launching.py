"""`sanity nccl --launcher nodes`: the test of the collectives over several nodes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from assistant.faces.cli.nodes import progress, with_nodes
from assistant.faces.cli.options import fail

if TYPE_CHECKING:
    from tools.registry import Action


class Launcher(StrEnum):
    """Who starts the ranks."""

    local = "local"
    nodes = "nodes"


def ports_of(text: str | None) -> tuple[int, ...]:
    """The ports of ``29500-29502`` or ``29500,29510``; ends the command in a sentence where they are none."""
    from assistant.nodes.plan import PORTS

    if text is None:
        return PORTS
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None:
            fail(f"--ports {text!r} is no range; write 29500-29502")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(found) > 16:
            break
    if not 0 < len(set(found)) <= 16 or not all(1024 <= port <= 65535 for port in found):
        fail(f"--ports {text!r} must name 1 to 16 ports from 1024 to 65535")
    return tuple(dict.fromkeys(found))


def run_on_nodes(nodes: Sequence[str], options: Mapping[str, Any], *, ranks_per_node: int | None, ports: str | None, shown: Any) -> Any:  # fmt: skip
    """The report over all nodes, after the person has agreed."""
    from assistant.faces.cli.answering import catalogue
    from assistant.nodes.gather import try_group
    from assistant.nodes.plan import PlanError
    from assistant.nodes.verdict import judge

    chosen = ports_of(ports)
    word = catalogue().word
    lang = shown.lang

    async def work(tools: Any) -> Any:
        names = ", ".join(node.node.name for node in tools[:12]) + (" …" if len(tools) > 12 else "")
        _agree(word("confirm-cluster", lang, ports=", ".join(map(str, chosen)), nodes=names), shown.yes)

        def say(node: str, doing: str) -> None:
            progress(f"{node}: {doing}" if node else word(f"cluster-progress-{doing}", lang))

        return await try_group(tools, lang=lang, options=options, ranks_per_node=ranks_per_node, ports=chosen, say=say)

    try:
        gathered = with_nodes(nodes, 2, work, shown.deadline_s)
    except PlanError as error:
        fail(str(error), 3)
    finally:
        progress("")
    return judge(gathered, "zh" if lang == "zh" else "en")


def run_on_node(name: str, action: Action, given: Mapping[str, Any], deadline_s: float | None) -> Any:
    """The report of one action on one node, as the same action gives here."""
    from assistant.nodes.remote import RemoteError

    async def work(tools: Any) -> Any:
        if action.effect == "reads":
            return await tools[0].call(action.name, given, deadline_s=action.deadline_s)
        return await tools[0].run(action.name, given, deadline_s=action.deadline_s + 30, on_progress=progress)

    try:
        return with_nodes([name], 1, work, deadline_s)
    except RemoteError as error:
        fail(str(error), 3)
    finally:
        progress("")


def _agree(question: str, yes: bool) -> None:
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail(f"{question} Nobody can be asked here; give --yes to agree.")
    if not typer.confirm(question, default=False):
        raise typer.Exit(2)
