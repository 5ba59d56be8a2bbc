"""What is read from the sources of a release, one small package for each generation of its argument machinery."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import releases

from knowledge.sync.arguments import read_arguments
from knowledge.sync.environment import read_environment
from knowledge.sync.messages import key_of, read_messages
from knowledge.sync.metrics import read_metrics
from knowledge.sync.release import read_release
from knowledge.sync.tree import SourceError, SourceTree


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> SourceTree:
    return SourceTree(releases.by_hand(tmp_path_factory.mktemp("hand")))


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> SourceTree:
    return SourceTree(releases.by_fields(tmp_path_factory.mktemp("fields")))


def test_arguments_added_by_hand(hand: SourceTree) -> None:
    found = read_arguments(hand)
    assert found["--model"] == {"kind": "str", "default": "facebook/opt-125m"}
    assert found["--tensor-parallel-size"] == {"kind": "int", "default": 1, "aliases": ["-tp"]}
    assert found["--gpu-memory-utilization"]["default"] == 0.9
    assert found["--load-format"] == {"kind": "choice", "default": "auto", "choices": ["auto", "pt"]}
    assert found["--quantization"]["choices"] == ["awq", "gptq"]
    assert found["--block-size"] == {"kind": "choice", "default": 16, "choices": [16, 32, 8]}
    assert found["--rope-scaling"] == {"kind": "json"}
    assert found["--enforce-eager"] == {"kind": "bool", "default": False}
    assert found["--enable-chunked-prefill"] == {"kind": "bool", "takes_literal_bool": True}
    assert found["--worker-use-ray"]["deprecated"] is True
    assert found["--worker-use-ray"]["instead"] == "--distributed-executor-backend"
    assert {"--host", "--api-key", "--disable-log-requests"} <= set(found)


def test_arguments_from_configuration_fields(fields: SourceTree) -> None:
    found = read_arguments(fields)
    assert found["--model"]["default"] == "Qwen/Qwen3-0.6B"
    assert found["--quantization"]["choices"] == ["awq", "fp8"]
    assert found["--quantization"]["open_choices"] is True
    assert found["--hf-token"]["kind"] == "optional-value"
    assert found["--runner"] == {"kind": "choice", "default": "auto", "choices": ["auto", "generate", "pooling"]}
    assert found["--kv-cache-dtype"]["choices"] == ["auto", "fp8"], "the parser itself removes one"
    assert found["--gpu-memory-utilization"]["aliases"] == ["--device-memory-utilization"]
    assert found["--gpu-memory-utilization"]["default"] == 0.92
    assert found["--enable-prefix-caching"] == {"kind": "bool", "no_form": "--no-enable-prefix-caching"}
    assert found["--kv-cache-memory-bytes"] == {"kind": "int", "accepts_human": True}
    assert found["--max-num-batched-tokens"]["default"] == 8192
    assert found["--capture-sizes"] == {"kind": "list", "element": "int"}
    assert found["--compilation-config"]["config"] == "CompilationConfig"
    assert found["--compilation-config"]["dotted"] is True
    assert found["--old-size"]["instead"] == "--max-num-batched-tokens"


def test_arguments_of_the_frontend_class(fields: SourceTree) -> None:
    found = read_arguments(fields)
    assert found["--port"] == {"kind": "int", "default": 8000}
    assert found["--uvicorn-log-level"]["choices"] == ["debug", "info"]
    assert found["--allowed-origins"]["kind"] == "json"
    assert found["--allowed-origins"]["default"] == ["*"]
    assert found["--middleware"]["repeated"] is True
    assert found["--lora-modules"]["kind"] == "list"
    assert found["--enable-auto-tool-choice"]["no_form"] == "--no-enable-auto-tool-choice"
    assert found["--api-server-count"]["aliases"] == ["-asc"]
    assert "--not-of-serve" not in found


def test_keys_of_json_arguments(tmp_path: Path) -> None:
    found = read_release(releases.by_fields(tmp_path))
    assert found.fields == {"CompilationConfig": {"fields": ["mode", "cudagraph_mode"]}}
    assert found.stated_version == "9.9.0"


def test_environment(fields: SourceTree) -> None:
    assert read_environment(fields) == {
        "VLLM_CACHE": {"default": "~/.cache/vllm"},
        "VLLM_TIMEOUT_S": {"default": 600},
        "VLLM_FAST": {"default": False},
        "VLLM_LEVEL": {"default": "info", "choices": ["debug", "info"]},
        "VLLM_PORT_RANGE": {"default": "declared"},
        "VLLM_UNSET": {},
        "VLLM_WORKERS": {},
    }


def test_metrics(fields: SourceTree) -> None:
    found = read_metrics(fields)
    base = ["model_name", "engine"]
    assert found["vllm:cache_usage"] == {"kind": "gauge", "engines": ["V1"], "meaning": "How full.", "labels": base}
    assert found["vllm:requests_total"]["labels"] == [*base, "reason"]
    assert found["vllm:requests_total"]["meaning"] == "All requests."
    assert found["vllm:gpu_cache_usage"]["hidden"] is True
    assert found["vllm:drafts_total"]["meaning"] == "Drafts."
    assert found["vllm:offload_bytes_total"]["labels"] == base
    assert len(found) == 46


def test_messages(fields: SourceTree) -> None:
    texts = read_messages(fields)
    found = {template.text: template.level for template in texts.templates if template.level != "text"}
    assert found["The cache holds {size} tokens."] == "INFO"
    assert found["The model {name} is loading slowly."] == "WARNING"
    assert found["There is no model called {name}; give another one."] == "exception:ValueError"
    assert texts.says("There is no model called {anything}; give another one.") is True
    assert texts.says("There is no model called {anything}; try another one.") is False
    assert texts.says("{a}: {b}") is None


def test_spellings_that_differ_only_in_what_is_inserted_are_one() -> None:
    assert key_of("KV cache: %d tokens (%.2f GiB)") == key_of("KV cache: {n} tokens ({size:.2f} GiB)")
    assert key_of("100%% of {{x}}") == "100% of {x}"


def test_a_folder_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no package vllm"):
        read_release(tmp_path)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    with pytest.raises(SourceError, match="Only 0 arguments"):
        read_release(tmp_path)


def test_nothing_of_the_release_is_run(tmp_path: Path) -> None:
    root = releases.by_fields(tmp_path)
    mark = tmp_path / "was-run"
    for path in (root / "vllm").rglob("*.py"):
        path.write_text(path.read_text() + f"\nopen({str(mark)!r}, 'w').close()\n")
    read_release(root)
    assert not mark.exists()


def test_sources_that_cannot_be_parsed_or_never_end_are_passed_over(tmp_path: Path) -> None:
    root = releases.by_fields(tmp_path)
    (root / "vllm" / "broken.py").write_text("def (:\n")
    (root / "vllm" / "deep.py").write_text("x = " + "(" * 3000 + ")" * 3000)
    (root / "vllm" / "circle_a.py").write_text("from vllm.circle_b import X\n")
    (root / "vllm" / "circle_b.py").write_text("from vllm.circle_a import X\n")
    (root / "vllm" / "self.py").write_text("A = B\nB = A\n'vllm:x' and Counter(name=A)\n")
    assert len(read_release(root).flags) > 40
