"""Live servers in fifty states, looked at over HTTP all at once: the verdict for each must be a right one."""

from __future__ import annotations

import asyncio

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.model import Diagnosis, case_from_json
from assistant.fleet.looking import look_at_all
from assistant.fleet.naming import policy_of, target_of
from assistant.settings import defaults
from assistant.targets import Target
from knowledge.catalog import load
from tests.tools.metrics.serving import Servers, serving
from tests.tools.metrics.states import STATES


async def _look_at_all() -> dict[str, Diagnosis]:
    async with serving(Servers({name: state for name, (state, _) in STATES.items()})) as servers:
        targets = {name: Target(name, servers.url(name), private=True) for name in STATES}
        found = look_at_all(
            targets.values(),
            policy_of(defaults(), targets),
            Engine(load()),
            window_s=4.5,
            deadline_s=30.0,
            language="en",
            looks=4,
        )
        return {one.target.name: one.diagnosis async for one in found}


@pytest.fixture(scope="module")
def diagnoses() -> dict[str, Diagnosis]:
    """All states at once: each is waited for, none is computed for long."""
    return asyncio.run(_look_at_all())


def verdict(diagnosis: Diagnosis) -> str:
    return diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict


@pytest.mark.parametrize("name", STATES)
def test_the_verdict_is_right(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    found = diagnoses[name]
    assert verdict(found) in STATES[name][1], (found.summary, [(c.id, c.confidence) for c in found.causes])
    assert found.summary


def test_a_saved_case_gives_the_same_answer_again(diagnoses: dict[str, Diagnosis]) -> None:
    engine = Engine(load())
    for found in diagnoses.values():
        assert found.case is not None
        again = engine.diagnose(case_from_json(found.case.to_json()))
        assert verdict(again) == verdict(found)
        assert again.summary == found.summary


def test_figures_and_computed_advice_are_told(diagnoses: dict[str, Diagnosis]) -> None:
    queue = diagnoses["queue"]
    assert any("num_requests_waiting: 60" in quote.text for quote in queue.causes[0].because)
    # 16 running fill 15 %: nine tenths of the cache hold 96, and 16 + 60 requests want to run.
    assert "--max-num-seqs 80" in (queue.causes[0].fixes[0].command or "")
    assert any("--max-num-seqs 80" in note for note in queue.notes)
    full = diagnoses["cache-full"]
    assert any("30 run and 14 wait" in note and "2 servers" in note for note in full.notes)


def test_the_engine_that_is_worst_off_is_named(diagnoses: dict[str, Diagnosis]) -> None:
    stalled = diagnoses["stalled-one-of-two"]
    assert stalled.causes[0].because[0].process == "engine 1, org/model"
    uneven = diagnoses["queue-of-one-engine"]
    assert any("engine 1" in note and "76" in note for note in uneven.notes)


def test_an_unreadable_figure_is_named_as_not_measured(diagnoses: dict[str, Diagnosis]) -> None:
    assert diagnoses["usage-is-no-number"].not_measured == (("vllm:kv_cache_usage_perc", "its value is no number"),)


@pytest.mark.parametrize("given", ["http://169.254.169.254", "http://[fe80::1]:8000"])
def test_a_typed_address_still_never_leads_to_the_metadata_service(given: str) -> None:
    async def look() -> Diagnosis:
        targets = {given: target_of(given, {})}
        found = look_at_all(
            targets.values(), policy_of(defaults(), targets), Engine(load()), window_s=0, deadline_s=5, language="en"
        )
        return await anext(one.diagnosis async for one in found)

    found = asyncio.run(look())
    assert found.verdict == "unknown"
    assert "is refused" in found.summary
