"""What servers did over a window, by a Prometheus server's memory: the same shapes that two scrapes give.

Gauges are the samples themselves; counters and histograms are ``increase`` over the window, which extends to its edges
and takes resets into account; quantiles of a :class:`Distribution` are computed as ``histogram_quantile`` does.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tools.metrics.difference import OWN_ROUTES
from tools.metrics.vocabulary import BY_KEY, ENGINE_LABELS, Quantity
from tools.metrics.window import Distribution, EngineKey, EngineWindow, ServerWindow
from tools.prometheus import promql
from tools.prometheus.client import Prometheus, Series

#: A window holds at least so many scrapes: fewer tell no standstill from a pause.
LEAST_SCRAPES = 4
#: How far back the spacing of scrapes is looked at.
_SPACING_S = 900.0
#: Labels that name a server, the first that is there.
_PLACES = ("instance", "pod", "node")


@dataclass(slots=True)
class _Server:
    """What is collected of one instance, by engine."""

    gauges: dict[tuple[EngineKey, str], dict[tuple[int, str], list[tuple[float, float]]]] = field(default_factory=dict)
    increases: dict[tuple[EngineKey, str], dict[tuple[int, str], float]] = field(default_factory=dict)
    totals: dict[tuple[EngineKey, str], dict[tuple[int, str], float]] = field(default_factory=dict)
    buckets: dict[tuple[EngineKey, str, int], dict[float, float]] = field(default_factory=dict)
    sums: dict[tuple[EngineKey, str, int, str], float] = field(default_factory=dict)
    fell: set[EngineKey] = field(default_factory=set)
    config: dict[str, str] = field(default_factory=dict)
    lora: dict[str, str] = field(default_factory=dict)
    http: dict[tuple[str, str], float] = field(default_factory=dict)
    started_at: float | None = None


async def server_windows(
    prometheus: Prometheus, matching: str, *, window_s: float, at: float
) -> dict[str, ServerWindow]:
    """Every server that ``matching`` (label matchers) selects, by its instance, over the window that ends ``at``.

    The window is widened to :data:`LEAST_SCRAPES` scrapes. Empty where nothing of vLLM's is kept. Raises
    :class:`PrometheusError`.
    """
    counted = await prometheus.query(promql.names_expression(matching), at)
    names = promql.known(row.labels.get("__name__", "") for row in counted)
    if not any(names[name][0].prefixed for name in names):
        return {}
    window_s = max(window_s, await _spacing(prometheus, names, matching, at) * LEAST_SCRAPES)
    servers: dict[str, _Server] = defaultdict(_Server)
    gauges, counters = promql.chosen(names, "gauge"), promql.chosen(names, "counter")
    infos, histograms = promql.chosen(names, "info"), promql.chosen(names, "histogram")
    ranged = f"{promql.plain(gauges, matching)}[{promql.duration(window_s)}]"

    async def ask(expression: str) -> list[Series]:
        return await prometheus.query(expression, at)

    async def tagged(function: str, wanted: list[str]) -> list[Series]:
        parts = [ask(promql.over(function, part, matching, window_s)) for part in promql.batches(wanted)]
        return [row for rows in await asyncio.gather(*parts) for row in rows]

    answers = await asyncio.gather(
        ask(ranged) if gauges else _nothing(),
        ask(promql.plain([*counters, *infos], matching)) if counters or infos else _nothing(),
        tagged("increase", [*counters, *histograms]),
        tagged("resets", counters),
    )
    for row in answers[0]:
        _gauge(servers, names, row)
    for row in answers[1]:
        _instant(servers, names, row)
    for row in answers[2]:
        _increase(servers, names, row)
    for row in answers[3]:
        if row.value > 0:
            servers[_place(row)].fell.add(_engine_of(row))
    source = f"GET {prometheus.address}/api/v1/query"
    return {place: _window(server, f"{source} {place}", window_s, at) for place, server in sorted(servers.items())}


async def _nothing() -> list[Series]:
    return []


async def _spacing(
    prometheus: Prometheus, names: Mapping[str, tuple[Quantity, int, str]], matching: str, at: float
) -> float:
    """Seconds between two scrapes, the median over what was kept lately."""
    running = [name for name, (quantity, _, _) in names.items() if quantity.key == "running"]
    if not running:
        return 0.0
    counted = await prometheus.query(f"{promql.plain(running, matching)}[{promql.duration(_SPACING_S)}]", at)
    gaps = [b[0] - a[0] for row in counted[:20] for a, b in zip(row.samples, row.samples[1:], strict=False)]
    return statistics.median(gaps) if gaps else 0.0


def _place(row: Series) -> str:
    return next((row.labels[label] for label in _PLACES if row.labels.get(label)), "server")


def _engine_of(row: Series) -> EngineKey:
    model, engine, replica = (row.labels.get(label, "") for label in ENGINE_LABELS)
    return EngineKey(model, engine, replica)


def _gauge(servers: dict[str, _Server], names: Mapping[str, tuple[Quantity, int, str]], row: Series) -> None:
    quantity, spelling, _ = names[row.labels["__name__"]]
    server = servers[_place(row)]
    if quantity.key == "started":
        server.started_at = row.value
        return
    if not quantity.prefixed:
        return
    label = row.labels.get(quantity.label, "") if quantity.label else ""
    slots = server.gauges.setdefault((_engine_of(row), quantity.key), {})
    slots.setdefault((spelling, label), []).extend(row.samples)


def _instant(servers: dict[str, _Server], names: Mapping[str, tuple[Quantity, int, str]], row: Series) -> None:
    quantity, spelling, _ = names[row.labels["__name__"]]
    server = servers[_place(row)]
    if quantity.kind == "info":
        kept = {k: v for k, v in row.labels.items() if k != "__name__"}
        (server.config if quantity.key == "cache_config" else server.lora).update(kept)
    elif quantity.prefixed:
        label = row.labels.get(quantity.label, "") if quantity.label else ""
        slots = server.totals.setdefault((_engine_of(row), quantity.key), {})
        slots[spelling, label] = slots.get((spelling, label), 0.0) + row.value


def _increase(servers: dict[str, _Server], names: Mapping[str, tuple[Quantity, int, str]], row: Series) -> None:
    quantity, spelling, suffix = names[row.labels[promql.TAG]]
    server, engine, value = servers[_place(row)], _engine_of(row), row.value
    if math.isnan(value):
        return
    if quantity.key == "http_requests":
        slot = (row.labels.get("handler", ""), row.labels.get("status", ""))
        server.http[slot] = server.http.get(slot, 0.0) + value
    elif quantity.kind == "counter" and quantity.prefixed:
        label = row.labels.get(quantity.label, "") if quantity.label else ""
        slots = server.increases.setdefault((engine, quantity.key), {})
        slots[spelling, label] = slots.get((spelling, label), 0.0) + value
    elif suffix == "_bucket":
        try:
            bound = float(row.labels.get("le", "").replace("+Inf", "inf"))
        except ValueError:
            return
        counts = server.buckets.setdefault((engine, quantity.key, spelling), {})
        counts[bound] = counts.get(bound, 0.0) + value
    elif suffix in ("_sum", "_count"):
        slot4 = (engine, quantity.key, spelling, suffix)
        server.sums[slot4] = server.sums.get(slot4, 0.0) + value


def _window(server: _Server, source: str, window_s: float, at: float) -> ServerWindow:
    keys = {engine for engine, key in server.gauges if key == "running"} or {e for e, _ in server.totals}
    engines = tuple(_engine(server, key) for key in sorted(keys, key=lambda k: (k.model, k.engine.zfill(8), k.replica)))
    looks = max((len(values) for engine in engines for values in engine.gauges.values()), default=0)
    by_status: dict[str, float] = {}
    unrouted = 0.0
    for (handler, status), value in server.http.items():
        if handler in OWN_ROUTES:
            continue
        group = f"{status[0]}xx" if status[:1].isdigit() else status
        by_status[group] = by_status.get(group, 0.0) + value
        unrouted += value if handler == "none" and group == "4xx" else 0.0
    refused: dict[str, float] = {}  # counted by the API server, for no engine
    for (_, name), slots in server.increases.items():
        for label, value in _newest(name, slots).items() if name == "refused" else ():
            refused[label] = refused.get(label, 0.0) + value
    return ServerWindow(
        source=source,
        answer="vllm" if engines else "no-vllm-series",
        engines=engines,
        looks=looks,
        seconds=window_s if looks > 1 else 0.0,
        started_at=server.started_at,
        at=at,
        config=server.config,
        lora=server.lora,
        http=by_status,
        http_unrouted=unrouted if server.http else None,
        refused=refused if any(name == "refused" for _, name in server.increases) else None,
    )


def _engine(server: _Server, key: EngineKey) -> EngineWindow:
    gauges: dict[str, tuple[float, ...]] = {}
    split: dict[str, dict[str, float]] = {}
    unreadable: set[str] = set()
    for (engine, name), slots in server.gauges.items():
        if engine != key:
            continue
        best = min(spelling for spelling, _ in slots)
        values: dict[float, float] = defaultdict(float)
        for (spelling, _), samples in slots.items():
            for moment, value in samples if spelling == best else ():
                values[moment] += value
        readable = tuple(values[moment] for moment in sorted(values) if math.isfinite(values[moment]))
        if len(readable) < len(values):
            unreadable.add(name)
        if readable:
            gauges[name] = readable
        if any(label for _, label in slots):
            split[name] = {label: samples[-1][1] for (spelling, label), samples in slots.items() if spelling == best}
    increases: dict[str, float] = {}
    for (engine, name), counted in server.increases.items():
        if engine == key:
            by_label = _newest(name, counted)
            increases[name] = sum(by_label.values())
            if any(by_label):
                split[name] = by_label
    totals = {n: sum(_newest(n, slots).values()) for (engine, n), slots in server.totals.items() if engine == key}
    return EngineWindow(
        key, gauges, increases, totals, split, _distributions(server, key), frozenset(unreadable), key in server.fell
    )


def _newest(name: str, slots: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """By label: the newest spelling, or all of them where they are parts of one sum."""
    whole = BY_KEY[name].combine == "sum"
    best = min(spelling for spelling, _ in slots)
    found: dict[str, float] = defaultdict(float)
    for (spelling, label), value in slots.items():
        if whole or spelling == best:
            found[label] += value
    return dict(found)


def _distributions(server: _Server, key: EngineKey) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    spelled: dict[str, set[int]] = defaultdict(set)
    for engine, name, spelling, _ in server.sums:
        if engine == key:
            spelled[name].add(spelling)
    for name, spellings in spelled.items():
        # After an update both names may lie in the window; the newer one counts where it has observations.
        for spelling in sorted(spellings):
            count = server.sums.get((key, name, spelling, "_count"), 0.0)
            found[name] = _distribution(server, key, name, spelling, count)
            if count > 0:
                break
    return found


def _distribution(server: _Server, key: EngineKey, name: str, spelling: int, count: float) -> Distribution:
    if count <= 0:
        return Distribution(0.0, 0.0)
    most, grown = 0.0, []
    for bound, value in sorted(server.buckets.get((key, name, spelling), {}).items()):
        most = max(most, value)  # extrapolation may put a bucket a hair above the next one
        grown.append((bound, most))
    if not grown or not math.isinf(grown[-1][0]):
        grown = []
    return Distribution(count, server.sums.get((key, name, spelling, "_sum")), tuple(grown))
