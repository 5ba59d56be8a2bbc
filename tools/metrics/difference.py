"""From pages read one after the other to what happened in between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.metrics.exposition import Buckets, Page
from tools.metrics.vocabulary import BY_KEY, QUANTITIES, Quantity
from tools.metrics.window import Distribution, EngineKey, EngineWindow

Pages = Sequence[Page]


@dataclass(frozen=True, slots=True)
class _Growth:
    increase: float
    last: float
    fell: bool


def _growth(values: Sequence[float]) -> _Growth:
    """Growth of a counter; after a fall it counts from zero, as Prometheus does."""
    increase, fell = 0.0, False
    for before, after in itertools.pairwise(values):
        fell = fell or after < before
        increase += after - before if after >= before else after
    return _Growth(increase, values[-1], fell)


def engine_windows(pages: Pages) -> tuple[EngineWindow, ...]:
    """One window for every engine on the last page, by model, engine and replica.

    A single page gives gauges and totals only: no increase is known then.
    """
    return tuple(_engine(pages, key) for key in _engines(pages[-1]))


def _engines(page: Page) -> list[EngineKey]:
    keys = {*page.numbers, *page.unreadable}
    # Series that the API server exports for itself carry no engine; they belong to no engine of their own.
    with_gauges = {key for key in keys if any(slot[0] == "running" for slot in page.numbers.get(key, ()))}
    with_gauges |= {key for key in keys if "running" in page.unreadable.get(key, ())}
    return sorted(with_gauges or keys, key=lambda k: (k.model, _number(k.engine), k.engine, k.replica))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _engine(pages: Pages, key: EngineKey) -> EngineWindow:
    gauges: dict[str, tuple[float, ...]] = {}
    increases: dict[str, float] = {}
    totals: dict[str, float] = {}
    split: dict[str, dict[str, float]] = {}
    distributions: dict[str, Distribution] = {}
    unreadable = frozenset(name for page in pages for name in page.unreadable.get(key, ()))
    restarted = False
    for quantity in QUANTITIES:
        if not quantity.prefixed or quantity.kind == "info":
            continue
        if quantity.kind == "histogram":
            change = _distribution(pages, key, quantity)
            if change is not None:
                distributions[quantity.key], fell = change
                restarted = restarted or fell
            continue
        per_page = [_labelled(page, key, quantity) for page in pages]
        if not per_page[-1]:
            continue
        if quantity.kind == "gauge":
            seen = [values for values in per_page if values]
            gauges[quantity.key] = tuple(sum(values.values()) for values in seen)
            if quantity.label:
                split[quantity.key] = dict(seen[-1])
            continue
        totals[quantity.key] = sum(per_page[-1].values())
        known = [values for values in per_page if values is not None]
        if len(known) < 2 or not any(known[:-1]):
            continue
        by_label: dict[str, float] = {}
        for label in per_page[-1]:
            growth = _growth([values.get(label, 0.0) for values in known])
            by_label[label] = growth.increase
            restarted = restarted or growth.fell
        increases[quantity.key] = sum(by_label.values())
        if quantity.label:
            split[quantity.key] = by_label
    return EngineWindow(key, gauges, increases, totals, split, distributions, unreadable, restarted)


def _labelled(page: Page, key: EngineKey, quantity: Quantity) -> dict[str, float]:
    """The quantity on one page by its own label, from the newest spelling that is there (or from all of them)."""
    found: dict[str, float] = {}
    best: int | None = None
    for (name, place, label), value in page.numbers.get(key, {}).items():
        if name != quantity.key:
            continue
        if quantity.combine == "sum":
            found[label] = found.get(label, 0.0) + value
        elif best is None or place < best:
            best, found = place, {label: value}
        elif place == best:
            found[label] = value
    return found


def _distribution(pages: Pages, key: EngineKey, quantity: Quantity) -> tuple[Distribution, bool] | None:
    """The observations between the first and the last page, and whether the histogram began anew in between."""
    standing: list[Buckets] = []
    for page in pages:
        slots = page.histograms.get(key, {})
        place = min((place for name, place in slots if name == quantity.key), default=None)
        if place is not None:
            standing.append(slots[quantity.key, place])
    if len(standing) < 2:
        return None
    fell = any(_count(b) < _count(a) for a, b in itertools.pairwise(standing))
    first, last = standing[0], standing[-1]
    if fell:  # what the last process observed is all that can be told apart
        first = Buckets(count=0.0, total=0.0)
    count = _count(last) - _count(first)
    if count <= 0:
        return Distribution(0.0, 0.0), fell
    total = last.total - (first.total or 0.0) if last.total is not None else None
    if total is not None and total < 0:
        total = None
    bounds = sorted(last.counts)
    grown, most = [], 0.0
    for bound in bounds:
        # Scrapes are not atomic: a bucket may be a step ahead of its neighbour. Cumulative counts never fall.
        most = max(most, last.counts[bound] - first.counts.get(bound, 0.0))
        grown.append((bound, most))
    if not grown or not math.isinf(grown[-1][0]):
        grown = []
    return Distribution(count, total, tuple(grown)), fell


def _count(buckets: Buckets) -> float:
    if buckets.count is not None:
        return buckets.count
    return max(buckets.counts.values(), default=0.0)


def server_increases(pages: Pages, key: str) -> dict[str, float] | None:
    """Growth of a counter that belongs to the API server and not to an engine, by its label; None if not exported."""
    quantity = BY_KEY[key]
    sums: list[dict[str, float]] = []
    for page in pages:
        found: dict[str, float] = {}
        for engine in page.numbers:
            for label, value in _labelled(page, engine, quantity).items():
                found[label] = found.get(label, 0.0) + value
        sums.append(found)
    if len(pages) < 2 or not any(sums):
        return None
    return {label: _growth([values.get(label, 0.0) for values in sums]).increase for label in sums[-1]}


def http_increases(pages: Pages) -> tuple[dict[str, float], float | None]:
    """Growth of HTTP requests by status group ("2xx", "404" as exported), and of those that no route took.

    The program's own look-ups are left out: ``/metrics``, ``/health`` and the like say nothing about clients.
    """
    if len(pages) < 2 or not pages[-1].http:
        return {}, None
    by_status: dict[str, float] = {}
    unrouted = 0.0
    for slot in pages[-1].http:
        handler, status = slot
        increase = _growth([page.http.get(slot, 0.0) for page in pages]).increase
        if handler in OWN_ROUTES:
            continue
        group = f"{status[0]}xx" if status[:1].isdigit() else status
        by_status[group] = by_status.get(group, 0.0) + increase
        if handler == "none" and group == "4xx":  # prometheus-fastapi-instrumentator's word for an unknown route
            unrouted += increase
    return by_status, unrouted


#: Routes that this program asks itself, and that probes ask.
OWN_ROUTES = frozenset({"/metrics", "/metrics/", "/health", "/version", "/v1/models", "/load", "/ping"})
