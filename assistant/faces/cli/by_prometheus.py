"""What `metrics` does where the numbers come from a Prometheus server."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from assistant.faces.cli import showing
from assistant.faces.cli.options import fail
from assistant.fleet.by_prometheus import PrometheusLooks, changed_since, dead_of, matching_of
from assistant.fleet.looking import Looked, diagnose_window
from assistant.settings import SettingsError
from assistant.targets import Access, Target
from tools.addresses import Policy
from tools.metrics.window import ServerWindow
from tools.prometheus.client import PrometheusError

if TYPE_CHECKING:
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.model import Language
    from assistant.faces.cli.live import Wanted
    from knowledge.catalog import Catalog
    from tools.prometheus.history import Change

#: More changes than this are no help in an answer.
MOST_CHANGES = 6


def is_meant(target: Target, window: ServerWindow | None, policy: Policy, deadline_s: float) -> bool:
    """Whether the numbers of ``target`` come from Prometheus: configured so, or its address is such a server."""
    if target.metrics is not None:
        return target.metrics.kind == "prometheus"
    if window is None or window.answer not in ("no-vllm-series", "not-found", "redirect", "credentials"):
        return False

    async def ask() -> bool:
        async with PrometheusLooks(policy, 0.0, min(deadline_s, 5.0)) as looks:
            return await looks.client(target.address, {}).is_prometheus()

    return asyncio.run(ask())


def run(wanted: Wanted, target: Target, policy: Policy, engine: Engine, language: Language) -> None:
    """Asks, diagnoses every server that was found, prints; one server in full, several as rows."""
    access = target.metrics or Access("prometheus", target.address)
    try:
        windows, changes = asyncio.run(_ask(wanted, access, policy))
    except PrometheusError as error:
        fail(str(error), 3)
    except SettingsError as error:
        fail("; ".join(error.problems))
    except TimeoutError:
        fail(f"Prometheus at {access.address} took more than {wanted.deadline_s:g} s", 3)
    if not windows:
        fail(
            f"Prometheus at {access.address} keeps nothing of vLLM's{f' for {access.query}' if access.query else ''}", 3
        )
    found = [
        Looked(
            Target(place, target.address), window, diagnose_window(window, place, engine, language, wanted.vllm_version)
        )
        for place, window in windows.items()
    ]
    found.sort(key=lambda one: one.rank)
    notes = tuple(_notes(changes, wanted, engine.catalog, language)) if changes is not None else ()
    if notes:
        first = found[0]
        found[0] = replace(first, diagnosis=replace(first.diagnosis, notes=(*notes, *first.diagnosis.notes)))
    if len(found) == 1:
        from assistant.faces.cli import live

        live.show(found[0].diagnosis, found[0].window, engine, wanted)
    else:
        from assistant.faces.cli import fleet

        fleet.print_all(found, wanted, engine, language, notes)
    if wanted.exit_code:
        raise typer.Exit(showing.EXIT[found[0].diagnosis.verdict])


async def _ask(
    wanted: Wanted, access: Access, policy: Policy
) -> tuple[dict[str, ServerWindow], tuple[list[Change], int] | None]:
    looking = PrometheusLooks(policy, wanted.window_s, wanted.deadline_s)
    async with asyncio.timeout(wanted.deadline_s), looking as looks:
        windows = dict(await looks.windows(access))
        client = looks.client(access.address, access.headers())
        with contextlib.suppress(PrometheusError):  # Thanos and Mimir keep no targets
            windows |= await dead_of(client, windows)
        changes = None
        if wanted.baseline is not None and windows:
            seconds = max((w.seconds for w in windows.values()), default=0.0) or 60.0
            changes = await changed_since(
                client, matching_of(access), baseline=wanted.baseline.timestamp(), window_s=seconds, now=looks.at
            )
        return windows, changes


def _notes(found: tuple[list[Change], int], wanted: Wanted, catalog: Catalog, language: Language) -> list[str]:
    changes, compared = found
    time = wanted.baseline.astimezone().strftime("%H:%M") if wanted.baseline else ""
    if not changes:
        return [catalog.word("baseline-same", language, count=str(compared), time=time)]
    rows = []
    for change in changes[:MOST_CHANGES]:
        unit = "/s" if change.how == "rate" else ""
        word = "baseline-turned" if change.at is not None else "baseline-changed"
        at = datetime.fromtimestamp(change.at).astimezone().strftime("%H:%M:%S") if change.at is not None else ""
        before, now = f"{change.before:.3g}{unit}", f"{change.now:.3g}{unit}"
        rows.append(catalog.word(word, language, figure=change.name, before=before, now=now, time=time, at=at))
    return rows
