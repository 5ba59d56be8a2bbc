"""Looks at many servers at once, each within a deadline, and puts the worst first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.model import Case, Diagnosis, Language
from assistant.fleet.naming import look_for
from assistant.settings import SettingsError
from assistant.targets import Target
from tools.addresses import AddressError, Policy
from tools.metrics.facts import evidence_of
from tools.metrics.look import PAGE, Report, look_at
from tools.metrics.window import ServerWindow
from tools.outbound import Limits

#: Servers that are looked at in the same moment. Each waits for most of its window, so this is about sockets (one for
#: each, and 1,024 files may usually be open) and not about processors.
AT_ONCE = 400

_RANK = {"cause": 0, "unknown": 1, "healthy": 2}
_SEVERITY = {"critical": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Looked:
    """One server with what was seen and what it means."""

    target: Target
    window: ServerWindow
    diagnosis: Diagnosis

    @property
    def rank(self) -> tuple[int, int, float, str]:
        """The worst first: causes by severity, then what could not be told, then the healthy."""
        first = self.diagnosis.causes[0] if self.diagnosis.causes else None
        severity = _SEVERITY.get(first.severity, 3) if first is not None and self.diagnosis.verdict == "cause" else 3
        if self.window.answer in ("refused", "silent"):
            severity = 0  # nobody is served there, whatever the reason
        waiting = sum(engine.last("waiting") or 0.0 for engine in self.window.engines)
        return (_RANK[self.diagnosis.verdict], severity, -waiting, self.target.name)

    @property
    def figures(self) -> str:
        """The levels in one line, by the names that vLLM exports."""
        engines = self.window.engines
        parts = []
        for key, name in (("running", "running"), ("waiting", "waiting")):
            values = [value for engine in engines if (value := engine.last(key)) is not None]
            if values:
                parts.append(f"{name} {sum(values):g}")
        usage = [value for engine in engines if (value := engine.last("kv_usage")) is not None]
        if usage:
            parts.append(f"kv {max(usage):.0%}")
        if self.window.seconds > 0 and engines:
            made = sum(engine.increases.get("generation_tokens", 0.0) for engine in engines)
            parts.append(f"{made / self.window.seconds:.0f} tok/s")
        if not engines:
            parts.append(self.window.detail)
        return "  ".join(parts)


async def look_at_target(
    target: Target,
    policy: Policy,
    *,
    window_s: float,
    deadline_s: float,
    limits: Limits = PAGE,
    report: Report | None = None,
) -> ServerWindow:
    """One server. Raises :class:`SettingsError` and :class:`~tools.addresses.AddressError`."""
    return await look_at(
        look_for(target, window_s=window_s, deadline_s=deadline_s, limits=limits), policy, report=report
    )


def diagnose_window(
    window: ServerWindow, target: str, engine: Engine, language: Language, version: str | None = None
) -> Diagnosis:
    """The diagnosis of one window alone."""
    case = Case(reading=evidence_of(window), language=language, target=target, vllm_version=version)
    return engine.diagnose(case)


async def look_at_all(
    targets: Iterable[Target],
    policy: Policy,
    engine: Engine,
    *,
    window_s: float,
    deadline_s: float,
    language: Language,
    at_once: int = AT_ONCE,
    looks: int = 2,
    limits: Limits = PAGE,
) -> AsyncIterator[Looked]:
    """Every target as it is done; none keeps the others waiting beyond its own deadline.

    Targets may come from anywhere (a file, Prometheus' list, Kubernetes): an iterable of :class:`Target`.
    """
    places = asyncio.Semaphore(at_once)

    async def one(target: Target) -> Looked:
        async with places:
            try:
                look = look_for(
                    target, window_s=window_s, deadline_s=deadline_s, looks=looks, brief=True, limits=limits
                )
                async with asyncio.timeout(deadline_s + 2.0):
                    window = await look_at(look, policy)
            except (SettingsError, AddressError) as error:
                window = ServerWindow(f"GET {target.address}", "not-asked", detail=str(error))
            except TimeoutError:
                window = ServerWindow(
                    f"GET {target.address}", "too-late", detail=f"It took more than {deadline_s:g} s."
                )
        return Looked(target, window, diagnose_window(window, target.name, engine, language))

    tasks = [asyncio.ensure_future(one(target)) for target in targets]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
