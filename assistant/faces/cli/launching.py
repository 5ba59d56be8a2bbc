"""`sanity nccl` and `check` with `--launcher nodes|ray|slurm|kubernetes`: the test and the checks over several nodes."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from assistant.faces.cli.auditing import noted
from assistant.faces.cli.nodes import progress, with_nodes
from assistant.faces.cli.options import fail

if TYPE_CHECKING:
    from assistant.nodes.fleet import Fleet
    from assistant.nodes.gathered import Gathered
    from assistant.store.audit import Outcome
    from tools.launchers.site import Site
    from tools.registry import Action
    from tools.sanity.results import Language, Report


T = TypeVar("T")
#: Seconds that `check` may take unless told otherwise: an image of many gigabytes may have to be fetched for a pod.
CHECK_S, CHECK_PODS_S = 60.0, 300.0


class Launcher(StrEnum):
    """Who starts the ranks."""

    local = "local"
    nodes = "nodes"
    ray = "ray"
    slurm = "slurm"
    kubernetes = "kubernetes"


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


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """What a site's launcher is told: the interpreter on the nodes, which or how many of them, where the cluster is."""

    launcher: Launcher
    nodes: tuple[str, ...] = ()
    count: int | None = None
    python: str | None = None
    address: str = ""
    ranks_per_node: int | None = None
    ports: str | None = None
    cpu_only: bool = False
    on_busy_gpu: bool = False
    stage_s: float | None = None
    deadline_s: float = 1800.0
    kube: str = ""
    context: str = ""
    namespace: str = ""
    image: str = ""
    host_network: bool = False
    checks_s: float | None = None


def site_of(
    given: SiteOptions, ports: Sequence[int], on_left: Callable[[str], None]
) -> AbstractAsyncContextManager[Site]:
    """The way to the nodes that a launcher offers. Entering it raises ``SiteError`` and ``ActionError``.

    ``on_left`` is given the command that removes what could not be removed from the site.
    """
    from tools.launchers.started import ray_site, slurm_site

    if given.launcher is Launcher.kubernetes:
        return _kubernetes(given, ports, on_left)

    if given.launcher is Launcher.ray:
        claim = not (given.on_busy_gpu or given.cpu_only)
        return ray_site(
            python=given.python, address=given.address, nodes=given.nodes, cpu_only=given.cpu_only, claim=claim,
            deadline_s=given.deadline_s,
        )  # fmt: skip
    return slurm_site(python=given.python, nodes=given.nodes, count=given.count, deadline_s=given.deadline_s)


@asynccontextmanager
async def _kubernetes(given: SiteOptions, ports: Sequence[int], on_left: Callable[[str], None]) -> AsyncIterator[Site]:
    from assistant.nodes.plan import MESH
    from assistant.settings import load
    from assistant.targets import policy_for
    from tools.launchers.kubernetes_api import Api
    from tools.launchers.kubernetes_objects import JobPlan
    from tools.launchers.kubernetes_site import cluster_of, kubernetes_site, new_name
    from tools.launchers.site import SiteError
    from tools.outbound import Outbound

    count = given.count or len(given.nodes)
    if not given.image or not count:
        raise SiteError("kubernetes-image")
    cluster, allowance = cluster_of(given.kube, given.context)
    plan = JobPlan(
        name=new_name(), namespace=given.namespace or cluster.namespace, image=given.image, count=count,
        ranks_per_node=given.ranks_per_node or 1, nodes=given.nodes, python=given.python or "python3", ports=tuple(ports),
        mesh=MESH, cpu_only=given.cpu_only, host_network=given.host_network, stage_s=given.stage_s,
        deadline_s=given.deadline_s, checks_s=given.checks_s,
    )  # fmt: skip
    async with (
        Outbound(policy_for(load(), {}, allowance)) as out,
        kubernetes_site(Api(cluster, plan.namespace, out), plan, on_left, given.context) as site,
    ):
        yield site


def run_on_site(given: SiteOptions, shown: Any) -> Report:
    """The report over all nodes of a site, after the person has agreed."""
    from assistant.nodes.site_group import try_site
    from assistant.nodes.verdict import judge

    chosen = ports_of(given.ports)
    lang, word = _language(shown.lang)
    _agree(word("confirm-site", launcher=given.launcher.value, nodes=_named(given, word), ports=", ".join(map(str, chosen))), shown.yes)  # fmt: skip
    ranks_per_node = given.ranks_per_node or (1 if given.launcher is Launcher.kubernetes else None)

    def say(node: str, doing: str) -> None:
        progress(f"{node}: {doing}" if node else word(f"cluster-progress-{doing}", detail=given.launcher.value))

    async def work(site: Site) -> Gathered:
        return await try_site(
            site, launcher=given.launcher.value, lang=lang, word=word, ranks_per_node=ranks_per_node, ports=chosen,
            options={"cpu_only": given.cpu_only, "stage_s": given.stage_s}, say=say,
        )  # fmt: skip

    gathered, left = _with_site(given, chosen, word, "run_nccl_test", work)
    gathered.left = left
    return judge(gathered, lang)


def fleet_of_site(given: SiteOptions, language: str, yes: bool) -> Fleet:
    """The checks of all nodes of a site and what differs between them, after the person has agreed to a task on each."""
    from assistant.nodes.fleet import fleet_of
    from assistant.nodes.site_checks import LOOK_S, check_site

    lang, word = _language(language)
    _agree(word("confirm-site-look", launcher=given.launcher.value, nodes=_named(given, word)), yes)
    look_s = min(LOOK_S, given.deadline_s / 4)

    async def work(site: Site) -> tuple[Gathered, dict[str, list[Report]]]:
        return await check_site(
            site, launcher=given.launcher.value, lang=lang, word=word, here_s=given.deadline_s / 2, look_s=look_s,
            on_done=lambda done: progress(f"{done}/{site.expected}"),
        )  # fmt: skip

    (gathered, found), left = _with_site(replace(given, checks_s=look_s), (), word, "check", work)
    gathered.left = left
    return fleet_of(gathered, found, lang)


def _language(given: str) -> tuple[Language, Callable[..., str]]:
    from assistant.faces.cli.answering import catalogue

    lang: Language = "zh" if given == "zh" else "en"
    known = catalogue()
    return lang, lambda key, **values: known.word(key, lang, **values)


def _named(given: SiteOptions, word: Callable[..., str]) -> str:
    if given.nodes:
        return ", ".join(given.nodes[:12]) + (" …" if len(given.nodes) > 12 else "")
    return word("confirm-site-some", count=given.count) if given.count else word("confirm-site-all")


def _with_site(
    given: SiteOptions,
    ports: Sequence[int],
    word: Callable[..., str],
    did: str,
    work: Callable[[Site], Awaitable[T]],
) -> tuple[T, str]:
    """Do ``work`` with the nodes of a site, and the command that removes what was left there. It is written down, and ends
    the command in a sentence where it cannot be."""
    from assistant.nodes.plan import PlanError
    from tools.launchers.site import SiteError
    from tools.registry import ActionError

    left: list[str] = []

    async def main() -> T:
        me = asyncio.current_task()
        if me is not None:  # what was started on the nodes is ended, and objects are removed, as after Ctrl-C
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        async with site_of(given, ports, left.append) as site, asyncio.timeout(given.deadline_s):
            return await work(site)

    outcome: Outcome = "failed"
    try:
        found = asyncio.run(main())
        outcome = "done"
        return found, "".join(left)
    except SiteError as error:
        fail(word(f"launcher-{error.kind}", **{"text": "", **error.values}), 3)
    except (PlanError, ActionError) as error:
        fail(str(error), 3)
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
    except TimeoutError:
        fail(word("launcher-deadline", seconds=round(given.deadline_s)), 3)
    finally:
        progress("")
        detail = {name: value for name, value in asdict(given).items() if value}
        with noted() as notes:
            notes.note(
                did,
                "runs" if did == "check" else "loads",
                f"{given.launcher.value}: {_named(given, word)}",
                outcome,
                detail,
            )
        if left:
            print(f"vllm-diagnose: {word('launcher-left', command=left[0])}", file=sys.stderr)


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
