"""An incident buried in a long healthy log, other processes' lines between its own, gets the answer that it gets alone.

The incidents are the project's own (those of which nearly every line was printed by a program) and the captures of a
real server, each in traffic of both engine generations, at the beginning, in the middle and at the end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Diagnosis
from knowledge.catalog import load
from scripts.burying import Place, bury
from tools.logs import LogInput
from tools.logs.prose import is_log_line

DATA = Path(__file__).resolve().parents[2] / "data"
ENGINE = Engine(load())
#: What is seen in statistics alone is over when hours of healthy statistics follow: only its end is asked for.
PASSES = frozenset({
    "performance/slow-decode", "performance/queue-buildup", "performance/kv-cache-saturated", "engine/stalled",
    "memory/kv-cache-preemption", "engine/speculative-decoding",
})  # fmt: skip


def incidents() -> Iterator[dict[str, Any]]:
    for name in ("blind", "oblique", "reports", "strangers"):
        for line in (DATA / "incidents" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            lines = [line for line in row["text"].splitlines() if line.strip()]
            if row["primary"] not in ("fine", "other") and sum(map(is_log_line, lines)) >= 0.8 * len(lines):
                yield row
    manifest = yaml.safe_load((DATA / "lab" / "manifest.yaml").read_text(encoding="utf-8"))
    for name, entry in manifest.items():
        text = (DATA / "lab" / name / "server.log").read_text(encoding="utf-8", errors="replace")
        if entry.get("cause") and not (DATA / "lab" / name / "responses.jsonl").exists():
            yield {"id": name, "text": text, "primary": entry["cause"], "also": entry.get("also", [])}


def diagnose(text: str) -> Diagnosis:
    return ENGINE.diagnose(read_case(ENGINE.catalog, logs=[LogInput(name="server.log", data=text.encode())])[0])


def is_right(row: dict[str, Any], diagnosis: Diagnosis) -> bool:
    return diagnosis.verdict == "cause" and diagnosis.causes[0].id in {row["primary"], *row.get("also", ())}


def right_alone() -> list[dict[str, Any]]:
    return [row for row in incidents() if is_right(row, diagnose(row["text"]))]


def lost(rows: list[dict[str, Any]], seed: int, lines: int, modern: bool | None, place: Place) -> list[str]:
    """What is right alone and not right buried."""
    rng = random.Random(seed)
    found = []
    for row in rows:
        if place != "end" and row["primary"] in PASSES:
            continue
        diagnosis = diagnose(bury(row["text"], rng, lines, modern, place))
        if not is_right(row, diagnosis):
            named = diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict
            found.append(f"{row['id']} ({row['primary']}) is answered as {named}")
    return found


@pytest.mark.parametrize(("place", "start"), [("end", 0), ("middle", 1), ("beginning", 2)])
def test_some_of_them(place: Place, start: int) -> None:
    """Every twelfth incident, another twelfth at every place."""
    rows = right_alone()[start::12]
    assert len(rows) >= 8
    assert lost(rows, 7, 20_000, None, place) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["end", "middle", "beginning"])
@pytest.mark.parametrize(("seed", "modern"), [(1, None), (2, True), (3, False)])
def test_all_of_them_in_fifty_thousand_lines(place: Place, seed: int, modern: bool | None) -> None:
    rows = right_alone()
    missing = lost(rows, seed, 50_000, modern, place)
    assert len(missing) <= 0.02 * len(rows), missing


def statistics(generation: float, running: int, clock: str, prompt: float = 0.0) -> str:
    return (
        f"(APIServer pid=9) INFO 11-20 {clock} [loggers.py:127] Engine 000: Avg prompt throughput: {prompt} tokens/s, "
        f"Avg generation throughput: {generation} tokens/s, Running: {running} reqs, Waiting: 0 reqs, "
        "GPU KV cache usage: 3.1%, Prefix cache hit rate: 0.0%"
    )


NOTICE = (
    "(EngineCore_DP0 pid=11) INFO 11-20 10:00:00 [shm_broadcast.py:466] No available shared memory broadcast block "
    "found in 60 seconds. This typically happens when some processes are hanging."
)
READY = "(APIServer pid=9) INFO:     Application startup complete."
FLOWING = [statistics(300.0, 4, f"10:02:{second:02}", 90.0) for second in range(0, 60, 10)]


def test_a_stall_notice_of_the_start_is_no_cause_once_tokens_flow() -> None:
    diagnosis = diagnose("\n".join([NOTICE, READY, *FLOWING]))
    assert diagnosis.verdict == "healthy"
    assert [found.id for found in diagnosis.ruled_out] == ["distributed/shm-broadcast-stall"]


def test_statistics_before_a_stall_notice_do_not_rule_it_out() -> None:
    diagnosis = diagnose("\n".join([READY, *FLOWING, NOTICE]))
    assert [found.id for found in diagnosis.causes[:1]] == ["distributed/shm-broadcast-stall"]
    assert diagnosis.verdict == "cause"


def test_statistics_of_the_server_before_do_not_make_a_new_start_healthy() -> None:
    """The log goes on with weights being loaded: nobody knows yet how that ends."""
    start = "(Worker pid=12) INFO 11-20 10:05:00 [gpu_model_runner.py:2602] Starting to load model /models/m..."
    assert diagnose("\n".join(FLOWING)).verdict == "healthy"
    assert diagnose("\n".join([*FLOWING, start])).verdict == "unknown"


def test_a_few_tokens_in_two_windows_are_slow_whatever_another_process_prints_between() -> None:
    slow = [statistics(0.6, 2, f"10:03:{second:02}") for second in (5, 15, 25)]
    mixed = [line for pair in zip(FLOWING, [*slow, *slow], strict=True) for line in pair]
    assert diagnose("\n".join(mixed)).causes[0].id == "performance/slow-decode"
    assert diagnose("\n".join([*FLOWING, slow[0]])).verdict == "healthy"


def test_a_bare_killed_is_the_cause_only_where_nothing_failed_before() -> None:
    alone = "\n".join([*FLOWING, "Killed"])
    after = "\n".join([
        *FLOWING,
        "(EngineCore_DP0 pid=11) ERROR 11-20 10:06:00 [core.py:708] ValueError: No available memory for the cache blocks. "
        "Try increasing `gpu_memory_utilization` when initializing the engine.",
        "Killed",
    ])  # fmt: skip
    assert diagnose(alone).causes[0].id == "memory/host-ram-exhausted"
    assert diagnose(after).causes[0].id == "memory/no-room-for-kv-cache"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("clients get errors now and then", "unknown"),
        ("用户偶尔反馈报错", "unknown"),
        ("we were paged for this one", "unknown"),
        ("is this log fine?", "healthy"),
        ("everything works fine, may I ignore the timeouts of last week?", "healthy"),
    ],
)
def test_a_clean_log_is_no_all_clear_for_who_has_trouble(words: str, verdict: str) -> None:
    log = LogInput(name="server.log", data="\n".join([READY, *FLOWING]).encode())
    assert ENGINE.diagnose(read_case(ENGINE.catalog, text=words, logs=[log])[0]).verdict == verdict
