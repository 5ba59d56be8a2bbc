"""A real start explained, and the values of fixes that the engine takes from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load
from tools.memory.advise import advise
from tools.memory.config import ConfigError
from tools.memory.explain import explain, explain_log
from tools.memory.weights import GIB

STARTED: dict[str, Any] = {
    "server.model": "Qwen/Qwen3-8B",
    "server.version": "0.12.0",
    "memory.total_gib": 23.64,
    "memory.utilization": 0.9,
    "memory.weights_gib": 15.27,
    "memory.available_kv_gib": 4.9,
    "memory.needed_kv_gib": 5.62,
    "engine.max_model_len": 40960,
}


def test_parts_of_a_start_fill_the_card() -> None:
    found = explain(STARTED)
    assert sum(part.gib for part in found.parts if part.inside) == pytest.approx(23.64, abs=0.02)
    assert {part.name: part.origin for part in found.parts} == {
        "weights": "stated",
        "other": "derived",
        "kv_cache": "stated",
        "unused": "derived",
    }
    assert found.missing_gib == pytest.approx(0.72)
    weights = found.parts[0]
    assert weights.estimate_gib == pytest.approx(15.27, abs=0.05)


def test_predictions_start_from_what_the_log_states() -> None:
    found = explain(STARTED)
    by_flags = {change.flags: change for change in found.changes}
    share = by_flags["--gpu-memory-utilization 0.95"]
    assert share.available_gib == pytest.approx(4.9 + 0.05 * 23.64, abs=0.01)
    per_token = 36 * 2 * 8 * 128 * 2
    assert share.tokens == pytest.approx(share.available_gib * GIB / per_token, rel=0.01)
    fp8 = by_flags["--kv-cache-dtype fp8"]
    assert fp8.available_gib == 4.9 and fp8.tokens == pytest.approx(2 * 4.9 * GIB / per_token, rel=0.01)
    assert by_flags["--tensor-parallel-size 2"].available_gib > 4.9 + 7
    assert by_flags["--max-model-len 20480"].concurrency == pytest.approx(4.9 * GIB / per_token / 20480, rel=0.02)


def test_the_logs_own_figures_are_enough_for_an_unknown_model() -> None:
    values = {**STARTED, "server.model": "/srv/models/ours", "engine.kv_cache_tokens": 35664}
    found = explain(values)
    assert found.kv_bytes_per_token == pytest.approx(4.9 * GIB / 35664)
    flags = [change.flags for change in found.changes]
    assert flags == ["--gpu-memory-utilization 0.95", "--kv-cache-dtype fp8"]
    assert found.not_known and "/srv/models/ours" in found.not_known[0]
    with pytest.raises(ConfigError):
        explain(values, model="also/unknown-here")


def test_tokens_that_do_not_fit_the_model_are_said_to() -> None:
    honest = explain({**STARTED, "engine.kv_cache_tokens": int(4.9 * GIB / (36 * 4096) / 16) * 16})
    odd = explain({**STARTED, "engine.kv_cache_tokens": 71_000})
    assert abs(honest.unexplained_percent or 0) < 0.5 and (odd.unexplained_percent or 0) > 90


@pytest.mark.parametrize(
    "values",
    [{}, {"memory.total_gib": "lots"}, {"memory.available_kv_gib": True, "memory.total_gib": -5}, {"server.model": 7}],
)
def test_odd_logs_explain_nothing_and_break_nothing(values: dict[str, Any]) -> None:
    explain(values)
    assert advise(values) is None


def test_a_log_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "(APIServer pid=1) INFO 11-02 10:00:01 [api_server.py:1896] vLLM API server version 0.12.0\n"
        "(APIServer pid=1) INFO 11-02 10:00:01 [utils.py:233] non-default args: {'model': 'Qwen/Qwen3-8B', 'max_model_len': 8192}\n"
        "(EngineCore_DP0 pid=9) INFO 11-02 10:00:20 [gpu_model_runner.py:2653] Model loading took 15.2700 GiB and 4.1 seconds\n"
        "(EngineCore_DP0 pid=9) INFO 11-02 10:00:40 [gpu_worker.py:298] Available KV cache memory: 5.01 GiB\n"
        "(EngineCore_DP0 pid=9) INFO 11-02 10:00:40 [kv_cache_utils.py:1087] GPU KV cache size: 36,480 tokens\n"
    )
    found = explain_log(log, tuple(load().messages.values()), gpu="RTX 4090")
    assert found.model == "Qwen/Qwen3-8B" and found.available_gib == 5.01 and found.kv_cache_tokens == 36480
    assert abs(found.unexplained_percent or 0) < 0.2
    assert len(found.changes) >= 4


def test_advised_values_do_it_and_anything_milder_does_not() -> None:
    advised = advise(STARTED)
    assert advised is not None and advised.calibrated and advised.available_gib == 4.9
    per_token = 36 * 2 * 8 * 128 * 2
    assert advised.longest_context is not None
    assert advised.longest_context * per_token <= 4.9 * GIB < (advised.longest_context + 512) * per_token
    assert advised.utilization == pytest.approx(0.9 + (5.62 - 4.9) / 23.64, abs=0.011) and advised.utilization > 0.93
    assert advised.fp8_kv_cache is True and advised.tensor_parallel_size == 2
    assert advised.cpu_offload_gb == 1.0


def test_without_figures_the_pessimistic_end_counts() -> None:
    values = {k: v for k, v in STARTED.items() if k not in ("memory.available_kv_gib", "memory.needed_kv_gib")}
    advised = advise(values)
    assert advised is not None and not advised.calibrated
    assert advised.available_gib < 5.2
    assert advise({**values, "server.model": "/srv/ours"}) is None
    assert advise({"server.model": "Qwen/Qwen3-8B"}) is None
