"""`metrics`: a live server over some seconds, once or again and again, alone or with all others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assistant.faces.cli.options import (
    DeadlineOption,
    ExitCodeOption,
    FullOption,
    LangOption,
    Output,
    OutputOption,
    PathOption,
    SaveOption,
    VersionOption,
    fail,
)

#: The longest window; who wants to watch longer uses --watch.
MOST_WINDOW_S = 3600.0


def metrics(
    target: Annotated[
        str | None, typer.Argument(help="address of the server (http://host:8000), or a name of the targets file")
    ] = None,
    window: Annotated[
        float, typer.Option("--window", help="seconds between the first and the last look; 0 looks once")
    ] = 5.0,
    watch: Annotated[bool, typer.Option("--watch", help="look again and again, and announce what changes")] = False,
    all_: Annotated[bool, typer.Option("--all", help="every server of the targets file, the worst first")] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="TIME",
            help="with Prometheus: also say what changed since (14:00, or 2026-11-21T14:00)",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="draw the figures into FILE.svg or FILE.png")
    ] = None,
    lang: LangOption = None,
    vllm_version: VersionOption = None,
    output: OutputOption = Output.text,
    full: FullOption = False,
    path: PathOption = False,
    deadline: DeadlineOption = 60.0,
    exit_code: ExitCodeOption = False,
    save: SaveOption = False,
) -> None:
    """Diagnose a live server by looking at its metrics twice."""
    from assistant.faces.cli import live
    from assistant.faces.cli.answering import parse_time

    if not 0 <= window <= MOST_WINDOW_S:
        fail(f"--window {window:g} is not between 0 and {MOST_WINDOW_S:g} seconds")
    if deadline <= 0:
        fail(f"--deadline {deadline:g} is not above 0 seconds")
    if (target is None) == (not all_):
        fail("give the address or name of one server, or --all for every server of the targets file")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        fail(f"--plot {plot} must end in .svg or .png")
    live.run(
        live.Wanted(
            target=target,
            window_s=window,
            deadline_s=max(deadline, 1.0),
            watch=watch,
            plot=plot,
            baseline=parse_time(baseline, "--baseline"),
            language=lang.value if lang else None,
            vllm_version=vllm_version,
            output=output.value,
            full=full,
            path=path,
            exit_code=exit_code,
            save=save,
        )
    )


def mount(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("metrics")(metrics)
