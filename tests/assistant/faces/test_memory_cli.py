"""`memory` and `memory-explain` as people run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUN = "from assistant.faces.cli.main import main; main()"


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        input=given,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def test_an_answer_in_both_languages() -> None:
    english = run("memory", "Qwen/Qwen3-8B", "--gpu", "RTX 4090", "--max-model-len", "8192", "--vllm-version", "0.19.0")
    assert english.returncode == 0, english.stderr
    assert "It fits: Qwen/Qwen3-8B on 1 RTX 4090." in english.stdout and "█" in english.stdout
    chinese = run("memory", "Qwen/Qwen3-8B", "--gpu", "RTX 4090", "--max-model-len", "8192", "--lang", "zh")
    assert "放得下" in chinese.stdout and "weights" not in chinese.stdout
    assert max(len(line) for line in english.stdout.splitlines()) <= 110


def test_json_and_flags_as_vllm_spells_them() -> None:
    ran = run("memory", "Qwen/Qwen3-30B-A3B", "--gpu", "H100", "--tensor-parallel-size", "2", "--enable-expert-parallel", "--gpu-memory-utilization", "0.85",
              "--max-num-seqs", "64", "--kv-cache-dtype", "fp8", "--enforce-eager", "--max-model-len", "32K", "-o", "json")  # fmt: skip
    answer = json.loads(ran.stdout)
    assert answer["verdict"] == "fits" and answer["gpu_memory_utilization"] == 0.85 and answer["max_model_len"] == 32768
    assert answer["max_num_seqs"] == 64
    graphs = next(c for c in answer["components"] if c["name"] == "cuda_graphs")
    assert graphs["gib"]["value"] == 0
    low, value, high = (answer["available_kv_gib"][k] for k in ("low", "value", "high"))
    assert low < value < high


def test_what_would_make_it_fit_is_listed() -> None:
    ran = run("memory", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "H100", "-o", "markdown")
    assert "--tensor-parallel-size 4" in ran.stdout and ran.stdout.startswith("##")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["memory"], 2, "no model was given"),
        (["memory", "Qwen/Qwen3-8B", "--gpu", "H10"], 2, "No GPU is known as 'H10'"),
        (["memory", "Qwen/Qwen3-8B", "--tensor-parallel-size", "7"], 2, "does not divide the 32 attention heads"),
        (["memory", "Qwen/Qwen3-8B", "--max-model-len", "long"], 2, "32768, 32k"),
        (["memory", "Qwen/Qwen3-8B", "--gpu-memory-utilization", "9"], 2, "--gpu-memory-utilization 9.0"),
        (["memory", "Qwen/Qwen3-8B", "--quantization", "sixbit"], 2, "'sixbit' is no quantization"),
        (["memory", "nothing-such"], 2, "No model is known here"),
        (["memory", "/nowhere/config.json"], 3, "no such file"),
        (["memory", "--batch", "/nowhere.jsonl"], 3, "/nowhere.jsonl"),
        (["memory", "x", "--batch", "y"], 2, "not both"),
        (["memory", "Qwen/Qwen3-8B", "--gpu", "H100", "--plot", "x.gif"], 2, ".svg or .png"),
        (["memory", "Qwen/Qwen3-8B", "--plot", "x.svg"], 2, "--gpu"),
        (["memory-explain", "/nowhere.log"], 3, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], status: int, says: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == status and says in ran.stderr and len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    assert ran.stdout == ""


def test_batch_answers_each_line_in_order(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 128,
        "intermediate_size": 128,
    }
    rows = [
        {"id": "a", "ask": "weights", "config": config},
        {"id": "b", "ask": "weights", "config": {}},
        {"id": "c", "ask": "gib_for_tokens", "tokens": 16, "config": config},
    ]
    ran = run("memory", "--batch", "-", given="\n".join(json.dumps(row) for row in rows) + "\n\nbroken\n")
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [a["id"] for a in answers] == ["a", "b", "c", None]
    assert (
        answers[0]["weights_gib"] >= 0
        and answers[0]["error"] is None
        and "num_hidden_layers" in answers[1]["error"]
        and "not JSON" in answers[3]["error"]
    )


def test_pictures(tmp_path: Path) -> None:
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    for path in (svg, png):
        assert run("memory", "Qwen/Qwen3-8B", "--gpu", "H100", "--lang", "zh", "--plot", str(path)).returncode == 0
    assert "权重" in svg.read_text() and "<script" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_explaining_a_log_from_standard_input() -> None:
    log = (
        "(APIServer pid=1) INFO 11-02 10:00:01 [api_server.py:1896] vLLM API server version 0.12.0\n"
        "(APIServer pid=1) INFO 11-02 10:00:01 [utils.py:233] non-default args: {'model': 'Qwen/Qwen3-8B'}\n"
        "(EngineCore_DP0 pid=9) INFO 11-02 10:00:20 [gpu_model_runner.py:2653] Model loading took 15.2700 GiB and 4.1 seconds\n"
        "(EngineCore_DP0 pid=9) INFO 11-02 10:00:40 [gpu_worker.py:298] Available KV cache memory: 5.01 GiB\n"
    )
    ran = run("memory-explain", "-", "--gpu", "RTX 4090", given=log)
    assert ran.returncode == 0 and "stated by the log" in ran.stdout and "--gpu-memory-utilization 0.95" in ran.stdout
    assert json.loads(run("memory-explain", "-", "-o", "json", given=log).stdout)["available_gib"] == 5.01
    assert "没有显存数据" in run("memory-explain", "-", "--lang", "zh", given="hello\n").stdout
