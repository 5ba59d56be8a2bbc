"""What a server tells Prometheus about itself: one registry for each running server, every label from a closed set.

A label's value is a cause of the catalogue, a registered action, a route of the application, a kind of sender or an
outcome; nothing that somebody sends becomes one, so that nobody can fill the memory of a Prometheus. The parts that
are measured know nothing of Prometheus: they have a place for an observer (:data:`tools.registry.OBSERVERS`,
``Readers.observer``, ``Database.observer``) and are quiet where nobody put one there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis

#: Seconds. From an answer out of memory to the deadline of a look at something.
_REQUEST_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STORE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1, 5)
#: The label of everything that is not in the set that a label may come from.
OTHER = "other"
#: Methods of HTTP that get a label of their own.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one server. ``causes`` are the ids that a diagnosis may name, ``version`` is this program's."""

    def __init__(self, version: str, causes: Collection[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._causes = frozenset(causes)
        of: dict[str, Any] = {"registry": self.registry, "namespace": "vllm_diagnose"}
        Gauge("build_info", "1 for the version that runs.", ["version"], **of).labels(version).set(1)
        Gauge("start_time_seconds", "When the server began, seconds since 1970.", **of).set(time.time())
        self._requests = Counter("http_requests", "Answers over HTTP.", ["route", "method", "status"], **of)
        self._seconds = Histogram(
            "http_request_seconds",
            "Seconds to the end of an answer; of a stream of events to its beginning.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            **of,
        )
        self.under_way = Gauge("http_requests_under_way", "Requests that are not answered yet, streams included.", **of)
        self._diagnoses = Counter("diagnoses", "Diagnoses by verdict and first cause.", ["verdict", "cause"], **of)
        self._reading = Histogram(
            "diagnosis_seconds",
            "Seconds of reading and deciding, waiting for a reader included.",
            ["outcome"],
            buckets=_REQUEST_BUCKETS,
            **of,
        )
        self._tools = Histogram(
            "tool_seconds", "Seconds of a tool's call.", ["tool", "outcome"], buckets=_REQUEST_BUCKETS, **of
        )
        self._store = Histogram("store_seconds", "Seconds of a transaction.", ["kind"], buckets=_STORE_BUCKETS, **of)
        self._store_errors = Counter("store_errors", "Transactions that failed.", ["kind"], **of)
        self._jobs = Gauge("jobs", "Jobs in the store that are not finished.", ["state"], **of)
        self._readers = Gauge("readers", "Reading processes that are configured.", **of)
        self._reading_now = Gauge("readers_asked", "Diagnoses that reading processes work on or have waiting.", **of)
        self._replaced = Gauge("readers_replaced", "Times the reading processes had to be replaced.", **of)
        self._ready = Gauge("ready", "1 while /readyz says so.", **of)
        for kind in ("read", "write"):
            self._store_errors.labels(kind)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answer. ``route`` is a template of the application, never what was asked for."""
        method = method if method in _METHODS else OTHER
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def reading(self, outcome: str, seconds: float, diagnosis: Diagnosis | None) -> None:
        """One diagnosis that was computed, or that could not be."""
        self._reading.labels(outcome).observe(seconds)
        if diagnosis is not None:
            first = diagnosis.causes[0].id if diagnosis.verdict == "cause" and diagnosis.causes else ""
            self._diagnoses.labels(diagnosis.verdict, first if first in self._causes or not first else OTHER).inc()

    def tool(self, name: str, outcome: str, seconds: float) -> None:
        """One call of a registered action."""
        self._tools.labels(name, outcome).observe(seconds)

    def transaction(self, kind: str, seconds: float, failed: bool) -> None:
        """One transaction of the store."""
        self._store.labels(kind).observe(seconds)
        if failed:
            self._store_errors.labels(kind).inc()

    def now(self, *, ready: bool, jobs: Mapping[str, int] | None, readers: tuple[int, int, int]) -> None:
        """What is looked up when somebody asks: readiness, unfinished jobs, and readers as (all, asked, replaced)."""
        self._ready.set(ready)
        self._readers.set(readers[0])
        self._reading_now.set(readers[1])
        self._replaced.set(readers[2])
        self._jobs.clear()  # what the store does not say is left out, not called nought
        for state, count in (jobs or {}).items():
            self._jobs.labels(state).set(count)

    def page(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, with its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
