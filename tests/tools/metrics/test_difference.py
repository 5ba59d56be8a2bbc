"""What happened between two pages: growth, resets, percentiles, engines; and the facts made of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from knowledge.catalog import load
from knowledge.versions import release
from knowledge.vllm_tables import metric_range, metrics, versions
from tests.tools.metrics.pages import EngineState, State, page
from tests.tools.metrics.states import FROZEN, STATES, WORKING, one
from tools.metrics.difference import engine_windows, http_increases
from tools.metrics.exposition import read_page
from tools.metrics.facts import NEEDED, evidence_of
from tools.metrics.look import stands_still
from tools.metrics.vocabulary import BY_KEY, QUANTITIES
from tools.metrics.window import Distribution, EngineWindow, ServerWindow, joined


def between(state: State, *moments: float) -> tuple[EngineWindow, ...]:
    return engine_windows([read_page(page(state, t).encode()) for t in moments])


def test_rates_are_of_the_window_and_not_of_the_servers_life() -> None:
    (engine,) = between(one(replace(WORKING, preemptions=2.0, past_preemptions=9000)), 10, 15)
    assert engine.increases["preemptions"] == pytest.approx(10)
    assert engine.totals["preemptions"] == pytest.approx(9030)
    assert engine.increases["generation_tokens"] == pytest.approx(4000)


def test_percentiles_are_of_the_window_only() -> None:
    (engine,) = between(one(replace(WORKING, first_token=0.2, past_first_token=30.0)), 0, 5)
    found = engine.distributions["time_to_first_token"]
    assert found.mean == pytest.approx(0.2)
    assert found.quantile(0.95) == pytest.approx(0.1 + 0.15 * 0.95)  # linear inside (0.1, 0.25]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_agree_with_a_direct_computation(share: float) -> None:
    values = [0.003 * i for i in range(1, 1001)]
    bounds = [0.01 * 1.5**i for i in range(20)]
    buckets = tuple((b, float(sum(v <= b for v in values))) for b in [*bounds, math.inf])
    found = Distribution(1000.0, sum(values), buckets).quantile(share)
    true = values[max(0, math.ceil(share * 1000) - 1)]
    assert found is not None
    upper = next(b for b in [*bounds, math.inf] if true <= b)
    lower = max([0.0, *(b for b in bounds if b < upper)])
    assert lower <= found <= upper


def test_beyond_the_last_bound_a_quantile_is_that_bound() -> None:
    assert Distribution(4, 400.0, ((1.0, 0.0), (math.inf, 4.0))).quantile(0.5) == 1.0


@pytest.mark.parametrize("buckets", [(), ((math.inf, 0.0),), ((1.0, 3.0),), ((math.inf, 5.0),)])
def test_no_quantile_is_made_up(buckets: tuple[tuple[float, float], ...]) -> None:
    assert Distribution(0.0, 0.0, buckets).quantile(0.5) is None


def test_engines_are_joined_only_over_the_same_bounds() -> None:
    a = Distribution(2, 2.0, ((1.0, 1.0), (math.inf, 2.0)))
    b = Distribution(2, 8.0, ((2.0, 1.0), (math.inf, 2.0)))
    both, other = joined([a, a]), joined([a, b])
    assert both is not None and both.buckets == ((1.0, 2.0), (math.inf, 4.0)) and both.mean == 1.0
    assert other is not None and other.buckets == () and other.count == 4


def test_after_a_restart_counters_count_from_zero_and_it_is_said() -> None:
    (engine,) = between(one(WORKING, restart_at=2.0), 0, 5)
    assert engine.restarted
    assert engine.increases["generation_tokens"] == pytest.approx(800 * 3)
    assert engine.distributions["time_to_first_token"].count == pytest.approx(12)


def test_one_page_knows_no_growth() -> None:
    (engine,) = between(one(WORKING), 5)
    assert engine.increases == {} and engine.distributions == {}
    assert engine.last("running") == 8


def test_engines_and_models_are_told_apart() -> None:
    state = State((WORKING, FROZEN, WORKING), models=("a", "b"))
    found = {str(engine.key): engine.last("running") for engine in between(state, 0, 5)}
    assert found == {"engine 0, a": 8.0, "engine 1, b": 6.0, "engine 2, a": 8.0}


def test_a_burst_is_not_what_is_typical() -> None:
    (engine,) = between(one(replace(WORKING, waiting=(0, 40, 40, 0, 0, 0))), 0, 1, 2, 3, 4)
    assert engine.typical("waiting") == 0
    assert engine.last("waiting") == 0


@pytest.mark.parametrize(
    ("engine", "still"),
    [
        (FROZEN, True),
        (replace(FROZEN, running=0), True),
        (replace(FROZEN, waiting=(2, 2, 3, 4, 5, 6)), True),
        (EngineState(), False),
        (WORKING, False),
        (replace(FROZEN, generation=0.4), False),
        (replace(FROZEN, prompt=100.0), False),
        (replace(FROZEN, finished={"abort": 1.0}), False),
        (replace(FROZEN, kv=(0.2, 0.21, 0.22, 0.23, 0.24, 0.25)), False),
        (replace(FROZEN, running=(6, 6, 6, 5, 5, 5)), False),
        (replace(FROZEN, running=(0, 0, 6, 6, 6, 6), waiting=0), False),
    ],
)
def test_a_standstill_is_one_only_while_nothing_at_all_moves(engine: EngineState, still: bool) -> None:
    (found,) = between(one(engine), 0, 1, 2, 3, 4, 5)
    assert stands_still(found) is still


def test_this_programs_own_questions_are_no_traffic() -> None:
    state = one(WORKING, http={("/metrics", "2xx"): 9.0, ("/health", "5xx"): 9.0, ("none", "4xx"): 1.0})
    by_status, unrouted = http_increases([read_page(page(state, t).encode()) for t in (0, 5)])
    assert by_status == {"4xx": pytest.approx(5.0)}
    assert unrouted == pytest.approx(5.0)


def test_every_fact_is_a_declared_observable_with_a_declared_choice() -> None:
    catalog = load()
    for name, (state, _) in STATES.items():
        window = ServerWindow("GET x", "vllm", between(state, 0, 5), 2, 5.0, health=200, at=1.7e9)
        for item in evidence_of(window).evidence:
            declared = catalog.observable(item.name)
            assert declared is not None, (name, item.name)
            assert "fetch_metrics" in declared.suppliers, item.name
            if declared.choices and item.state == "present":
                assert item.value in declared.choices, item


def test_what_was_not_measured_is_never_zero() -> None:
    window = ServerWindow("GET x", "vllm", between(one(replace(WORKING, kv="NaN", finished={})), 0, 5), 2, 5.0)
    facts = {item.name: item for item in evidence_of(window).evidence}
    assert facts["metrics.kv_percent"].state == "unknown"
    assert facts["metrics.first_token_seconds"].state == "absent"
    assert facts["metrics.expected_wait_seconds"].state == "absent"
    assert "metrics.acceptance_percent" not in facts
    one_look = ServerWindow("GET x", "vllm", between(one(WORKING), 0), 1, 0.0)
    facts = {item.name: item for item in evidence_of(one_look).evidence}
    assert facts["metrics.activity"].state == "unknown"
    assert "metrics.generation_tokens_per_second" not in facts


@pytest.mark.parametrize("version", [v for v in versions() if release(v) >= release("0.4.0")])
def test_every_version_is_understood(version: str) -> None:
    """What a verdict needs is spelled in the vocabulary as that version exports it, and of the kind it is there."""
    exported = metrics(version)
    for key in (*NEEDED, "time_to_first_token", "inter_token_latency"):
        names = [name for name in BY_KEY[key].names() if name in exported and not exported[name].hidden]
        assert names, key
    for quantity in QUANTITIES:
        for spelling in quantity.spellings if quantity.prefixed else ():
            known = exported.get(quantity.exposed(spelling))
            is_there = release(spelling.since) <= release(version) and (
                spelling.until is None or release(version) <= release(spelling.until)
            )
            assert known is None or is_there, (spelling, "exported outside its range")
            if known is not None:
                assert known.kind == ("gauge" if quantity.kind == "info" else quantity.kind), spelling
                assert quantity.label is None or quantity.label in known.labels, spelling


def test_every_spelling_is_exported_by_its_first_and_last_version() -> None:
    for quantity in QUANTITIES:
        for spelling in quantity.spellings if quantity.prefixed else ():
            found = metric_range(quantity.exposed(spelling))
            assert found is not None, spelling
            first, last = found
            assert release(first)[:3] == release(spelling.since)[:3], spelling  # first seen in a post-release
            assert spelling.until is None or release(last) == release(spelling.until), spelling
