"""The numbers of memory fixes, from a log to the commands that are shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from knowledge.catalog import load

STARTED = """\
(APIServer pid=1) INFO 11-02 10:00:01 [api_server.py:1896] vLLM API server version 0.12.0
(APIServer pid=1) INFO 11-02 10:00:01 [utils.py:233] non-default args: {{'model': '{model}', 'max_model_len': 40960, 'gpu_memory_utilization': 0.9}}
(EngineCore_DP0 pid=9) INFO 11-02 10:00:20 [gpu_model_runner.py:2653] Model loading took 15.2683 GiB and 4.1 seconds
(EngineCore_DP0 pid=9) DEBUG 11-02 10:00:38 [gpu_worker.py:280] Free memory on device (23.10/23.64 GiB) on startup. Desired GPU memory utilization is (0.9, 21.28 GiB). Actual usage is 15.27 GiB for weight, 0.90 GiB for peak activation, 0.11 GiB for non-torch memory, and 0.0 GiB for CUDAGraph memory.
(EngineCore_DP0 pid=9) INFO 11-02 10:00:40 [gpu_worker.py:298] Available KV cache memory: 4.95 GiB
(EngineCore_DP0 pid=9) ERROR 11-02 10:00:40 [core.py:708] ValueError: To serve at least one request with the models's max seq len (40960), (5.62 GiB KV cache is needed, which is larger than the available KV cache memory (4.95 GiB). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
"""


def commands(model: str) -> dict[str, str]:
    case, _ = read_case(load(), text=STARTED.format(model=model))
    diagnosis = Engine(load()).diagnose(case)
    assert diagnosis.causes[0].id == "memory/kv-cache-below-max-model-len"
    return {fix.flags[0]: fix.command or "" for fix in diagnosis.causes[0].fixes if fix.flags}


def value(command: str, flag: str) -> float:
    words = command.replace("=", " ").split()
    return float(words[words.index(flag) + 1])


def test_a_known_model_gets_numbers_that_do_it() -> None:
    found = commands("Qwen/Qwen3-8B")
    # 36 layers of 8 heads of 128, keys and values, 2 bytes: 147,456 bytes a token
    longest = value(found["--max-model-len"], "--max-model-len")
    assert 4.95 * 2**30 / 147456 - 512 < longest <= 4.95 * 2**30 / 147456
    share = value(found["--gpu-memory-utilization"], "--gpu-memory-utilization")
    assert 0.9 + (5.62 - 4.95) / 23.64 <= share <= 0.94
    assert value(found["--tensor-parallel-size"], "--tensor-parallel-size") == 2


def test_an_unknown_model_gets_no_made_up_numbers() -> None:
    found = commands("/srv/models/ours")
    assert "--max-model-len" in found  # the fix is named, and its number only where the log itself gives one
    if found["--tensor-parallel-size"]:
        assert value(found["--tensor-parallel-size"], "--tensor-parallel-size") == 2


@pytest.mark.parametrize("arguments", [["logs", "--help"], ["ask", "--help"]])
def test_diagnosing_without_memory_trouble_imports_no_estimate(arguments: list[str]) -> None:
    code = f"import sys; sys.argv[1:] = {json.dumps(arguments)}\nfrom assistant.faces.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\nprint([m for m in sys.modules if m.startswith('tools.memory')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip().endswith("[]")
