"""What `metrics` does once its options are read."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from assistant.diagnosis.diagnose import Engine
from assistant.faces.cli import showing
from assistant.faces.cli.options import fail
from assistant.fleet.looking import diagnose_window, look_at_target
from assistant.fleet.naming import TargetError, known_targets, limits_of, policy_of, target_of
from assistant.settings import Settings, SettingsError, load
from assistant.targets import Target
from tools.addresses import AddressError, Policy

if TYPE_CHECKING:
    from assistant.diagnosis.model import Case, Diagnosis, Language
    from tools.evidence import Reading
    from tools.metrics.look import Report
    from tools.metrics.window import ServerWindow
    from tools.outbound import Limits


#: Seconds that `ask --target` watches.
WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of `metrics`."""

    target: str | None
    window_s: float
    deadline_s: float
    watch: bool = False
    plot: Path | None = None
    baseline: datetime | None = None
    language: str | None = None
    vllm_version: str | None = None
    output: str = "text"
    full: bool = False
    path: bool = False
    exit_code: bool = False
    save: bool = False

    @property
    def shown(self) -> showing.Shown:
        """How the answer is printed."""
        return showing.Shown(self.output, self.full, self.path, self.exit_code, self.save)


def run(wanted: Wanted) -> None:
    """Looks, diagnoses, prints; ends with the exit status of the answer."""
    settings, targets = _settings()
    language: Language = "zh" if (wanted.language or settings.text("language")) == "zh" else "en"
    if wanted.target is None:
        from assistant.faces.cli import fleet

        fleet.run(wanted, settings, targets, language)
        return
    target = named(wanted.target, targets)
    policy = policy_of(settings, targets, target)
    engine = Engine(showing.catalogue())
    if wanted.watch:
        from assistant.faces.cli import watching

        watching.run(wanted, target, policy, engine, language, limits_of(settings))
        return
    if target.metrics is not None and target.metrics.kind == "prometheus":
        by_prometheus(wanted, target, policy, engine, language)
        return
    window, beside = look(target, policy, wanted, limits_of(settings), _progress(wanted))
    if _may_be_prometheus(target, window, policy, wanted):
        by_prometheus(wanted, target, policy, engine, language)
        return
    if wanted.baseline is not None:
        fail("--baseline needs a Prometheus server, which remembers: give its address, or a target with one")
    diagnosis = diagnose_window(window, target.name, engine, language, wanted.vllm_version, beside)
    _refuse_if_not_asked(window)
    show(diagnosis, window, engine, wanted)
    if wanted.exit_code:
        raise typer.Exit(showing.EXIT[diagnosis.verdict])


def by_prometheus(wanted: Wanted, target: Target, policy: Policy, engine: Engine, language: Language) -> None:
    """The same through a Prometheus server."""
    from assistant.faces.cli import by_prometheus as face

    face.run(wanted, target, policy, engine, language)


def _may_be_prometheus(target: Target, window: ServerWindow, policy: Policy, wanted: Wanted) -> bool:
    """Whether the address is a Prometheus server's: only asked where no vLLM answered there."""
    if window.answer not in ("no-vllm-series", "not-found", "redirect", "credentials"):
        return False
    from assistant.faces.cli.by_prometheus import is_meant

    return is_meant(target, window, policy, wanted.deadline_s)


def _settings() -> tuple[Settings, dict[str, Target]]:
    try:
        settings = load()
        return settings, known_targets(settings)
    except SettingsError as error:
        fail("; ".join(error.problems))


def named(given: str, targets: dict[str, Target]) -> Target:
    """The target of this name or address, or the end with a sentence."""
    try:
        return target_of(given, targets)
    except TargetError as error:
        fail(str(error))


def look(
    target: Target, policy: Policy, wanted: Wanted, limits: Limits, report: Report | None = None
) -> tuple[ServerWindow, Reading]:
    """One look over the window; ends with a sentence where the target cannot be used."""
    try:
        return asyncio.run(
            look_at_target(
                target, policy, window_s=wanted.window_s, deadline_s=wanted.deadline_s, limits=limits, report=report
            )
        )
    except SettingsError as error:
        fail("; ".join(error.problems))
    except AddressError as error:
        fail(str(error))


def with_target(case: Case, given: str, deadline_s: float) -> Case:
    """The case with what a live server shows beside it, for `ask --target`."""
    from tools.metrics.facts import evidence_of

    settings, targets = _settings()
    target = named(given, targets)
    wanted = Wanted(given, WINDOW_S, deadline_s)
    window, beside = look(target, policy_of(settings, targets, target), wanted, limits_of(settings))
    _refuse_if_not_asked(window)
    beside += _node_of(target, policy_of(settings, targets, target), case.language)
    return replace(case, reading=case.reading + evidence_of(window) + beside, target=target.name)


def _node_of(target: Target, policy: Policy, language: str) -> Reading:
    """What the tool server on the target's node sees, where it has one."""
    from assistant.faces.cli.auditing import noted
    from assistant.nodes.looking import look_at_node

    try:
        with noted() as notes:
            return asyncio.run(look_at_node(target, policy, lang=language, note=notes.note))
    except SettingsError as error:
        fail("; ".join(error.problems))


def _refuse_if_not_asked(window: ServerWindow) -> None:
    """An address that may not be connected to is bad input, and no finding about a server."""
    if window.answer == "not-asked" and window.refused_address:
        fail(window.detail)


def show(diagnosis: Diagnosis, window: ServerWindow, engine: Engine, wanted: Wanted) -> None:
    """Prints the answer, below it the figures for people, and draws them where that was asked for."""
    showing.conclude(diagnosis, engine.catalog, wanted.shown, wanted.target or "")
    if wanted.output == "text" and window.looks:
        from assistant.faces.cli.figures import draw_figures

        draw_figures(window, sys.stdout)
    if wanted.plot is not None:
        from assistant.render.figures import PlotError, save_plot

        try:
            save_plot(window, wanted.plot)
        except (OSError, PlotError) as error:
            fail(f"{wanted.plot} cannot be written: {error}", 3)


def _progress(wanted: Wanted) -> Report | None:
    """A line on standard error while the window lasts, on a terminal only."""
    if wanted.output != "text" or not sys.stderr.isatty():
        return None

    def report(fraction: float | None, text: str) -> None:
        end = "\r\x1b[K" if fraction == 1.0 else "\r"
        share = "" if fraction is None else f" {fraction:.0%}"
        print(f"\r\x1b[K{text}{share}", end=end, file=sys.stderr, flush=True)

    return report
