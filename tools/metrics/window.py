"""What a server did between two looks at it, in the words of :mod:`tools.metrics.vocabulary`.

These shapes are the seam between the sources of numbers (two scrapes of ``/metrics``, or a Prometheus server asked
for a range) and the facts that :mod:`tools.metrics.facts` makes of them. What was not measured is missing from a
mapping; nothing here is zero because nobody looked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Which engine: the served model, the index of the data-parallel engine (engine V1), and Ray's replica."""

    model: str = ""
    engine: str = ""
    replica: str = ""

    def __str__(self) -> str:
        parts = [f"engine {self.engine}" if self.engine else "", self.model, self.replica]
        return ", ".join(part for part in parts if part) or "engine"


@dataclass(frozen=True, slots=True)
class Distribution:
    """The observations that fell into a window: ``count`` of them, ``total`` in the quantity's unit, and the buckets.

    ``buckets`` holds (upper bound, observations at most that large), ascending, the last bound being infinity.
    """

    count: float
    total: float | None
    buckets: tuple[tuple[float, float], ...] = ()

    @property
    def mean(self) -> float | None:
        """Exact, from sum and count; None where nothing was observed."""
        return self.total / self.count if self.total is not None and self.count > 0 else None

    def quantile(self, share: float) -> float | None:
        """As ``histogram_quantile`` of Prometheus computes it: linear within a bucket, the last finite bound at most.

        None where nothing was observed or the buckets are of no use.
        """
        if not self.buckets or not math.isinf(self.buckets[-1][0]) or self.buckets[-1][1] <= 0:
            return None
        rank = share * self.buckets[-1][1]
        below, count_below = 0.0, 0.0
        for bound, count in self.buckets:
            if count >= rank:
                if math.isinf(bound):
                    return below if len(self.buckets) > 1 else None
                inside = count - count_below
                if bound <= 0 or inside <= 0:
                    return bound
                return below + (bound - below) * (rank - count_below) / inside
            below, count_below = bound, count
        return None


def joined(parts: Iterable[Distribution]) -> Distribution | None:
    """The distribution of several engines together; buckets only where all have the same bounds."""
    found = list(parts)
    if not found:
        return None
    bounds = {tuple(bound for bound, _ in part.buckets) for part in found}
    buckets: tuple[tuple[float, float], ...] = ()
    if len(bounds) == 1:
        sums = [sum(counts) for counts in zip(*([c for _, c in part.buckets] for part in found), strict=True)]
        buckets = tuple(zip(bounds.pop(), sums, strict=True))
    totals = [part.total for part in found]
    total = None if None in totals else sum(t for t in totals if t is not None)
    return Distribution(sum(part.count for part in found), total, buckets)


@dataclass(frozen=True, slots=True)
class EngineWindow:
    """One engine over the window. Keys are those of the vocabulary.

    ``gauges``: the values in the order they were read (two for two scrapes). ``increases``: what counters grew by,
    in their unit, over the window, resets taken into account. ``split``: gauges' last values and counters' increases
    by the quantity's label: ``split["finished"]["error"]``. ``totals``: counters since the server started.
    ``distributions``: the observations inside the window. ``unreadable``: quantities that were exported with a value
    that is no number. ``restarted``: a counter fell, so the process started anew in between.
    """

    key: EngineKey
    gauges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    increases: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    split: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    restarted: bool = False

    def last(self, key: str) -> float | None:
        """The newest value of a gauge."""
        values = self.gauges.get(key)
        return values[-1] if values else None

    def typical(self, key: str) -> float | None:
        """The lower median of a gauge: what held for most of the window, so that a short burst does not count."""
        values = self.gauges.get(key)
        return statistics.median_low(values) if values else None

    def peak(self, key: str) -> float | None:
        """The largest value of a gauge: a cache that is full again and again is full."""
        return max(self.gauges.get(key, ()), default=None)

    def average(self, key: str) -> float | None:
        """The mean of a gauge over the looks."""
        values = self.gauges.get(key)
        return sum(values) / len(values) if values else None

    def mean(self, key: str) -> float | None:
        """The mean of a histogram's observations inside the window."""
        found = self.distributions.get(key)
        return found.mean if found is not None else None


Answer = Literal[
    "vllm",  # a metrics page with vLLM's series
    "no-vllm-series",  # a metrics page of something else, or of a vLLM with statistics switched off
    "other-engine",  # another inference server's metrics
    "html",
    "empty",
    "not-metrics",
    "credentials",  # 401 or 403
    "not-found",
    "redirect",
    "error",  # another status
    "too-late",  # it began to answer, or answers elsewhere, and did not finish the page
    "unanswered",  # it took the connection, and nothing came back in time on any route
    "silent",  # not even the connection was taken in time
    "refused",  # nobody took the connection, or no machine has this name
    "not-asked",  # the address may not be connected to, or its certificate is not trusted
]


@dataclass(frozen=True, slots=True)
class ServerWindow:
    """One server over the window.

    ``source`` says where the numbers come from as an origin ("GET http://host:8000/metrics"). ``seconds`` is the time
    between first and last look, 0 with a single one. ``cut`` says that the page was longer or shorter than what was
    read of it. ``detail`` is a sentence for a failed look. ``started_at`` is the server's start in seconds since the
    epoch, ``at`` that of the last look. ``config`` holds the labels of ``cache_config_info``, ``lora`` the newest of
    ``lora_requests_info``, ``http`` the growth of requests by status group ("2xx") and ``http_unrouted`` that of
    requests which no route of the server took. ``health`` is the status of ``/health``, None where it was not asked
    or did not answer (``health_detail`` says why).
    """

    source: str
    answer: Answer
    engines: tuple[EngineWindow, ...] = ()
    looks: int = 0
    seconds: float = 0.0
    cut: bool = False
    detail: str = ""
    bad_lines: int = 0
    started_at: float | None = None
    at: float | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    lora: Mapping[str, str] = field(default_factory=dict)
    http: Mapping[str, float] = field(default_factory=dict)
    http_unrouted: float | None = None
    refused: Mapping[str, float] | None = None  # requests turned away at admission, by reason
    health: int | None = None
    health_detail: str = ""
    version: str | None = None
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    load: float | None = None
    moments: tuple[float, ...] = ()  # seconds after the first look, one for each look
    produced: tuple[float, ...] = ()  # tokens generated by all engines since the server started, one for each look
    bytes_read: int = 0
    refused_address: bool = False  # the address itself may not be spoken to: link-local, metadata, not allowed
    lost: bool = False  # the first look succeeded, a later one found nobody
