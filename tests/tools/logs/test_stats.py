"""Engine statistics over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Reader = Callable[..., Any]


def line(
    generation: float,
    running: int,
    waiting: int = 0,
    usage: float = 50.0,
    engine: str = "Engine 000: ",
    prompt: float = 0.0,
) -> str:
    return (
        f"(APIServer pid=1) INFO 06-10 21:00:00 [loggers.py:123] {engine}Avg prompt throughput: {prompt} tokens/s, Avg generation "
        f"throughput: {generation} tokens/s, Running: {running} reqs, Waiting: {waiting} reqs, GPU KV cache usage: {usage}%, "
        "Prefix cache hit rate: 12.5%\n"
    )


def test_values(read: Reader) -> None:
    found = read(line(10.5, 2, 40, 97.5, prompt=3.0) + line(20.0, 1, 3, 60.0))
    assert found.value("stats.samples") == 2
    assert found.value("stats.progress") == "moving"
    assert (found.value("stats.running"), found.value("stats.running_max")) == (1, 2)
    assert (found.value("stats.waiting"), found.value("stats.waiting_max")) == (3, 40)
    assert (found.value("stats.kv_usage_percent"), found.value("stats.kv_usage_max_percent")) == (60.0, 97.5)
    assert found.value("stats.generation_tokens_per_second") == 20.0
    assert found.value("stats.prefix_hit_percent") == 12.5


def test_frozen_needs_two_still_samples(read: Reader) -> None:
    once = read(line(5, 2) + line(0, 2)).first("stats.progress")
    assert (once.state, once.value) == ("unknown", None)
    assert read(line(5, 2) + line(0, 2) + line(0, 2)).value("stats.progress") == "frozen"
    assert read(line(0, 2) + line(0, 2) + line(4, 2)).value("stats.progress") == "moving"
    assert read(line(0, 0) + line(0, 0)).value("stats.progress") == "idle"


def test_one_frozen_engine_of_two(read: Reader) -> None:
    text = (line(5, 2) + line(0, 3, engine="Engine 001: ")) * 3
    found = read(text)
    assert found.value("stats.progress") == "frozen"
    assert found.value("stats.running") == 5


def test_engine_v0_and_speculation(read: Reader) -> None:
    text = (
        "INFO 06-10 21:00:00 metrics.py:449] Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 12.0 tokens/s, "
        "Running: 1 reqs, Swapped: 0 reqs, Pending: 4 reqs, GPU KV cache usage: 0.3%, CPU KV cache usage: 0.0%.\n"
        "INFO 06-10 21:00:00 [metrics.py:100] SpecDecoding metrics: Mean acceptance length: 1.25, Accepted throughput: 1.0 tokens/s, "
        "Avg Draft acceptance rate: 8.5%\n"
    )
    found = read(text)
    assert found.value("stats.waiting") == 4
    assert found.value("stats.kv_usage_percent") == 0.3
    assert found.value("stats.acceptance_percent") == 8.5
    assert found.value("stats.acceptance_length") == 1.25


def test_statistics_of_a_large_log_are_sampled_and_end_right(read: Reader) -> None:
    found = read(line(5, 2, usage=10.0) * 20_000 + line(0, 7) * 3)
    assert found.value("stats.progress") == "frozen"
    assert found.value("stats.running") == 7
    assert found.value("stats.samples") >= 4
