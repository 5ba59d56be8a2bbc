"""The smallest changes that make a server fit, cheapest first, each found by asking the estimate again.

Prices, from nothing to everything: a larger share of the card; fewer tokens or sequences a step; shorter requests; a
KV cache of 8 bits; no CUDA graphs; more GPUs; weights of 8 bits; weights in the CPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from knowledge import gpus
from tools.memory.config import ConfigError, Model
from tools.memory.estimate import Estimate, Server, divisors, estimate

#: The order of prices. The names are keys of sentences (memory-price-*).
PRICES: Final = (
    "utilization", "batched-tokens", "sequences", "context", "fp8-kv-cache", "eager", "tensor-parallel", "fp8-weights", "offload",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What to set instead. ``arguments`` are vLLM's own, ``result`` is the estimate with them."""

    kind: str
    arguments: dict[str, Any]
    result: Estimate

    @property
    def flags(self) -> str:
        """The arguments as they are typed."""
        parts = []
        for name, value in self.arguments.items():
            flag = "--" + name.replace("_", "-")
            shown = f"{value:g}" if isinstance(value, float) else str(value).removesuffix(" (online)")
            parts.append(flag if value is True else f"{flag} {shown}")
        return " ".join(parts)


def suggest(model: Model, server: Server) -> list[Change]:
    """Changes after each of which alone the server fits; empty where the GPU is not known or it fits already."""
    now = estimate(model, server)
    if now.available is None or now.verdict == "fits":
        return []
    found = [change for change in _candidates(model, server, now) if change is not None]
    if not any(PRICES.index(c.kind) < PRICES.index("tensor-parallel") for c in found):
        combined = _combined(model, server, now)
        if combined is not None:
            found.insert(0, combined)
    return found


def _try(model: Model, server: Server, kind: str, **changes: Any) -> Change | None:
    try:
        result = estimate(model, replace(server, **changes))
    except ConfigError:
        return None
    return Change(kind, changes, result) if result.verdict == "fits" else None


def _first(values: Iterator[Any] | list[Any], attempt: Callable[[Any], Change | None]) -> Change | None:
    for value in values:
        change = attempt(value)
        if change is not None:
            return change
    return None


def _candidates(model: Model, server: Server, now: Estimate) -> Iterator[Change | None]:
    share = now.gpu_memory_utilization
    steps = [round(share + 0.01 * i, 2) for i in range(1, 20) if share + 0.01 * i <= 0.951]
    yield _first(steps, lambda v: _try(model, server, "utilization", gpu_memory_utilization=v))
    tokens = [t for t in (8192, 4096, 2048, 1024, 512) if t < now.max_num_batched_tokens]
    yield _first(tokens, lambda v: _try(model, server, "batched-tokens", max_num_batched_tokens=v))
    rows = [n for n in (256, 128, 64, 32, 16) if n < now.max_num_seqs]
    yield _first(rows, lambda v: _try(model, server, "sequences", max_num_seqs=v))
    yield _context(model, server, now)
    if server.kv_cache_dtype == "auto" and _has_fp8(server):
        yield _try(model, server, "fp8-kv-cache", kv_cache_dtype="fp8")
    if not server.enforce_eager:
        yield _try(model, server, "eager", enforce_eager=True)
    yield _first(
        divides_further(model, server), lambda v: _try(model, server, "tensor-parallel", tensor_parallel_size=v)
    )
    if not server.quantization and not model.quantization and _has_fp8(server):
        yield _try(model, server, "fp8-weights", quantization="fp8 (online)")
    offload = [float(g) for g in (2, 4, 8, 16, 32, 64) if g < now.weights.value]
    yield _first(offload, lambda v: _try(model, server, "offload", cpu_offload_gb=v))


def divides_further(model: Model, server: Server) -> list[int]:
    """Larger tensor parallel sizes that vLLM accepts, up to 16."""
    return [n for n in divisors(model, 16) if n > server.tensor_parallel_size]


def _has_fp8(server: Server) -> bool:
    card = gpus.find(server.gpu) if server.gpu else None
    return card is None or card.capability == 0 or card.capability >= 8.0


def _context(model: Model, server: Server, now: Estimate) -> Change | None:
    longest = now.longest_context or 0
    # Shorter requests can leave a smaller step, so ask again; round down to what people type.
    for unit in (1024, 256, 16):
        length = longest // unit * unit
        if length >= max(unit, 256):
            return _try(model, server, "context", max_model_len=length)
    return None


def _combined(model: Model, server: Server, now: Estimate) -> Change | None:
    """All that costs little together, and the longest context that then fits."""
    changes: dict[str, Any] = {"gpu_memory_utilization": max(0.95, now.gpu_memory_utilization)}
    if now.max_num_seqs > 64:
        changes["max_num_seqs"] = 64
    if now.max_num_batched_tokens > 2048:
        changes["max_num_batched_tokens"] = 2048
    for extra in ({}, {"kv_cache_dtype": "fp8"} if server.kv_cache_dtype == "auto" and _has_fp8(server) else {}):
        both = {**changes, **extra}
        try:
            result = estimate(model, replace(server, **both))
        except ConfigError:
            continue
        if result.verdict == "fits":
            return Change("context", both, result)
        length = (result.longest_context or 0) // 256 * 256
        if length >= 512:
            found = _try(model, server, "context", **both, max_model_len=length)
            if found is not None:
                return found
    return None


@dataclass(frozen=True, slots=True)
class Fit:
    """One way to cut the model over GPUs of the asked kind."""

    tensor_parallel_size: int
    verdict: str
    result: Estimate


def tensor_parallel_sizes(model: Model, server: Server, most: int = 16) -> list[Fit]:
    """Every size that divides, with its verdict."""
    fits = []
    for size in divisors(model, most):
        if size % server.decode_context_parallel_size:
            continue
        result = estimate(model, replace(server, tensor_parallel_size=size))
        fits.append(Fit(size, result.verdict, result))
    return fits


def smallest_gpus(
    model: Model, server: Server, counts: tuple[int, ...] = (1, 2, 4, 8)
) -> list[tuple[int, gpus.Gpu, Estimate]]:
    """For each number of GPUs the card with the least memory that fits, by the pessimistic end; NVIDIA and AMD."""
    found: list[tuple[int, gpus.Gpu, Estimate]] = []
    # bfloat16 needs compute capability 8.0 (vllm/platforms/cuda.py, check_if_supports_dtype); 0 stands for AMD.
    least = 7.5 if server.dtype in ("float16", "half") else 8.0
    cards = sorted(
        (g for g in gpus.load() if g.capability >= least or g.capability == 0),
        key=lambda g: (g.total_gib, -g.capability),
    )
    for count in counts:
        if model.heads % count:
            continue
        for card in cards:
            if card.link == "none" and count > 1:
                continue
            asked = replace(server, gpu=card.name, gpu_total_gib=None, tensor_parallel_size=count)
            # Weights alone rule most cards out without a whole estimate.
            if found and found[-1][0] < count and card.total_gib > found[-1][1].total_gib:
                break
            try:
                result = estimate(model, asked)
            except ConfigError:
                break
            if result.verdict == "fits":
                found.append((count, card, result))
                break
    return found
