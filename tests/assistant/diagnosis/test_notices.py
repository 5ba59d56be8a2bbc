"""A question about a harmless line is no incident, what measurably changed is one, and neighbours' failures are theirs."""

from __future__ import annotations

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from knowledge.catalog import load
from knowledge.quoted import around

ENGINE = Engine(load())
START = """\
(APIServer pid=1) INFO 05-30 05:00:00 [api_server.py:1990] vLLM API server version 0.11.1
(EngineCore_DP0 pid=20) INFO 05-30 05:00:09 [core.py:93] Initializing a V1 LLM engine (v0.11.1) with config: model='m'
{line}
(EngineCore_DP0 pid=20) INFO 05-30 05:00:50 [gpu_model_runner.py:4800] Graph capturing finished in 9 secs, took 0.11 GiB
(APIServer pid=1) INFO:     Application startup complete.
(APIServer pid=1) INFO:     10.0.0.7:1023 - "POST /v1/chat/completions HTTP/1.1" 200 OK"""


def verdict(text: str) -> str:
    return ENGINE.diagnose(read_case(ENGINE.catalog, text=text)[0]).verdict


SGLANG = """\
[2025-08-21 10:12:44 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py", line 2542, in run_scheduler_process
    scheduler = Scheduler(server_args, port_args, gpu_id, tp_rank, dp_rank)
  File "/sgl-workspace/sglang/python/sglang/srt/model_loader/loader.py", line 471, in load_model
ValueError: Quantization method w8a8_fp8 is not supported for the current GPU. Minimum capability: 80. Current capability: 75."""


def test_a_message_of_vllm_that_another_engine_prints_is_the_other_ones() -> None:
    """Other engines began with code of vLLM's; only what bears vLLM's name anywhere is vLLM's trouble."""
    assert verdict(SGLANG) == "unknown"
    assert verdict(SGLANG.replace("/sgl-workspace/sglang/python/sglang/srt", "/usr/lib/python3/vllm")) == "cause"
    assert verdict(f"vllm serve with sglang's kernels beside it\n{SGLANG}") == "cause"


@pytest.mark.parametrize(
    "line",
    [
        "Sleep mode is not supported, so it fails over to the plain allocator.",
        "xgrammar does not support regex guided decoding. Falling back to use outlines instead.",
        "If out-of-memory error occurs during cudagraph capture, consider decreasing `gpu_memory_utilization`",
        "Failed to get the IP address, using 0.0.0.0 by default.",
        "We must use the `spawn` multiprocessing start method.",
    ],
)
def test_what_a_notice_says_is_no_complaint(line: str) -> None:
    assert verdict(
        f'Everything works and requests are answered, but I see this at start: "{line}" Can I ignore it?'
    ) == ("healthy")
    assert verdict(f"服务一切正常，请求都成功，启动时有一行「{line}」，可以忽略吗？") == "healthy"


@pytest.mark.parametrize(
    "words",
    [
        "Everything works, but the very first request after each restart takes 40 seconds. Is that normal?",
        "All works, requests are fine, but prefix cache hit rate stays 0.0% with identical prompts. Is this expected?",
        "It works fine in general, only 6 tokens/s for each stream on a 70B awq. Is that normal?",
        'It works, "Default chat template is used here" is printed, but then it crashes after an hour. Can I ignore it?',
        "服务能用，就是每个流只有6 token/s，正常吗",
    ],
)
def test_what_can_be_measured_is_a_complaint(words: str) -> None:
    assert verdict(words) != "healthy"


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) WARNING 05-30 05:00:20 [envs.py:17] Unknown vLLM environment variable detected: VLLM_FOO",
        "(APIServer pid=1) WARNING 05-30 05:00:20 [config.py:5] `rope_scaling`'s factor field must be a float >= 1, got 4",
        "[W530 05:00:20.000000000 ProcessGroupNCCL.cpp:4561] [PG ID 0 PG GUID 0 Rank 1]  using GPU 1 to perform barrier as "
        "devices used by this process are currently unknown. This can potentially cause a hang",
    ],
)
def test_a_start_that_went_through_survived_its_warnings(line: str) -> None:
    assert verdict(START.format(line=line)) == "healthy"


def test_an_error_before_readiness_is_not_survived() -> None:
    line = "(EngineCore_DP0 pid=20) ERROR 05-30 05:00:20 [core.py:7] torch.OutOfMemoryError: CUDA out of memory."
    assert verdict(START.format(line=line)) != "healthy"


@pytest.mark.parametrize(
    "words",
    [
        "redis.exceptions.ConnectionError: Error 111 connecting to redis:6379. Connection refused.",
        "npm ERR! ERESOLVE unable to resolve dependency tree",
        "Milvus 查询超时，大模型部分只占 300ms",
        "ssh: connect to host gpu-box port 22: Connection refused",
    ],
)
def test_what_neighbours_print_is_theirs(words: str) -> None:
    assert verdict(words) == "unknown"


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            "docker build with numpy 2.3: ImportError: Numba needs NumPy 2.2 or less. Got NumPy 2.3.",
            "install/dependency-conflict",
        ),
        ("celery workers get timeouts: 200 requests wait, running 64 of max_num_seqs 64", "performance/queue-buildup"),
        ("kafka 消费者超时，因为模型首字要等 30 秒，prompt 有 8 万 token", "performance/slow-first-token"),
        ("LoRA rank 128 is greater than max_lora_rank 64 since the jenkins job builds adapters", "engine/lora"),
    ],
)
def test_a_neighbour_named_beside_a_failure_hides_nothing(words: str, cause: str) -> None:
    assert ENGINE.diagnose(read_case(ENGINE.catalog, text=words)[0]).causes[0].id == cause
    assert verdict(words) == "cause"


def test_only_lines_count_as_quoted() -> None:
    assert around('it says "falling back to use outlines" here') == "it says  ...  here"
    assert around('set "fp8" and "auto"') == 'set "fp8" and "auto"'
