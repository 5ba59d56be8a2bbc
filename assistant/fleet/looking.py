"""Looks at many servers at once, each within a deadline, and puts the worst first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.model import Case, Diagnosis, Language
from assistant.fleet.naming import bearer, look_for
from assistant.settings import SettingsError
from assistant.targets import Target
from tools.addresses import AddressError, Policy
from tools.evidence import Reading
from tools.metrics.dcgm import evidence_of_gpus
from tools.metrics.facts import evidence_of
from tools.metrics.look import PAGE, Report, look_at
from tools.metrics.window import ServerWindow
from tools.outbound import Limits, Outbound, OutboundError
from tools.vllm_server import base_of

if TYPE_CHECKING:
    from assistant.fleet.by_prometheus import PrometheusLooks
    from assistant.settings import Settings

#: Servers that are looked at in the same moment, where that many files may be open. Each waits for most of its window,
#: so this is about sockets (one for each) and not about processors.
AT_ONCE = 1000
#: Open files that are left to the rest of the program.
SPARE_FILES = 100

#: dcgm-exporter writes about 10 kB a GPU.
GPU_PAGE_BYTES = 8 << 20

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
        if self.window.answer in ("refused", "silent", "unanswered"):
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
) -> tuple[ServerWindow, Reading]:
    """One server, and its GPUs' exporter where the target names one.

    Raises :class:`SettingsError` and :class:`~tools.addresses.AddressError`.
    """
    if _by_prometheus(target):
        from assistant.fleet.by_prometheus import PrometheusLooks

        async with PrometheusLooks(policy, window_s, deadline_s) as looks:
            return await asyncio.gather(looks.window_of(target), look_at_gpus(target, policy, window_s, limits))
    look = look_for(target, window_s=window_s, deadline_s=deadline_s, limits=limits)
    return await asyncio.gather(look_at(look, policy, report=report), look_at_gpus(target, policy, window_s, limits))


async def read_target(
    target: Target, policy: Policy, settings: Settings, *, window_s: float
) -> tuple[Reading, ServerWindow | None]:
    """What a configured target shows, as evidence, and the window behind it. A credential that cannot be read costs this
    look and not the answer. Raises :class:`~tools.addresses.AddressError`."""
    from assistant.fleet.naming import limits_of

    try:
        window, beside = await look_at_target(
            target,
            policy,
            window_s=window_s,
            deadline_s=settings.number("deadline_s"),
            limits=limits_of(settings),
        )
    except SettingsError as error:
        return Reading(not_measured=tuple((target.name, problem) for problem in error.problems)), None
    return evidence_of(window) + beside, window


async def look_at_gpus(target: Target, policy: Policy, window_s: float, limits: Limits = PAGE) -> Reading:
    """The GPUs of a target whose exporter is configured; at the start and the end of the window, as far as it answers."""
    if target.gpus is None:
        return Reading()
    address = str(base_of(target.gpus.address).at("metrics"))
    pages: list[bytes] = []
    why = ""
    small = replace(limits, max_bytes=GPU_PAGE_BYTES, max_decompressed_bytes=GPU_PAGE_BYTES, cut=True)
    async with Outbound(policy, limits=small) as outbound:
        for pause in (0.0, window_s) if window_s > 0 else (0.0,):
            await asyncio.sleep(pause)
            try:
                reply = await outbound.get(address, headers=bearer(target.gpus.token))
            except OutboundError as error:
                why = str(error)
                continue
            if reply.status == 200:
                pages.append(reply.body)
            else:
                why = f"{reply.url} answered {reply.status}."
    found = evidence_of_gpus(f"GET {address}", pages)
    if not found.evidence:
        return Reading(not_measured=((address, why or "no-dcgm-series"),))
    return found


def diagnose_window(
    window: ServerWindow,
    target: str,
    engine: Engine,
    language: Language,
    version: str | None = None,
    beside: Reading | None = None,
) -> Diagnosis:
    """The diagnosis of one window, with what else was looked at (``beside``)."""
    reading = evidence_of(window) + (beside or Reading())
    case = Case(reading=reading, language=language, target=target, vllm_version=version)
    return engine.diagnose(case)


def _places() -> int:
    """As many as :data:`AT_ONCE` where the limit on open files can be raised to that, else what it allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = AT_ONCE + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return AT_ONCE if soft == resource.RLIM_INFINITY else max(8, min(AT_ONCE, soft - SPARE_FILES))


async def look_at_all(
    targets: Iterable[Target],
    policy: Policy,
    engine: Engine,
    *,
    window_s: float,
    deadline_s: float,
    language: Language,
    at_once: int | None = None,
    looks: int = 2,
    limits: Limits = PAGE,
) -> AsyncIterator[Looked]:
    """Every target as it is done; none keeps the others waiting beyond its own deadline.

    Targets may come from anywhere (a file, Prometheus' list, Kubernetes): an iterable of :class:`Target`.
    """
    places = asyncio.Semaphore(at_once or _places())
    targets = list(targets)
    remembered = _remembered(targets, policy, window_s, deadline_s)

    async def one(target: Target) -> Looked:
        async with places:
            try:
                if remembered is not None and _by_prometheus(target):
                    window = await remembered.window_of(target)
                    return Looked(target, window, diagnose_window(window, target.name, engine, language))
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

    async with contextlib.AsyncExitStack() as stack:
        if remembered is not None:
            await stack.enter_async_context(remembered)
        tasks = [asyncio.ensure_future(one(target)) for target in targets]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()


def _by_prometheus(target: Target) -> bool:
    return target.metrics is not None and target.metrics.kind == "prometheus"


def _remembered(
    targets: Sequence[Target], policy: Policy, window_s: float, deadline_s: float
) -> PrometheusLooks | None:
    """What is shared by all targets whose numbers a Prometheus server keeps; None where there are none."""
    if not any(map(_by_prometheus, targets)):
        return None
    from assistant.fleet.by_prometheus import PrometheusLooks, shared_servers

    return PrometheusLooks(policy, window_s, deadline_s, whole=shared_servers(targets))
