"""The page reader: what a page states, and that nothing on a page can hurt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.tools.metrics.pages import page
from tests.tools.metrics.states import STATES, WORKING, one
from tools.metrics.exposition import MOST_LINE, PageReader, read_page
from tools.metrics.vocabulary import SAMPLES
from tools.metrics.window import EngineKey

ENGINE = EngineKey("m", "0", "")
LABELS = 'engine="0",model_name="m"'


def numbers(text: str) -> dict[tuple[str, int, str], float]:
    return read_page(text.encode()).numbers.get(ENGINE, {})


def test_a_real_page_is_read_whole(captured: Path) -> None:
    read = read_page((captured / "preemption" / "metrics-1.txt").read_bytes())
    assert read.is_prefixed and not read.cut and read.bad_lines == 0
    (engine,) = [key for key in read.numbers if key.engine]
    assert read.numbers[engine]["preemptions", 0, ""] > 0
    assert read.histograms[engine]["time_to_first_token", 0].count
    assert read.infos["cache_config"][0][0]["num_gpu_blocks"] == "40"


@pytest.mark.parametrize("size", [1, 7, 100, 65_536])
def test_the_pieces_in_which_a_page_arrives_make_no_difference(size: int, captured: Path) -> None:
    body = (captured / "preemption" / "metrics-1.txt").read_bytes()[:60_000]
    reader = PageReader()
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    found, whole = reader.finish(), read_page(body)
    assert (found.numbers, found.histograms, found.cut) == (whole.numbers, whole.histograms, whole.cut)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (f"vllm:num_requests_running{{{LABELS}}} 4.0", 4.0),
        (f"vllm:num_requests_running{{{LABELS},}} 4", 4.0),
        ('vllm:num_requests_running{ engine = "0", model_name="m" }  4e0 1700000000000', 4.0),
        (f'vllm:num_requests_running{{{LABELS}}} 4 # {{trace="a"}} 1', 4.0),
        (f"ray_vllm_num_requests_running{{{LABELS}}} 4", 4.0),
    ],
)
def test_spellings_of_a_sample(line: str, value: float) -> None:
    assert numbers(line + "\n")["running", 0, ""] == value


@pytest.mark.parametrize(
    "line",
    [
        f"vllm:num_requests_running{{{LABELS} 4",
        "vllm:num_requests_running{engine=0} 4",
        f"vllm:num_requests_running{{{LABELS}}}",
        f"vllm:num_requests_running{{{LABELS}}} four",
        f"vllm:num_requests_running{{{LABELS}}} 1e2e3",
        'vllm:num_requests_running{a="\\',
    ],
)
def test_a_line_that_is_no_sample_costs_that_line(line: str) -> None:
    read = read_page(f"{line}\nvllm:num_requests_waiting{{{LABELS}}} 3\n".encode())
    assert read.bad_lines == 1
    assert read.numbers[ENGINE] == {("waiting", 0, ""): 3.0}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-4"])
def test_what_is_no_number_is_unreadable_and_not_zero(value: str) -> None:
    read = read_page(f"vllm:num_requests_running{{{LABELS}}} {value}\n".encode())
    assert read.numbers[ENGINE] == {}
    assert read.unreadable[ENGINE] == {"running"}


def test_of_two_spellings_both_are_kept_apart() -> None:
    read = numbers(f"vllm:gpu_cache_usage_perc{{{LABELS}}} 0.3\nvllm:kv_cache_usage_perc{{{LABELS}}} 0.3\n")
    assert read == {("kv_usage", 1, ""): 0.3, ("kv_usage", 0, ""): 0.3}


def test_labels_that_tell_no_engines_apart_are_summed() -> None:
    read = numbers("".join(f'vllm:prompt_tokens_total{{{LABELS},source="{s}"}} 5\n' for s in "abc"))
    assert read["prompt_tokens", 0, ""] == 15.0


def test_a_label_may_hold_anything() -> None:
    body = 'vllm:num_requests_running{engine="0",model_name="a\\"b\\\\c\\n},{d"} 2\n'
    read = read_page(body.encode())
    assert list(read.numbers) == [EngineKey('a"b\\c\n},{d', "0", "")]


def test_a_line_without_end_is_skipped_and_what_follows_is_read() -> None:
    reader = PageReader()
    for _ in range(10):
        reader.feed(b"x" * MOST_LINE)
    reader.feed(f"x\nvllm:num_requests_running{{{LABELS}}} 1\n".encode())
    read = reader.finish()
    assert read.bad_lines == 1
    assert read.numbers[ENGINE] == {("running", 0, ""): 1.0}


def test_a_page_that_breaks_off_within_a_line_is_known_to_be_cut() -> None:
    whole = page(one(WORKING), 0).encode()
    assert not read_page(whole).cut
    assert read_page(whole[: len(whole) // 2]).cut


def test_names_of_the_stand_in_are_names_of_the_vocabulary() -> None:
    unknown = {
        line.split("{")[0].split(" ")[0]
        for state, _ in STATES.values()
        for line in page(state, 1.0).splitlines()
        if line and not line.startswith("#")
    } - set(SAMPLES)
    assert unknown == set()


def test_no_bytes_make_the_reader_fail(fuzz_seconds: float, captured: Path) -> None:
    import time

    good = (captured / "preemption" / "metrics-1.txt").read_bytes()[:20_000]
    chance, end, rounds = random.Random(20261121), time.monotonic() + fuzz_seconds / 2, 0
    while time.monotonic() < end:
        body = bytearray(good)
        for _ in range(chance.randint(1, 60)):
            place = chance.randrange(len(body))
            body[place : place + chance.randint(0, 9)] = chance.randbytes(chance.randint(0, 9))
        reader = PageReader()
        size = chance.randint(1, 9000)
        for start in range(0, len(body), size):
            reader.feed(bytes(body[start : start + size]))
        read = reader.finish(truncated=chance.random() < 0.5)
        assert all(value >= 0 for found in read.numbers.values() for value in found.values())
        rounds += 1
    assert rounds > 5
