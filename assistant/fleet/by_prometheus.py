"""Servers looked at through a Prometheus server: one set of queries for all of them, however many there are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from assistant.settings import SettingsError
from assistant.targets import Access, Target
from tools.addresses import Policy, parse_url
from tools.metrics.window import ServerWindow
from tools.outbound import Outbound
from tools.prometheus.client import Prometheus, PrometheusError
from tools.prometheus.history import Change, changes
from tools.prometheus.promql import matchers
from tools.prometheus.windows import server_windows


@dataclass(slots=True)
class PrometheusLooks:
    """Windows by Prometheus server and selector, each asked for once, whoever needs it. An async context manager.

    ``whole`` names the Prometheus servers that so many targets share that all they keep is asked for at once; a
    target is found in it by its address, and asked for by its own query only where it is not.
    """

    policy: Policy
    window_s: float
    deadline_s: float
    at: float = field(default_factory=time.time)
    whole: frozenset[str] = frozenset()
    _outbound: Outbound | None = None
    _asked: dict[tuple[str, str, tuple[tuple[str, str], ...]], asyncio.Task[dict[str, ServerWindow]]] = field(
        default_factory=dict
    )

    async def __aenter__(self) -> PrometheusLooks:
        self._outbound = Outbound(self.policy)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._asked.values():
            task.cancel()
        if self._outbound is not None:
            await self._outbound.__aexit__(*error)

    def client(self, address: str, headers: Mapping[str, str]) -> Prometheus:
        """The client for one server; raises :class:`RuntimeError` outside of the context."""
        if self._outbound is None:
            raise RuntimeError("the looks are not open")
        return Prometheus(address, self._outbound, headers, self.deadline_s)

    async def windows(self, access: Access) -> dict[str, ServerWindow]:
        """Every server that ``access`` selects. Raises :class:`PrometheusError` and :class:`SettingsError`."""
        matching = matching_of(access)
        headers = access.headers()
        key = (access.address, matching, tuple(sorted(headers.items())))
        if key not in self._asked:
            found = server_windows(self.client(access.address, headers), matching, window_s=self.window_s, at=self.at)
            self._asked[key] = asyncio.ensure_future(found)
        async with asyncio.timeout(self.deadline_s):
            return await asyncio.shield(self._asked[key])

    async def window_of(self, target: Target) -> ServerWindow:
        """The window of one target: the server at its address, or the only one that its query selects."""
        access = target.metrics
        if access is None or access.kind != "prometheus":
            raise ValueError(f"{target.name} has no Prometheus server")
        source = f"GET {access.address}/api/v1/query {target.name}"
        where = parse_url(target.address)
        try:
            if access.address in self.whole:
                shared = await self.windows(replace(access, query=""))
                if (here := shared.get(f"{where.host}:{where.port}")) is not None:
                    return here
            found = await self.windows(access)
        except (PrometheusError, SettingsError) as error:
            return ServerWindow(source, "not-asked", detail=str(error))
        except TimeoutError:
            return ServerWindow(source, "not-asked", detail=f"Prometheus took more than {self.deadline_s:g} s.")
        here = found.get(f"{where.host}:{where.port}")
        if here is None and len(found) == 1:
            here = next(iter(found.values()))
        if here is not None:
            return here
        if not found:
            return ServerWindow(source, "no-vllm-series", detail=f"nothing of vLLM's is kept for {access.query}")
        few = ", ".join(list(found)[:5])
        detail = f"its query selects {len(found)} servers ({few} ...) and none of them is {where.host}:{where.port}"
        return ServerWindow(source, "not-asked", detail=detail)


#: From so many targets of one Prometheus server on, one set of queries without selectors replaces one for each.
SHARED_FROM = 100


def shared_servers(targets: Iterable[Target]) -> frozenset[str]:
    """The Prometheus servers that at least :data:`SHARED_FROM` of the targets name."""
    counted = Counter(t.metrics.address for t in targets if t.metrics is not None and t.metrics.kind == "prometheus")
    return frozenset(address for address, count in counted.items() if count >= SHARED_FROM)


def matching_of(access: Access) -> str:
    """The label matchers of a target's query; raises :class:`SettingsError` where it is something else."""
    try:
        return matchers(access.query)
    except ValueError as error:
        raise SettingsError(str(error)) from None


async def dead_of(prometheus: Prometheus, windows: Mapping[str, ServerWindow]) -> dict[str, ServerWindow]:
    """Targets of the same jobs that Prometheus cannot scrape, by instance, with its own word for why."""
    from tools.redaction import clean, redact

    rows = await prometheus.targets()
    jobs = {row.get("labels", {}).get("job") for row in rows if row.get("labels", {}).get("instance") in windows}
    dead = {}
    for row in rows:
        labels = row.get("labels")
        if not isinstance(labels, dict) or labels.get("job") not in jobs or row.get("health") != "down":
            continue
        why = redact(clean(str(row.get("lastError", ""))))[:300]
        place = str(labels.get("instance", ""))[:200]
        answer = "refused" if "connection refused" in why or "no such host" in why else "silent"
        dead[place] = ServerWindow(f"GET {prometheus.address}/api/v1/targets {place}", answer, detail=why)  # type: ignore[arg-type]
    return dead


async def changed_since(
    prometheus: Prometheus, matching: str, *, baseline: float, window_s: float, now: float
) -> tuple[list[Change], int]:
    """What is not what it was; see :func:`tools.prometheus.history.changes`."""
    return await changes(prometheus, matching, baseline=baseline, window_s=window_s, now=now)
