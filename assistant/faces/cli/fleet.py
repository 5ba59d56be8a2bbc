"""`metrics --all`: every configured server at once, the worst first."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import typer

from assistant import __version__
from assistant.diagnosis.diagnose import Engine
from assistant.faces.cli import showing
from assistant.faces.cli.options import fail
from assistant.fleet.looking import Looked, look_at_all
from assistant.fleet.naming import limits_of, policy_of
from assistant.fleet.together import outliers
from assistant.settings import Settings
from assistant.targets import Target

if TYPE_CHECKING:
    from assistant.diagnosis.model import Language
    from assistant.faces.cli.live import Wanted
    from knowledge.catalog import Catalog


def run(wanted: Wanted, settings: Settings, targets: dict[str, Target], language: Language) -> None:
    """Looks at all targets and prints them; with --exit-code the worst verdict decides."""
    if not targets:
        fail("--all needs a targets file; name it with the setting targets_file (VLLM_DIAGNOSE_TARGETS_FILE)")
    if wanted.plot is not None or wanted.watch:
        fail("--all goes with neither --plot nor --watch; name one target for these")
    targets = _expanded(targets, settings, wanted.deadline_s)
    engine = Engine(showing.catalogue())
    found = sorted(asyncio.run(_all(wanted, settings, targets, engine, language)), key=lambda one: one.rank)
    print_all(found, wanted, engine, language)
    if wanted.exit_code:
        raise typer.Exit(showing.EXIT[found[0].diagnosis.verdict])


def _expanded(targets: dict[str, Target], settings: Settings, deadline_s: float) -> dict[str, Target]:
    """With the pods of targets that say so; what could not be listed is one line, and the rest is looked at."""
    if not any(access.options.get("discover") for target in targets.values() for access in target.logs):
        return targets
    from assistant.fleet.discovery import expanded

    found, problems = asyncio.run(expanded(targets, policy_of(settings, targets), deadline_s))
    for problem in problems:
        print(f"vllm-diagnose: {problem}", file=sys.stderr)
    return found


def print_all(
    found: list[Looked], wanted: Wanted, engine: Engine, language: Language, notes: tuple[str, ...] = ()
) -> None:
    """Prints servers that were looked at, the worst first; ``notes`` are about all of them."""
    odd = outliers(found)
    if wanted.output == "json":
        _print_json(found, odd, wanted)
        return
    _print_rows(found, odd, engine.catalog, language)
    for note in notes:
        print(note)


async def _all(
    wanted: Wanted, settings: Settings, targets: dict[str, Target], engine: Engine, language: Language
) -> list[Looked]:
    found: list[Looked] = []
    shows = wanted.output == "text" and sys.stderr.isatty()
    async for one in look_at_all(
        targets.values(),
        policy_of(settings, targets),
        engine,
        window_s=wanted.window_s,
        deadline_s=wanted.deadline_s,
        language=language,
        limits=limits_of(settings),
    ):
        found.append(one)
        if shows:
            print(f"\r\x1b[K{len(found)}/{len(targets)}", end="", file=sys.stderr, flush=True)
    if shows:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return found


def _print_json(found: list[Looked], odd: dict[str, list[str]], wanted: Wanted) -> None:
    rows = [
        {
            "target": one.target.name,
            "address": one.target.address,
            "outlier": odd.get(one.target.name, []),
            "diagnosis": one.diagnosis.to_json(engine=__version__, full=wanted.full),
        }
        for one in found
    ]
    counts = {verdict: sum(1 for one in found if one.diagnosis.verdict == verdict) for verdict in showing.EXIT}
    print(json.dumps({"schema": 1, "counts": counts, "targets": rows}, ensure_ascii=False, indent=2))


def _print_rows(found: list[Looked], odd: dict[str, list[str]], catalog: Catalog, language: Language) -> None:
    from rich.text import Text

    from assistant.faces.cli.terminal import console_for

    console = console_for(sys.stdout)
    tones = {"cause": "bold red", "unknown": "yellow", "healthy": "green"}
    wide = min(30, max(len(one.target.name) for one in found))
    for one in found:
        diagnosis = one.diagnosis
        label = (
            diagnosis.causes[0].id
            if diagnosis.verdict == "cause"
            else catalog.word(f"heading-{diagnosis.verdict}", language)
        )
        line = Text(f"{one.target.name[:wide]:{wide}}  ") + Text(label, style=tones[diagnosis.verdict])
        line += Text(f"  {one.figures}", style="bright_black")
        console.print(line, soft_wrap=True)
        if diagnosis.verdict == "unknown":
            console.print(Text(f"{'':{wide}}  {diagnosis.summary}", style="bright_black"), soft_wrap=True)
        for note in [n for n in diagnosis.notes[:1] if diagnosis.verdict == "healthy"]:
            console.print(Text(f"{'':{wide}}  {note}", style="bright_black"), soft_wrap=True)
        for sentence in odd.get(one.target.name, []):
            text = catalog.word("fleet-outlier", language, figures=sentence)
            console.print(Text(f"{'':{wide}}  {text}", style="yellow"), soft_wrap=True)
    counts = {v: str(sum(1 for one in found if one.diagnosis.verdict == v)) for v in showing.EXIT}
    console.print()
    console.print(Text(catalog.word("fleet-counts", language, total=len(found), **counts)))
