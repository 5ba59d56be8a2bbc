"""Runs, stages, coverage: where a start begins, how far it came, what is still to come."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tools.logs import ReadOptions

Reader = Callable[..., Any]


def at(*parts: int) -> datetime:
    """A time as vLLM states it: without a zone."""
    return datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001


def start(pid: int, minute: int = 0, model: str = "/srv/m") -> str:
    return (
        f"(APIServer pid={pid}) INFO 06-10 21:{minute:02d}:00 [api_utils.py:347]  ▄▄ ▄█ █     █ ▀▄▀ █  version 0.20.0\n"
        f"(APIServer pid={pid}) INFO 06-10 21:{minute:02d}:00 [api_utils.py:286] non-default args: {{'model': '{model}'}}\n"
        f"(EngineCore pid={pid + 1}) INFO 06-10 21:{minute:02d}:05 [core.py:133] Initializing a V1 LLM engine (v0.20.0) with "
        f"config: model='{model}', tensor_parallel_size=2, pipeline_parallel_size=1, max_seq_len=4096\n"
        f"(Worker_TP0 pid={pid + 2}) INFO 06-10 21:{minute:02d}:06 [a.py:1] Starting to load model {model}...\n"
    )


READY = "INFO:     Started server process [1]\nINFO:     Application startup complete.\n"
STOP = "INFO:     Shutting down\nINFO:     Application shutdown complete.\n"
CRASH = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nRuntimeError: first trouble\n'
OLD = (
    "INFO 06-10 21:{m}:00 api_server.py:528] vLLM API server version 0.6.3\n"
    "INFO 06-10 21:{m}:00 api_server.py:529] args: Namespace(host=None, port=8000, model='facebook/opt-125m', "
    "tensor_parallel_size=2, enforce_eager=True, api_key=None, dtype='auto')\n"
    "INFO 06-10 21:{m}:05 llm_engine.py:237] Initializing an LLM engine (v0.6.3) with config: model='facebook/opt-125m', "
    "dtype=torch.float16, max_seq_len=2048, tensor_parallel_size=2, pipeline_parallel_size=1, enforce_eager=True\n"
)


def test_the_last_run_is_read_and_earlier_ones_are_counted(read: Reader) -> None:
    text = start(10) + CRASH + start(20, 5) + READY + STOP + start(30, 10) + READY
    found = read(text)
    assert found.value("log.runs") == 3
    assert found.value("log.failures") == 0
    assert found.value("log.coverage") == "through-ready"
    assert [run.ended for run in found.reading.runs] == ["failed", "clean-shutdown", "open"]
    assert [run.failures for run in found.reading.runs] == [1, 0, 0]
    assert [run.number for run in found.reading.runs] == [1, 2, 3]
    assert "first trouble" in found.reading.runs[0].first_failure
    assert {fact.origin.line for fact in found.all("server.version")} == {16, 18}


def test_one_run_or_all_can_be_asked_for(read: Reader) -> None:
    text = start(10) + CRASH + start(20, 5) + READY
    assert read(text, ReadOptions(run=1)).value("log.failures") == 1
    assert [fact.value for fact in read(text, ReadOptions(run="all")).all("log.failures")] == [1, 0]
    missing = read(text, ReadOptions(run=7))
    assert "there is no run 7" in missing.reading.reading.not_measured[0][1]


def test_runs_before_processes_were_named(read: Reader) -> None:
    text = OLD.format(m="00") + READY + OLD.format(m="30")
    found = read(text)
    assert found.value("log.runs") == 2
    assert found.value("server.engine") == "V0"
    assert found.value("argument.tensor_parallel_size") == 2
    assert found.value("argument.enforce_eager") is True
    assert not found.all("argument.api_key")
    assert found.value("engine.max_model_len") == 2048
    assert found.value("parallel.world_size") == 2


def test_children_that_repeat_the_banner_begin_nothing(read: Reader) -> None:
    child = "(EngineCore pid=99) INFO 06-10 21:00:09 [api_utils.py:286] non-default args: {'model': '/srv/m'}\n"
    second = "(ApiServer_1 pid=12) INFO 06-10 21:00:00 [api_utils.py:286] non-default args: {'model': '/srv/m'}\n"
    engine = "(EngineCore_DP1 pid=50) INFO 06-10 21:00:05 [core.py:133] Initializing a V1 LLM engine (v0.20.0) with config: x\n"
    assert read(start(10) + child + second + engine + READY).value("log.runs") == 1


def test_a_log_that_stops_while_loading(read: Reader) -> None:
    text = start(10) + (
        "Loading safetensors checkpoint shards:   0% Completed | 0/5 [00:00<?, ?it/s]\r"
        "Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:06<00:09,  3.10s/it]\n"
        "(Worker_TP0 pid=12) INFO 06-10 21:00:16 [a.py:1] still here\n"
    )
    found = read(text)
    assert found.value("log.coverage") == "start-only"
    assert found.value("log.stage") == "loading"
    assert found.value("log.stage_seconds") == 10
    assert found.value("log.seconds_left") == 9
    assert found.value("log.seconds_per_shard") == 3.1
    assert found.value("log.progress_percent") == 40
    assert found.value("log.failures") == 0
    assert found.value("log.ended") == "open"


def test_the_remaining_time_follows_from_the_rate(read: Reader) -> None:
    text = start(10) + "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:10<?, 10.00s/it]\n"
    assert read(text).value("log.seconds_left") == 30


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("Capturing CUDA graph shapes:  50%|█████     | 17/35 [00:10<00:11,  1.61it/s]", "capturing"),
        ("model-00001-of-00004.safetensors:  34%|███▍ | 1.68G/4.98G [00:41<01:12, 45.3MB/s]", "downloading"),
        ("Fetching 12 files:  17%|█▋        | 2/12 [00:01<00:05,  1.97it/s]", "downloading"),
    ],
)
def test_stages_from_progress_bars(read: Reader, line: str, stage: str) -> None:
    text = start(10).rsplit("\n", 2)[0] + "\n" + line + "\n"
    assert read(text).value("log.stage") == stage


def test_a_fragment_of_a_serving_log(read: Reader) -> None:
    line = 'INFO:     192.0.2.1:9 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    found = read(line * 5)
    assert found.value("log.coverage") == "serving"
    assert found.value("log.stage") == "serving"
    assert found.value("requests.total") == 5


def test_a_window_of_time(read: Reader) -> None:
    lines = "".join(
        f"(APIServer pid=1) {'ERROR' if minute == 30 else 'INFO'} 06-10 21:{minute:02d}:{second:02d} [a.py:{second}] tick {minute}\n"
        for minute in range(60)
        for second in (0, 20, 40)
    )
    year = time.localtime().tm_year
    early = read(lines, ReadOptions(until=at(year, 6, 10, 21, 29, 59)))
    assert early.value("log.failures") == 0
    assert early.reading.reading.coverage[0].truncated
    late = read(lines, ReadOptions(since=at(year, 6, 10, 21, 30, 40)))
    assert late.value("log.failures") == 1
    assert late.reading.reading.coverage[0].lines == 30 * 3 - 2
    assert read(lines).value("log.failures") == 3


def test_the_times_of_a_run(read: Reader) -> None:
    found = read(start(10) + READY)
    coverage = found.reading.reading.coverage[0]
    year = time.localtime().tm_year
    assert (coverage.first_at, coverage.last_at) == (at(year, 6, 10, 21, 0, 0), at(year, 6, 10, 21, 0, 6))
    assert coverage.processes[:2] == ("APIServer pid=10", "EngineCore pid=11")
    assert coverage.would_show


def test_a_container_restarts_with_the_same_pid(read: Reader) -> None:
    killed_while_loading = start(1)
    found = read(killed_while_loading + start(1, 5) + READY + start(1, 9) + CRASH)
    assert [run.ended for run in found.reading.runs] == ["open", "open", "failed"]
    assert found.value("log.coverage") == "start-to-exit"


def test_a_refused_command_line_after_a_healthy_run(read: Reader) -> None:
    found = read(start(10) + READY + STOP + "usage: vllm [-h]\nvllm: error: unrecognized arguments: --x\n")
    assert found.value("log.runs") == 2
    assert found.value("log.failures") == 1
    assert found.value("log.coverage") == "start-to-exit"
