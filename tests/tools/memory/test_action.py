"""The action as MCP and HTTP call it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tools import registry
from tools.memory import action as declared
from tools.registry import ActionError, InputError


def call(**arguments: Any) -> declared.MemoryEstimate:
    result = asyncio.run(registry.get("estimate_memory").call(arguments))
    assert isinstance(result, declared.MemoryEstimate)
    return result


def test_a_model_by_name_or_by_its_configuration(llama: dict[str, Any]) -> None:
    named = call(
        model="meta-llama/Llama-3.1-8B-Instruct", gpu="H100", vllm_version="0.21.0", arguments={"max_num_seqs": 64}
    )
    given = call(config=llama, gpu="H100", vllm_version="0.21.0", arguments={"max_num_seqs": 64})
    assert named.verdict == given.verdict == "fits" and named.max_num_seqs == 64
    assert named.weights_gib == given.weights_gib
    assert given.available_kv_gib is not None and given.available_kv_gib.low < given.available_kv_gib.value
    parts = {c.name: c.gib.value for c in given.components if c.counted or c.name == "left_free"}
    assert sum(parts.values()) == pytest.approx(given.gpu_total_gib, abs=0.02)


def test_it_only_reads_and_its_definition_is_small() -> None:
    found = registry.get("estimate_memory")
    assert found.effect == "reads"
    assert len(json.dumps(found.input_schema())) < 2000
    assert found.validate({"model": "x"})
    with pytest.raises(InputError, match="no_such"):
        found.validate({"no_such": 1})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "Neither 'model' nor 'config'"),
        ({"model": "/etc/hostname"}, "neither a file nor"),
        ({"model": "some/unknown-model"}, "No model is known here"),
        ({"model": "Qwen/Qwen3-8B", "arguments": {"max_num_seq": 3}}, "max_num_seq is no argument"),
        ({"model": "Qwen/Qwen3-8B", "arguments": {"max_num_seqs": -3}}, "max_num_seqs is -3"),
        ({"config": {"hidden_size": 1e30}}, "num_hidden_layers"),
        ({"model": "Qwen/Qwen3-8B", "gpu": "ZX81"}, "No GPU is known as 'ZX81'"),
    ],
)
def test_a_remote_caller_gets_sentences_and_no_files_of_this_machine(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ActionError, match=says):
        call(**arguments)
