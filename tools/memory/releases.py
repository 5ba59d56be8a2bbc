"""What changed between vLLM versions, where it decides how much memory is used and what is printed.

Versions are tuples of :func:`knowledge.versions.parse`. An unknown version counts as the newest one examined.
"""

from __future__ import annotations

import re
from typing import Final

from knowledge import versions

Version = tuple[int, int, int, int]

NEWEST: Final[Version] = (0, 33, 0, 0)


def read(text: str | None) -> Version:
    """The version a text names; ``0.1.dev15312 (0.19 main)``, a build without tags, counts as what it says beside it."""
    if not text:
        return NEWEST
    number = versions.parse(text)
    if number is None or number < (0, 2, 0, 0):
        for found in re.finditer(r"\d{1,3}\.\d{1,3}(?:\.\d{1,3})?", text[:200]):
            other = versions.parse(found.group())
            if other is not None and other >= (0, 2, 0, 0):
                return other
        return NEWEST
    return number


def default_utilization(version: Version) -> float:
    """``--gpu-memory-utilization`` when it is not given (CacheConfig): 0.92 from 0.20.0 on, 0.9 before."""
    return 0.92 if version >= (0, 20, 0, 0) else 0.9


def is_v0(version: Version) -> bool:
    """Whether the old engine is the default one (VLLM_USE_V1 became 1 in 0.8.0)."""
    return version < (0, 8, 0, 0)


def batched_tokens(version: Version, total_gib: float, gpu: str, max_model_len: int, *, offline: bool, v0: bool) -> int:
    """``--max-num-batched-tokens`` when it is not given (``EngineArgs.get_batch_defaults``, vllm/engine/arg_utils.py)."""
    if v0:
        # Chunked prefill of the old engine switched itself on above 32,768 tokens (0.5.5 to 0.7.3), with 2,048 a step.
        if max_model_len > 32768 and version >= (0, 5, 5, 0):
            return 512 if version < (0, 6, 5, 0) else 2048
        return max(max_model_len, 2048)
    name = gpu.lower()
    if version >= (0, 28, 0, 0) and total_gib >= 160:
        return 16384
    big = total_gib >= 70 and not ("a100" in name and version >= (0, 9, 0, 0))
    if version < (0, 8, 5, 0):
        big = "h100" in name or "h200" in name
    if version >= (0, 33, 0, 0) and "gb10" in name:
        big = False
    return (16384 if offline else 8192) if big else (8192 if offline else 2048)


def sequences(version: Version, total_gib: float, gpu: str, tokens: int, *, v0: bool) -> int:
    """``--max-num-seqs`` when it is not given; never above the tokens of a step."""
    if v0:
        return 256
    name = gpu.lower()
    big = total_gib >= 70 and not ("a100" in name and version >= (0, 9, 0, 0))
    count = 1024 if version < (0, 8, 5, 0) or big else 256
    return min(count, tokens)


def prefix_caching(version: Version, *, has_state: bool, v0: bool) -> bool:
    """Whether prefix caching is on when nothing is said (models with recurrent layers: from 0.26.0)."""
    if v0:
        return False
    return version >= (0, 26, 0, 0) if has_state else True


def counts_graphs(version: Version) -> bool:
    """Whether the memory of CUDA graphs is taken off the KV cache (default of 0.20.0 and later)."""
    return version >= (0, 20, 0, 0)
