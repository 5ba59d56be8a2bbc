"""Named calculations for the values of fixes. Each returns ``None`` where an input is unknown: then no number is given."""

from __future__ import annotations

import math
from collections.abc import Callable

from assistant.diagnosis.truth import Facts

#: A KV cache block of the CUDA platforms holds this many tokens (vllm/config/cache.py, CacheConfig.block_size).
BLOCK_TOKENS = 16


def _number(facts: Facts, name: str) -> float | None:
    value = facts.value(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def longest_context_that_fits(facts: Facts) -> str | None:
    """Tokens: what the log itself states as the longest that fits, rounded down to whole blocks."""
    longest = _number(facts, "memory.longest_context") or _number(facts, "engine.kv_cache_tokens")
    if longest is None or longest < BLOCK_TOKENS:
        return None
    return str(int(longest) // BLOCK_TOKENS * BLOCK_TOKENS)


def utilization_that_leaves_room(facts: Facts) -> str | None:
    """The share of the GPU that the memory free at start allows, rounded down to a hundredth."""
    free, total = _number(facts, "memory.free_gib"), _number(facts, "memory.total_gib")
    if free is None or total is None or total <= 0 or free <= 0:
        return None
    share = math.floor(min(free / total, 0.98) * 100 - 1e-9) / 100
    return f"{share:.2f}" if share >= 0.05 else None


def derived_max_model_len(facts: Facts) -> str | None:
    """Tokens: the longest context that the model's own config allows, as the log states it."""
    longest = _number(facts, "engine.max_model_len")
    return str(int(longest)) if longest and longest > 0 else None


NUMBERS: dict[str, Callable[[Facts], str | None]] = {
    "longest_context_that_fits": longest_context_that_fits,
    "utilization_that_leaves_room": utilization_that_leaves_room,
    "derived_max_model_len": derived_max_model_len,
}
