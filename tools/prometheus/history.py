"""What changed since an earlier time: figures over a range, their levels before and now, and when each one turned.

The turning point is the split of the range into two levels that leaves the least squared error (the one-change form of
least-squares segmentation); it is only looked for where the levels differ.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.metrics.vocabulary import Quantity
from tools.prometheus import promql
from tools.prometheus.client import Prometheus, Samples

#: Points that a range is asked in.
POINTS = 240
#: A level has changed when it is this many times the other, and by more than the figure's floor.
FACTOR = 1.5
#: Figure -> how it is computed, and the difference below which a change of it matters to nobody.
_FIGURES: tuple[tuple[str, str, float], ...] = (
    ("running", "level", 1.0),
    ("waiting", "level", 1.0),
    ("kv_usage", "most", 0.05),
    ("generation_tokens", "rate", 1.0),
    ("prompt_tokens", "rate", 1.0),
    ("preemptions", "rate", 0.02),
    ("finished", "rate", 0.05),
    ("time_to_first_token", "mean", 0.05),
    ("inter_token_latency", "mean", 0.005),
    ("queue_time", "mean", 0.05),
    ("e2e_latency", "mean", 0.2),
    ("request_prompt_tokens", "mean", 20.0),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One figure that is not what it was. ``name`` is the series' own; ``at`` is when it turned, in seconds since the
    epoch, None where it drifted; values are in the series' unit, of counters per second."""

    name: str
    how: str
    before: float
    now: float
    at: float | None


async def changes(
    prometheus: Prometheus, matching: str, *, baseline: float, window_s: float, now: float
) -> tuple[list[Change], int]:
    """The figures whose level over the window that ends ``now`` differs from that over the one that ends at
    ``baseline``, the largest change first; and how many figures were compared."""
    counted = await prometheus.query(promql.names_expression(matching), now)
    names = promql.known(row.labels.get("__name__", "") for row in counted)
    start = baseline - window_s
    step = max((now - start) / POINTS, 1.0)
    asked = []
    for key, how, floor in _FIGURES:
        expression = _expression(names, key, how, matching, max(4 * step, window_s / 2))
        if expression is not None:
            asked.append((key, how, floor, *expression))
    answers = await asyncio.gather(*(prometheus.query_range(row[4], start, now, step) for row in asked))
    found, compared = [], 0
    for (_, how, floor, name, _), series in zip(asked, answers, strict=True):
        samples = tuple(s for s in (series[0].samples if series else ()) if math.isfinite(s[1]))
        before = _level(samples, start, baseline)
        after = _level(samples, now - window_s, now)
        if before is None or after is None:
            continue
        compared += 1
        if differs(before, after, floor):
            found.append(Change(name, how, before, after, turning_point(samples)))
    found.sort(key=lambda change: -_size(change))
    return found, compared


def differs(before: float, now: float, floor: float) -> bool:
    """Whether two levels are apart by :data:`FACTOR` and by more than ``floor``."""
    low, high = sorted((before, now))
    return high - low > floor and (low <= 0 or high / low >= FACTOR)


def turning_point(samples: Samples) -> float | None:
    """The time at which two levels explain the samples best; None where they explain little more than one does."""
    values = [value for _, value in samples]
    if len(values) < 6:
        return None
    sums = list(itertools.accumulate(values, initial=0.0))
    squares = list(itertools.accumulate((v * v for v in values), initial=0.0))
    whole = _error(sums, squares, 0, len(values))
    best = min(
        range(2, len(values) - 1), key=lambda k: _error(sums, squares, 0, k) + _error(sums, squares, k, len(values))
    )
    left = _error(sums, squares, 0, best) + _error(sums, squares, best, len(values))
    return samples[best][0] if whole > 0 and left < 0.5 * whole else None


def _error(sums: Sequence[float], squares: Sequence[float], low: int, high: int) -> float:
    """Squared error of samples low to high about their mean."""
    count, total = high - low, sums[high] - sums[low]
    return squares[high] - squares[low] - total * total / count


def _level(samples: Samples, start: float, end: float) -> float | None:
    values = sorted(value for at, value in samples if start <= at <= end)
    return values[len(values) // 2] if values else None


def _size(change: Change) -> float:
    low, high = sorted((abs(change.before), abs(change.now)))
    return high / low if low > 0 else math.inf


def _expression(
    names: dict[str, tuple[Quantity, int, str]], key: str, how: str, matching: str, span_s: float
) -> tuple[str, str] | None:
    """The series' name and the PromQL of one figure, old and new spellings joined; None where nothing exports it."""
    spelled = [
        name
        for name, (quantity, _, suffix) in names.items()
        if quantity.key == key and suffix not in ("_bucket", "_sum")
    ]
    if not spelled:
        return None
    shown = min(spelled, key=lambda name: names[name][1])
    selected = f"{{{matching}}}" if matching else ""
    span = promql.duration(span_s)
    if how == "rate":
        return shown, " or ".join(f"sum(rate({name}{selected}[{span}]))" for name in spelled)
    if how == "mean":
        bases = [name.removesuffix("_count") for name in spelled]
        parts = [f"sum(rate({b}_sum{selected}[{span}])) / sum(rate({b}_count{selected}[{span}]))" for b in bases]
        return shown.removesuffix("_count"), " or ".join(parts)
    whole = "max" if how == "most" else "sum"
    return shown, " or ".join(f"{whole}({name}{selected})" for name in spelled)
