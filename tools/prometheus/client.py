"""The HTTP API of Prometheus, as far as it is asked: queries, targets, and whether it is one at all.

API: https://prometheus.io/docs/prometheus/latest/querying/api/ . Thanos Query and Grafana Mimir (below ``/prometheus``)
answer the same routes; Mimir wants the header ``X-Scope-OrgID``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.addresses import parse_url
from tools.outbound import Form, Limits, Outbound, OutboundError, Reply

Samples = tuple[tuple[float, float], ...]  # (seconds since the epoch, value)
_ANSWER_BYTES = 64 * 1024 * 1024


class PrometheusError(Exception):
    """Prometheus could not be asked, or refused. The message is a sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer with its labels; an instant answer has one sample."""

    labels: Mapping[str, str]
    samples: Samples

    @property
    def value(self) -> float:
        """The newest value."""
        return self.samples[-1][1]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One server; ``headers`` carry credentials and tenant. Every method raises :class:`PrometheusError`."""

    address: str
    outbound: Outbound
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    deadline_s: float = 20.0

    async def query(self, expression: str, at: float) -> list[Series]:
        """The value of ``expression`` at a time: a vector, or a matrix where it selects a range."""
        return _series(await self._ask("query", {"query": expression, "time": f"{at:.3f}"}))

    async def query_range(self, expression: str, start: float, end: float, step_s: float) -> list[Series]:
        """The values of ``expression`` from ``start`` to ``end``, one every ``step_s`` seconds."""
        asked = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:.3f}"}
        return _series(await self._ask("query_range", asked))

    async def targets(self) -> list[dict[str, Any]]:
        """The active targets: ``scrapeUrl``, ``labels``, ``health``, ``lastError``."""
        found = await self._ask("targets?state=active", None)
        rows = found.get("activeTargets") if isinstance(found, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    async def is_prometheus(self) -> bool:
        """Whether ``/api/v1/status/buildinfo`` answers as Prometheus, Thanos and Mimir do."""
        try:
            found = await self._ask("status/buildinfo", None)
        except PrometheusError:
            return False
        return isinstance(found, dict) and isinstance(found.get("version"), str)

    async def _ask(self, route: str, form: dict[str, str] | None) -> Any:
        url = str(parse_url(self.address).at(f"api/v1/{route}"))
        limits = Limits(self.deadline_s, max_bytes=_ANSWER_BYTES, max_decompressed_bytes=_ANSWER_BYTES)
        try:
            # Expressions outgrow what a request line may hold, so they are sent as a form.
            if form is not None:
                reply = await self.outbound.post(url, Form(form), headers=self.headers, limits=limits)
            else:
                reply = await self.outbound.get(url, headers=self.headers, limits=limits)
        except OutboundError as error:
            raise PrometheusError(str(error)) from None
        return self._data(reply)

    def _data(self, reply: Reply) -> Any:
        where = f"Prometheus at {self.address}"
        if reply.status == 401:
            raise PrometheusError(f"{where} answered 401: it wants a token, a user name or a tenant.")
        if reply.status == 403:
            raise PrometheusError(f"{where} answered 403: these credentials may not query.")
        try:
            answer = reply.json()
        except OutboundError:
            kind = "an HTML page" if reply.body[:200].lstrip().lower().startswith((b"<!doc", b"<html")) else "no JSON"
            raise PrometheusError(f"{where} answered {reply.status} with {kind}; is this its address?") from None
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            raise PrometheusError(f"{where} answered {reply.status} with JSON that is not Prometheus'.")
        if answer["status"] == "error" or reply.status != 200:
            said = " ".join(str(answer.get("error", "")).split())[:300]
            raise PrometheusError(f"{where} refused the query ({reply.status} {answer.get('errorType', '')}): {said}")
        return answer.get("data")


def _series(data: Any) -> list[Series]:
    """The series of an answer; samples that are no numbers are kept as NaN."""
    rows = data.get("result") if isinstance(data, dict) else None
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        pairs = row.get("values") if "values" in row else [row.get("value")]
        samples = tuple(filter(None, (_sample(pair) for pair in pairs or ())))
        labels = {k: v for k, v in (row.get("metric") or {}).items() if isinstance(k, str) and isinstance(v, str)}
        if samples:
            found.append(Series(labels, samples))
    return found


def _sample(pair: Any) -> tuple[float, float] | None:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], (int, float)):
        return None
    try:
        return float(pair[0]), float(pair[1])
    except (TypeError, ValueError):
        return float(pair[0]), math.nan
