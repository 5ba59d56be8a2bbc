"""What the commands that look at several nodes share: which nodes, the way to them, and progress."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from assistant.faces.cli.options import fail

if TYPE_CHECKING:
    from assistant.nodes.remote import RemoteTools

T = TypeVar("T")

ImageOption = Annotated[str, typer.Option("--image", help="Kubernetes: image of the pods, the one vLLM runs with")]
KubeOption = Annotated[str, typer.Option("--kube", metavar="FILE", help="Kubernetes: kubeconfig, or in-cluster")]
KubeContextOption = Annotated[str, typer.Option("--kube-context", help="Kubernetes: context of that file")]
NamespaceOption = Annotated[str, typer.Option("--namespace", help="Kubernetes: where the Job is made")]
HostNetworkOption = Annotated[
    bool, typer.Option("--host-network", help="Kubernetes: pods use the network of their nodes")
]
NodeOption = Annotated[
    list[str] | None,
    typer.Option("--node", metavar="NAME", help="a target with node_tools; all of them unless given, may be repeated"),
]


def with_nodes(wanted: Sequence[str], least: int, work: Callable[[list[RemoteTools]], Awaitable[T]], deadline_s: float | None = None) -> T:  # fmt: skip
    """Do ``work`` with the tools of the wanted nodes; ends the command in a sentence where there are too few."""
    from assistant.faces.cli.auditing import noted
    from assistant.fleet.naming import known_targets, policy_of
    from assistant.nodes.known import nodes_of
    from assistant.nodes.remote import RemoteTools
    from assistant.settings import SettingsError, load
    from tools import registry
    from tools.outbound import Outbound

    registry.discover()
    try:
        settings = load()
        targets = known_targets(settings)
        nodes = nodes_of(targets, wanted)
    except SettingsError as error:
        fail(str(error))
    if len(nodes) < least:
        fail(f"{len(nodes)} nodes are known and {least} are needed: give targets node_tools in the targets file (targets_file).")  # fmt: skip

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[list[RemoteTools]]:
        most_s = max(1.0, (deadline_s or 60.0) / 2 - 1)  # one call may hang and another node still be asked
        with noted() as notes:
            async with Outbound(policy_of(settings, targets)) as out:
                yield [RemoteTools(node, out, notes.note, most_s=most_s) for node in nodes]

    async def main() -> T:
        async with opened() as tools, asyncio.timeout(deadline_s):
            return await work(tools)

    try:
        return asyncio.run(main())
    except TimeoutError:
        fail(f"The nodes did not answer within {deadline_s:g} s; what ran there was cancelled.", 3)


def progress(text: str) -> None:
    """One line on a terminal that the next one replaces; nothing elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[:100]}")
        sys.stderr.flush()
