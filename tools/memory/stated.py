"""What the evidence states about a server, as the arguments of an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.memory import sources
from tools.memory.estimate import Server


class Stated:
    """Numbers and texts of a log by the names of observables."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def number(self, *names: str) -> float | None:
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    continue
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**50:
                return float(value)
        return None

    def whole(self, *names: str) -> int | None:
        value = self.number(*names)
        return int(value) if value is not None and value >= 1 else None

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if isinstance(value, str) and value else None

    def flag(self, name: str) -> bool:
        return self.values.get(name) in (True, "True", "true")


def server_of(given: Stated, found: sources.Found, gpu: str | None, version: str | None) -> Server:
    total = given.number("memory.total_gib")
    quantization = given.text("argument.quantization") or found.quantization
    dtype = given.text("argument.dtype")
    return Server(
        gpu=gpu or given.text("gpu.name"),
        gpu_total_gib=total if total and 0.5 <= total <= 4096 else None,
        vllm_version=version,
        tensor_parallel_size=given.whole("parallel.tensor", "argument.tensor_parallel_size") or 1,
        pipeline_parallel_size=given.whole("argument.pipeline_parallel_size") or 1,
        data_parallel_size=given.whole("argument.data_parallel_size") or 1,
        enable_expert_parallel=given.flag("argument.enable_expert_parallel"),
        gpu_memory_utilization=given.number("memory.utilization", "argument.gpu_memory_utilization"),
        max_model_len=given.whole("engine.max_model_len", "argument.max_model_len"),
        max_num_batched_tokens=given.whole("argument.max_num_batched_tokens"),
        max_num_seqs=given.whole("argument.max_num_seqs"),
        dtype=dtype if dtype in ("float16", "bfloat16", "half", "float32") else None,
        quantization=quantization if quantization not in ("None", "auto") else None,
        kv_cache_dtype=given.text("argument.kv_cache_dtype") or "auto",
        block_size=given.whole("argument.block_size"),
        enforce_eager=given.flag("argument.enforce_eager"),
        total_params=found.total_params,
    )
