"""`check`: hosts, GPUs and networks of all nodes at once, the worst first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant.faces.cli.launching import Launcher, SiteOptions, fleet_of_site
from assistant.faces.cli.nodes import NodeOption, progress, with_nodes
from assistant.faces.cli.options import ExitCodeOption, Lang, LangOption, Output, OutputOption, fail

if TYPE_CHECKING:
    from assistant.nodes.fleet import Fleet


def mount(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(check)


def check(
    node: NodeOption = None,
    launcher: Annotated[
        Launcher, typer.Option("--launcher", help="nodes (tool servers), or ray or slurm: what differs between theirs")
    ] = Launcher.nodes,
    python: Annotated[str | None, typer.Option("--python", help="Ray, Slurm: interpreter that vLLM uses there")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=2, max=512, help="Slurm: how many nodes")] = None,
    address: Annotated[str, typer.Option("--address", help="of the Ray cluster")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="agree to a task on each node of Ray or Slurm")] = False,
    full: Annotated[bool, typer.Option("--full", help="show what is in order as well")] = False,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="seconds the whole may take")] = 60.0,
    lang: LangOption = None,
    output: OutputOption = Output.text,
    exit_code: ExitCodeOption = False,
) -> None:
    """Check hosts, GPUs and networks of all nodes at once; show the worst first."""
    from assistant.nodes.fleet import look_at_fleet

    language: Any = (lang or Lang.en).value

    async def work(tools: Any) -> Fleet:
        return await look_at_fleet(tools, language, on_done=lambda done: progress(f"{done}/{len(tools)}"))

    if launcher in (Launcher.ray, Launcher.slurm):
        site = SiteOptions(
            launcher, tuple(node or ()), nodes, python, address, cpu_only=True, on_busy_gpu=True, deadline_s=deadline
        )
        found = fleet_of_site(site, language, yes)
    elif launcher is Launcher.nodes:
        found = with_nodes(node or (), 1, work, deadline)
    else:
        fail(
            "check takes --launcher nodes, ray or slurm; for this node there is `sanity host`, `sanity gpu`, `sanity network`"
        )
    progress("")
    if output is Output.json:
        print(json.dumps({"schema": 1, **found.to_json()}, ensure_ascii=False, indent=2))
    else:
        from assistant.faces.cli.answering import catalogue
        from assistant.render.checks import fleet_blocks

        blocks = list(fleet_blocks(found, catalogue(), language, full=full))
        if output is Output.markdown:
            from assistant.render.markdown import to_markdown

            print(to_markdown(blocks), end="")
        else:
            from assistant.faces.cli.terminal import draw

            draw(blocks)
    if exit_code:
        raise typer.Exit(1 if found.bad or found.lost else 0)
