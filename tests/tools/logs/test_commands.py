"""Arguments, environment and versions that a person or a deployment file states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Reader = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "I run: `vllm serve Qwen/Qwen3-8B --tensor-parallel-size 2 --enforce-eager --no-enable-prefix-caching` and wait.",
            {
                "argument.model": "Qwen/Qwen3-8B",
                "argument.tensor_parallel_size": 2,
                "argument.enforce_eager": True,
                "argument.enable_prefix_caching": False,
            },
        ),
        (
            "NCCL_DEBUG=INFO CUDA_VISIBLE_DEVICES=0,1 python -m vllm.entrypoints.openai.api_server \\\n"
            "    --model /srv/m \\\n    -tp 2 --gpu-memory-utilization=0.85\n",
            {
                "environment.NCCL_DEBUG": "INFO",
                "environment.CUDA_VISIBLE_DEVICES": "0,1",
                "argument.model": "/srv/m",
                "argument.tensor_parallel_size": 2,
                "argument.gpu_memory_utilization": 0.85,
            },
        ),
        (
            "docker run --gpus all --shm-size=64m -e VLLM_USE_V1=0 -e HF_TOKEN=abc vllm/vllm-openai:v0.8.5 --model m/x --max-model-len 4096",
            {
                "host.shm_bytes": 64 << 20,
                "environment.VLLM_USE_V1": "0",
                "environment.HF_TOKEN": "given",
                "server.version": "0.8.5",
                "argument.max_model_len": 4096,
            },
        ),
        (
            'spec:\n  containers:\n  - args:\n    - --model=m/x\n    - --max-num-seqs\n    - "16"\n    env:\n'
            '    - name: NCCL_P2P_DISABLE\n      value: "1"\n',
            {"argument.model": "m/x", "argument.max_num_seqs": 16, "environment.NCCL_P2P_DISABLE": "1"},
        ),
        (
            'args: ["--model", "m/x", "--quantization", "awq"]',
            {"argument.model": "m/x", "argument.quantization": "awq"},
        ),
        (
            'llm = LLM(model="m/x", tensor_parallel_size=4,\n          trust_remote_code=True)\n',
            {"argument.model": "m/x", "argument.tensor_parallel_size": 4, "argument.trust_remote_code": True},
        ),
        ("vLLM version 0.9.1 on two cards", {"server.version": "0.9.1"}),
        ("pip list: vllm==0.10.2", {"server.version": "0.10.2"}),
        ("Filesystem Size Used Avail Use% Mounted on\nshm  64M  0  64M  0% /dev/shm", {"host.shm_bytes": 64 << 20}),
    ],
)
def test_what_a_text_states(read: Reader, text: str, expected: dict[str, Any]) -> None:
    found = read(text, pasted=True)
    assert {name: found.value(name) for name in expected} == expected


def test_the_banner_outranks_the_command(read: Reader) -> None:
    text = (
        "vllm serve m/x --max-model-len 1024\n"
        "(APIServer pid=1) INFO 06-10 21:00:00 [utils.py:1] non-default args: {'model': 'm/y', 'max_model_len': 2048, "
        "'compilation_config': CompilationConfig(level=3)}\n"
    )
    found = read(text)
    assert found.value("argument.max_model_len") == 2048
    assert found.value("server.model") == "m/y"


def test_a_program_line_is_no_command(read: Reader) -> None:
    found = read(
        "(APIServer pid=1) INFO 06-10 21:00:00 [a.py:1] Restart vllm serve with --enable-scale-out to enable them.\n"
    )
    assert not found.all("server.command")


def test_prose_is_what_a_person_wrote(read: Reader) -> None:
    text = (
        "Hello, my server stops.\n```\n(EngineCore pid=2) ERROR 06-10 21:32:18 [core.py:1] boom\n"
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\nRuntimeError: odd\n```\n'
        "我用两张卡。Any idea?\n"
    )
    found = read(text, pasted=True)
    assert found.reading.prose == "Hello, my server stops.\n我用两张卡。Any idea?"
    assert found.reading.reading.coverage[0].pasted
    assert not found.reading.reading.coverage[0].would_show
