"""`metrics --watch`: the same look again and again, refreshed in place, with what changed announced."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from assistant import __version__
from assistant.fleet.looking import diagnose_window

if TYPE_CHECKING:
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.model import Diagnosis, Language
    from assistant.faces.cli.live import Wanted
    from assistant.targets import Target
    from tools.addresses import Policy
    from tools.metrics.window import ServerWindow
    from tools.outbound import Limits

#: Between two windows, so that --window 0 does not become a load.
LEAST_PAUSE_S = 1.0
#: Changes that stay on the screen.
KEPT = 8


def run(wanted: Wanted, target: Target, policy: Policy, engine: Engine, language: Language, limits: Limits) -> None:
    """Watches until it is interrupted. Every change of the verdict is one line (or one JSON object a look)."""
    from assistant.faces.cli.live import look

    before: str | None = None
    changes: list[str] = []
    in_place = wanted.output == "text" and sys.stdout.isatty()
    while True:
        window, beside = look(target, policy, wanted, limits)
        diagnosis = diagnose_window(window, target.name, engine, language, wanted.vllm_version, beside)
        label = diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict
        changed = label != before
        if changed:
            changes.append(_announcement(engine, language, before, label))
        before = label
        if wanted.output == "json":
            print(json.dumps(diagnosis.to_json(engine=__version__, full=wanted.full), ensure_ascii=False), flush=True)
        elif in_place:
            sys.stdout.write("\x1b[H\x1b[2J")
            _screen(diagnosis, window, changes[-KEPT:])
            if changed and len(changes) > 1:
                sys.stdout.write("\a")
            sys.stdout.flush()
        elif changed:
            print(f"{changes[-1]}  {diagnosis.summary}", flush=True)
        time.sleep(LEAST_PAUSE_S)


def _announcement(engine: Engine, language: Language, before: str | None, now: str) -> str:
    moment = time.strftime("%H:%M:%S")
    if before is None:
        return f"{moment}  {now}"
    return f"{moment}  {engine.catalog.word('watch-changed', language, before=before, now=now)}"


def _screen(diagnosis: Diagnosis, window: ServerWindow, changes: list[str]) -> None:
    from assistant.faces.cli.figures import draw_figures
    from assistant.faces.cli.terminal import draw
    from assistant.render.blocks import Heading, Text, Tone

    tone: Tone = "good" if diagnosis.verdict == "healthy" else "bad" if diagnosis.verdict == "cause" else "unsure"
    draw(
        [Heading(f"{diagnosis.target}", tone, 1), Text(diagnosis.summary), *(Text(n, "quiet") for n in diagnosis.notes)]
    )
    draw_figures(window, sys.stdout)
    print()
    for line in changes:
        print(f"  {line}")
