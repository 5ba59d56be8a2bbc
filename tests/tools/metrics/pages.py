"""Metrics pages as servers of several vLLM generations print them, as a function of time.

Only for states that cannot be had without a GPU or in a test's time; the real server is looked at in
tests/lab/test_live.py. Names and labels per generation follow vLLM's sources: 0.6 is engine V0, the others V1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

BOUNDS = (0.001, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
EPOCH = 1_700_000_000.0


@dataclass(frozen=True)
class Generation:
    version: str
    usage: tuple[str, ...]
    token_time: tuple[str, ...]
    prefix: tuple[str, ...]
    has_engine_label: bool
    prefix_of_names: str = "vllm:"


GENERATIONS = {
    "0.6": Generation("0.6.3", ("gpu_cache_usage_perc",), ("time_per_output_token_seconds",), (), False),
    "0.8": Generation(
        "0.8.5", ("gpu_cache_usage_perc",), ("time_per_output_token_seconds",), ("gpu_prefix_cache",), True
    ),
    "0.10": Generation(
        "0.10.2",
        ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
        ("inter_token_latency_seconds", "time_per_output_token_seconds"),
        ("prefix_cache", "gpu_prefix_cache"),
        True,
    ),
    "0.32": Generation("0.32.0", ("kv_cache_usage_perc",), ("inter_token_latency_seconds",), ("prefix_cache",), True),
    "ray": Generation(
        "0.32.0", ("kv_cache_usage_perc",), ("inter_token_latency_seconds",), ("prefix_cache",), True, "ray_vllm_"
    ),
}


@dataclass(frozen=True)
class EngineState:
    """One engine: levels (a number, or one for each second), growth per second, and what recent observations are."""

    running: float | tuple[float, ...] = 0
    waiting: float | tuple[float, ...] = 0
    kv: float | tuple[float, ...] | str = 0.0
    swapped: float | None = None
    prompt: float = 0.0
    generation: float = 0.0
    finished: Mapping[str, float] = field(default_factory=dict)  # reason -> per second
    preemptions: float = 0.0
    past_preemptions: float = 0.0
    queries: float = 0.0
    hits: float = 0.0
    drafted: float | None = None
    accepted: float = 0.0
    first_token: float = 0.2
    past_first_token: float = 0.2
    token: float = 0.03
    queue: float = 0.01
    prefill: float = 0.1
    prompt_length: float | None = 500.0
    total_generated: float = 500_000.0
    asleep: bool = False
    deferred: float = 0.0
    corrupted: float = 0.0
    failed_transfers: float | None = None


@dataclass(frozen=True)
class State:
    """One server. ``restart_at`` is the second at which its counters begin anew; ``extra`` is put on the page."""

    engines: tuple[EngineState, ...] = (EngineState(),)
    generation: str = "0.32"
    models: tuple[str, ...] = ("org/model",)
    health: int = 200
    restart_at: float | None = None
    age: float | None = None  # seconds since the process started; None: not exported
    config: Mapping[str, str] = field(default_factory=dict)
    lora: Mapping[str, str] = field(default_factory=dict)
    http: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (handler, status) -> per second
    turned_away: float = 0.0
    extra: str = ""


def _at(level: float | tuple[float, ...] | str, t: float) -> float | str:
    return level[min(len(level) - 1, int(t))] if isinstance(level, tuple) else level


def page(state: State, t: float) -> str:
    """The page ``t`` seconds after the first look."""
    names = GENERATIONS[state.generation]
    lines: list[str] = []
    for number, engine in enumerate(state.engines):
        model = state.models[number % len(state.models)] if len(state.models) > 1 else state.models[0]
        labels = f'model_name="{model}"' + (f',engine="{number}"' if names.has_engine_label else "")
        lines += _engine(state, engine, names, labels, t)
    prefix = names.prefix_of_names
    if state.config:
        pairs = ",".join(f'{key}="{value}"' for key, value in state.config.items())
        lines.append(f"{prefix}cache_config_info{{{pairs}}} 1.0")
    if state.lora:
        pairs = ",".join(f'{key}="{value}"' for key, value in state.lora.items())
        lines.append(f"{prefix}lora_requests_info{{{pairs}}} {EPOCH + t}")
    for (handler, status), rate in state.http.items():
        total = 100.0 + rate * t
        lines.append(f'http_requests_total{{handler="{handler}",method="POST",status="{status}"}} {total}')
    if state.turned_away:
        labels = f'model_name="{state.models[0]}",reason="max_num_queued_reqs"'
        lines.append(f"{prefix}admission_rejections_total{{{labels}}} {5 + state.turned_away * t}")
    if state.age is not None:
        lines.append(f"process_start_time_seconds {time.time() - state.age}")
    if state.extra:
        lines.append(state.extra)
    return "\n".join(lines) + "\n"


def _engine(state: State, engine: EngineState, names: Generation, labels: str, t: float) -> list[str]:
    prefix = names.prefix_of_names
    lines: list[str] = []
    base, since = (1.0, t) if state.restart_at is None or t < state.restart_at else (0.0, t - state.restart_at)

    def gauge(name: str, value: object, more: str = "") -> None:
        lines.append(f"# TYPE {prefix}{name} gauge")
        lines.append(f"{prefix}{name}{{{labels}{more}}} {value}")

    def counter(name: str, past: float, rate: float, more: str = "") -> None:
        lines.append(f"# TYPE {prefix}{name}_total counter")
        lines.append(f"{prefix}{name}_total{{{labels}{more}}} {past * base + rate * since}")

    gauge("num_requests_running", _at(engine.running, t))
    gauge("num_requests_waiting", _at(engine.waiting, t))
    for name in names.usage:
        gauge(name, _at(engine.kv, t))
    if engine.swapped is not None:
        gauge("num_requests_swapped", engine.swapped)
    counter("num_preemptions", engine.past_preemptions, engine.preemptions)
    counter("prompt_tokens", 800_000 if engine.total_generated else 0, engine.prompt)
    counter("generation_tokens", engine.total_generated, engine.generation)
    for name in names.prefix:
        counter(f"{name}_queries", 10_000, engine.queries)
        counter(f"{name}_hits", 6_000, engine.hits)
    for reason in ("stop", "length", "abort", "error"):
        rate = engine.finished.get(reason, 0.0)
        counter("request_success", 500 if reason == "stop" else 3, rate, f',finished_reason="{reason}"')
    if engine.drafted is not None:
        counter("spec_decode_num_draft_tokens", 1000, engine.drafted)
        counter("spec_decode_num_accepted_tokens", 700, engine.accepted)
    if engine.corrupted:
        counter("corrupted_requests", 0, engine.corrupted)
    if engine.failed_transfers is not None:
        counter("nixl_num_failed_transfers", 2, engine.failed_transfers)
    if state.generation == "0.32":
        gauge("engine_sleep_state", float(not engine.asleep), ',sleep_state="awake"')
        gauge("engine_sleep_state", float(engine.asleep), ',sleep_state="weights_offloaded"')
        gauge("num_requests_waiting_by_reason", engine.deferred, ',reason="deferred"')
    ended = sum(engine.finished.values()) * since
    seen = [
        ("time_to_first_token_seconds", engine.first_token, engine.past_first_token, ended),
        ("e2e_request_latency_seconds", engine.first_token + 2.0, 2.0, ended),
        ("request_queue_time_seconds", engine.queue, 0.01, ended),
        ("request_prefill_time_seconds", engine.prefill, 0.1, ended),
    ]
    seen += [(name, engine.token, 0.03, engine.generation * since) for name in names.token_time]
    if engine.prompt_length is not None:
        seen.append(("request_prompt_tokens", engine.prompt_length, 100.0, ended))
    for name, now, past, count in seen:
        lines += _histogram(f"{prefix}{name}", labels, (past, 500.0 * base), (now, count))
    return lines


def _histogram(name: str, labels: str, past: tuple[float, float], now: tuple[float, float]) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    total = past[1] + now[1]
    for bound in BOUNDS:
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {sum(n for v, n in (past, now) if v <= bound)}')
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {total}')
    lines.append(f"{name}_count{{{labels}}} {total}")
    lines.append(f"{name}_sum{{{labels}}} {past[0] * past[1] + now[0] * now[1]}")
    return lines
