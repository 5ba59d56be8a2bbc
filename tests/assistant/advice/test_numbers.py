"""The arithmetic of the advice, on figures that a log states."""

from __future__ import annotations

import pytest

from assistant.advice.numbers import NUMBERS, Number
from assistant.advice.started import Argument, Started
from assistant.advice.words import text_word
from assistant.diagnosis.truth import Facts
from knowledge.catalog import load
from tools.evidence import Evidence, Origin

STARTED = Started(form="serve", version="0.32.0", seen=True)


def facts(**values: float | str) -> Facts:
    found = Facts()
    for name, value in values.items():
        key = name.replace("__", ".")
        found.values[key] = Evidence(key, "present", value, Origin("server.log"))
    return found


def started(**arguments: str) -> Started:
    rows = tuple(Argument("--" + k.replace("_", "-"), k, (text_word(v),)) for k, v in arguments.items())
    return Started(form="serve", version="0.32.0", arguments=rows, seen=True)


def number(name: str, given: Facts, how: Started = STARTED) -> Number:
    return NUMBERS[name](given, how)


def test_the_context_that_fits_is_stated_or_in_proportion() -> None:
    assert number("longest_context_that_fits", facts(memory__longest_context=38999)).value == "38992"
    half = facts(memory__needed_kv_gib=16, memory__available_kv_gib=8, engine__max_model_len=65536)
    assert number("longest_context_that_fits", half).value == "32736"  # two decimals could mean a little less
    assert number("longest_context_that_fits", Facts()).value is None
    assert number("longest_context_that_fits", facts(memory__longest_context=3)).value is None


def test_the_share_that_fits_is_what_is_missing_over_the_card() -> None:
    # 1.5 GiB are missing on a card of 80 GiB: 0.85 + 0.01875, rounded up with half a percent to spare
    given = facts(memory__utilization=0.85, memory__total_gib=80, memory__needed_kv_gib=4, memory__available_kv_gib=2.5)
    assert number("utilization_that_fits", given).value == "0.88"
    short = facts(memory__utilization=0.9, memory__total_gib=24, memory__needed_kv_gib=16, memory__available_kv_gib=2)
    answer = number("utilization_that_fits", short)
    assert (answer.value, answer.enough, answer.says) == (None, False, "number-utilization-short")
    taken = facts(
        memory__utilization=0.85, memory__total_gib=80, memory__free_gib=69, memory__needed_kv_gib=4, memory__available_kv_gib=2.5
    )  # fmt: skip
    assert not number("utilization_that_fits", taken).enough  # only 0.86 of the card is free
    assert number("utilization_that_fits", Facts(), started(gpu_memory_utilization="0.97")).enough is False


def test_half_the_bytes_are_enough_or_not() -> None:
    enough = facts(memory__needed_kv_gib=16, memory__available_kv_gib=9.5)
    assert number("fp8_cache", enough).says == "number-fp8"
    short = facts(memory__needed_kv_gib=16, memory__available_kv_gib=3)
    assert number("fp8_cache", short).says == "number-fp8-short"
    assert number("fp8_cache", Facts()) == Number("fp8")


def test_more_gpus_are_enough_or_not_there() -> None:
    given = facts(memory__needed_kv_gib=16, memory__available_kv_gib=3, memory__weights_gib=40)
    answer = number("one_more_doubling", given, started(tensor_parallel_size="2"))
    assert (answer.value, answer.says) == ("4", "number-gpus")  # 3 + 20 GiB for 16
    tight = facts(memory__needed_kv_gib=30, memory__available_kv_gib=3, memory__weights_gib=30)
    assert number("one_more_doubling", tight).says == "number-gpus-heads"  # 18 GiB: for 15, not for 30
    few = facts(gpu__count=1, memory__needed_kv_gib=16, memory__available_kv_gib=3, memory__weights_gib=40)
    assert not number("one_more_doubling", few).enough


def test_sequences_follow_the_fill_of_the_cache() -> None:
    full = facts(stats__running_max=100, stats__kv_usage_max_percent=100)
    assert number("fewer_sequences", full).value == "90"
    assert number("fewer_sequences", Facts(), started(max_num_seqs="64")).value == "32"
    assert number("more_sequences", Facts(), started(max_num_seqs="64")).value == "128"


def test_free_memory_and_divisors() -> None:
    assert number("utilization_that_leaves_room", facts(memory__free_gib=20.0, memory__total_gib=24.0)).value == "0.83"
    assert not number("utilization_that_leaves_room", facts(memory__free_gib=0.5, memory__total_gib=24.0)).enough
    heads = Facts()
    quote = "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (8)."
    heads.messages["x"] = [Evidence("message:x", "present", True, Origin("l"), quote)]
    assert number("dividing_parallelism", heads, started(tensor_parallel_size="8")).value == "7"


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_absurd_figures_give_no_number_and_no_error(name: str) -> None:
    keys = (
        "memory__utilization", "memory__total_gib", "memory__free_gib", "memory__needed_kv_gib", "memory__available_kv_gib", "memory__weights_gib",
        "memory__requested_gib", "memory__longest_context", "engine__max_model_len", "engine__kv_cache_tokens", "stats__running_max",
        "stats__kv_usage_max_percent", "gpu__count",
    )  # fmt: skip
    for value in (0, -1, 1e308, float("inf"), float("nan"), "many", 0.0001):
        answer = number(name, facts(**dict.fromkeys(keys, value)))
        assert answer.value is None or (
            answer.value.isprintable() and "inf" not in answer.value and "nan" not in answer.value
        )
    for text in ("-5", "0", "1e300", "x", "9" * 30):
        arguments = dict.fromkeys(
            ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"), text
        )
        answer = number(name, Facts(), started(**arguments))
        assert answer.value is None or "-" not in answer.value


def test_every_calculation_is_used_and_every_sentence_exists() -> None:
    catalog = load()
    used = {intent.value for intent in catalog.intents.values()} | {
        fix.value for cause in catalog.causes.values() for fix in cause.fixes
    }
    assert set(NUMBERS) <= used
    assert {"number-context", "number-fp8", "number-gpus"} <= set(catalog.sentences)
