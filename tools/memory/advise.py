"""The values of fixes: what exactly to type so that this start succeeds, by its own log and the estimate.

The one call of the engine: :func:`advise` takes what the evidence states (observables by name) and returns values. What the
log states about free memory calibrates the estimate; without it the pessimistic end counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from knowledge.errors import KnowledgeError
from tools.memory import sources
from tools.memory.changes import divides_further
from tools.memory.config import ConfigError, Model
from tools.memory.estimate import Estimate, Server, estimate
from tools.memory.stated import Stated, server_of

_SHARES = tuple(round(0.5 + i / 100, 2) for i in range(48))
_STEPS = (16384, 8192, 4096, 2048, 1024, 512)
_SEQUENCES = (512, 256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Advised:
    """Values with which one request of the longest length fits; ``None`` where the change alone does not do it.

    ``longest_context`` in tokens (whole hundreds of blocks), ``utilization`` a share, ``cpu_offload_gb`` in GiB,
    ``fp8_kv_cache`` whether an 8 bit cache is enough. ``calibrated``: the log stated what was left for the cache.
    """

    model: str
    calibrated: bool
    available_gib: float
    needed_gib: float
    longest_context: int | None = None
    utilization: float | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int | None = None
    cpu_offload_gb: float | None = None
    fp8_kv_cache: bool | None = None


def advise(values: Mapping[str, Any]) -> Advised | None:
    """The values for a start that these observables describe; ``None`` where model or GPU are not known here.

    Opens no connection. Never raises for what a log may state.
    """
    given = Stated(values)
    name = given.text("server.model")
    if name is None or (given.number("memory.total_gib") is None and given.text("gpu.name") is None):
        return None
    try:
        found = sources.find(name, may_ask_hub=False, paths=False)
        server = server_of(given, found, None, given.text("server.version"))
        base = estimate(found.model, server)
    except (ConfigError, KnowledgeError):
        return None
    if base.available is None or base.layout is None:
        return None
    stated = given.number("memory.available_kv_gib")
    shift = stated - base.available.value if stated is not None else base.available.low - base.available.value

    def room(result: Estimate) -> float:
        return (result.available.value if result.available is not None else 0.0) + shift

    def works(result: Estimate) -> bool:
        return room(result) > 0 and room(result) >= result.needed_gib

    asker = _Asker(found.model, server, works)
    longest = base.layout.longest(int(max(0.0, room(base)) * 2**30), max(base.max_model_len, 1))
    rounded = longest // 256 * 256 or longest // 16 * 16
    return Advised(
        model=found.name,
        calibrated=stated is not None,
        available_gib=round(room(base), 2),
        needed_gib=round(base.needed_gib, 2),
        longest_context=rounded or None,
        utilization=asker.first("gpu_memory_utilization", [s for s in _SHARES if s > base.gpu_memory_utilization]),
        max_num_batched_tokens=asker.first(
            "max_num_batched_tokens", [n for n in _STEPS if n < base.max_num_batched_tokens]
        ),
        max_num_seqs=asker.first("max_num_seqs", [n for n in _SEQUENCES if n < base.max_num_seqs]),
        tensor_parallel_size=asker.first("tensor_parallel_size", divides_further(found.model, server)),
        cpu_offload_gb=asker.first("cpu_offload_gb", [float(n) for n in range(1, 129) if n < base.weights.value]),
        fp8_kv_cache=asker.first("kv_cache_dtype", ["fp8"]) == "fp8" if server.kv_cache_dtype == "auto" else None,
    )


@dataclass(frozen=True, slots=True)
class _Asker:
    model: Model
    server: Server
    works: Callable[[Estimate], bool]

    def first(self, name: str, values: list[Any]) -> Any:
        """The first value, mildest first, with which it works."""
        for value in values:
            try:
                if self.works(estimate(self.model, replace(self.server, **{name: value}))):
                    return value
            except ConfigError:
                continue
        return None
