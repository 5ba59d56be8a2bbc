"""One estimate a line of a JSON lines file, as scorers and scripts want it.

A line holds ``id``, ``ask``, ``config`` and the server's arguments; what it asks for is one of
``tokens_from_available``, ``gib_for_tokens``, ``weights``, ``tokens_end_to_end``, ``available_end_to_end``, or nothing
for all of it. ``truth``, ``source``, ``lines``, ``model`` and ``id`` never reach the estimate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from knowledge import gpus, known_models
from tools.memory import architecture, quantization
from tools.memory.config import ConfigError, Fields, Model, parse
from tools.memory.estimate import Server, estimate, lay_out, settle, weights_on
from tools.memory.weights import GIB

_WHOLE = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "block_size", "num_gpu_blocks_override", "kv_cache_memory_bytes",
    "max_loras", "max_lora_rank", "num_speculative_tokens", "total_params",
)  # fmt: skip
_TEXT = ("gpu", "vllm_version", "dtype", "quantization", "kv_cache_dtype", "speculative_method")
_FLAGS = (
    "enable_expert_parallel", "enforce_eager", "enable_prefix_caching", "disable_hybrid_kv_cache_manager", "language_model_only", "offline",
)  # fmt: skip
_NUMBERS = ("gpu_total_gib", "gpu_memory_utilization", "cpu_offload_gb")


def server_of(raw: Mapping[str, Any]) -> Server:
    """The arguments in a line. Raises :class:`ConfigError` for one of the wrong type."""
    fields, given = Fields(raw), {}  # type: Fields, dict[str, Any]
    for name in _WHOLE:
        if raw.get(name) is not None:
            given[name] = fields.whole(name, low=0, high=2**50)
    for name in _TEXT:
        if raw.get(name) is not None:
            given[name] = fields.text(name)[:200]
    for name in _FLAGS:
        if raw.get(name) is not None:
            given[name] = fields.flag(name)
    for name in _NUMBERS:
        given.update(_number(raw, name))
    drafting = Fields(fields.part("speculative_config"))  # as --speculative-config takes it
    if drafting.raw:
        given.setdefault("num_speculative_tokens", drafting.whole("num_speculative_tokens", default=1, low=0, high=64))
        given.setdefault("speculative_method", drafting.text("method")[:40] or None)
    return Server(**given)


def _number(raw: Mapping[str, Any], name: str) -> dict[str, float]:
    value = raw.get(name)
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**40:
        raise ConfigError(f"{name} is {str(value)[:40]!r}; a number was expected.")
    return {name: float(value)}


def answer_line(line: str | bytes) -> dict[str, Any]:
    """The answer to one line, with ``error`` set where no estimate is possible. Never raises for bad content."""
    name: Any = None
    try:
        raw = parse(line)
        name = raw.get("id") if isinstance(raw.get("id"), (str, int)) else None
        return {"id": name, **answer(raw), "error": None}
    except ConfigError as error:
        return {"id": name, "error": str(error)}


def answer(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a line asks for, with the ``band`` of the first. Raises :class:`ConfigError`."""
    config = raw.get("config")
    if not isinstance(config, dict):
        raise ConfigError("The line has no 'config'; give the fields of the model's config.json as an object.")
    server, ask = server_of(raw), raw.get("ask")
    if server.quantization and "quantization_config" not in config:
        shipped = known_models.shipped_quantization(config, server.quantization)
        config = {**config, "quantization_config": shipped} if shipped else config
    model = architecture.read(config)
    if ask in ("weights", "gib_for_tokens", "tokens_from_available"):
        server = _without_what_does_not_matter(model, server, ask)
    setting = settle(model, server)
    if ask == "weights":
        held, _ = weights_on(model, server, setting, 0)  # the first process's line is the one that logs are quoted by
        return {"weights_gib": round(held.value, 4), "band": _band(held.low, held.high)}
    if ask == "gib_for_tokens":
        tokens = Fields(raw).whole("tokens", low=1, high=2**31)
        needed = lay_out(model, server, setting).bytes_for(tokens) / GIB
        return {"kv_gib": round(needed, 4), "band": _band(needed * 0.999, needed * 1.001)}
    if ask == "tokens_from_available":
        available = _number(raw, "available_kv_gib").get("available_kv_gib")
        if available is None or available < 0:
            raise ConfigError("tokens_from_available needs 'available_kv_gib', GiB of at least 0.")
        layout = lay_out(model, server, setting)
        # The log rounds to 0.01 GiB; 0.3 % is what blocks and rounding left at most where version and arguments are known.
        tokens_at = [
            layout.printed_tokens(layout.blocks_in(int(max(0.0, g) * GIB)), setting.length)
            for g in (available, available * 0.997 - 0.01, available * 1.003 + 0.01)
        ]
        return {"kv_cache_tokens": tokens_at[0], "band": _band(tokens_at[1], tokens_at[2])}
    result = estimate(model, server)
    everything: dict[str, Any] = {
        "weights_gib": round(result.weights.value, 4),
        "kv_gib": round(result.needed_gib, 4),
        "verdict": result.verdict,
    }
    if result.available is not None and result.tokens is not None:
        everything["available_kv_gib"] = round(result.available.value, 3)
        everything["kv_cache_tokens"] = int(result.tokens.value)
        is_available = ask == "available_end_to_end"
        figure = result.available if is_available else result.tokens
        everything["band"] = _band(figure.low, figure.high)
    elif ask in ("tokens_end_to_end", "available_end_to_end"):
        raise ConfigError("The GPU's memory is not known; give 'gpu' or 'gpu_total_gib'.")
    return everything


def _without_what_does_not_matter(model: Model, server: Server, ask: str) -> Server:
    """A card nobody knows decides neither weights nor cache, and how weights are stored does not decide the cache."""
    if server.gpu is not None and gpus.find(server.gpu) is None:
        server = replace(server, gpu=None)
    if ask != "weights":
        try:
            quantization.choose(server.quantization, model)
        except ConfigError:
            server = replace(server, quantization="none")
    return server


def _band(low: float, high: float) -> list[float]:
    return [round(max(0.0, low), 4), round(max(0.0, high), 4)]


def dumps(row: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(row, ensure_ascii=False)


__all__ = ["answer", "answer_line", "dumps", "server_of"]
