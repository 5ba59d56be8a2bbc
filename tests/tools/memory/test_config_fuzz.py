"""Configurations that are wrong, hostile or absurd: a sentence or an answer, never anything else, and quickly."""

from __future__ import annotations

import copy
import json
import random
import time
from typing import Any

import pytest

from knowledge import known_models
from tools.memory import architecture, batch, config
from tools.memory.config import ConfigError

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**9, 2**63, 10**30, -(10**30), 1.5, 1e30, -0.0, "", "8", "x" * 100_000, [], [1, 2], ["a"] * 3, [[[]]],
    {}, {"a": 1}, {"quant_method": 7}, ["full_attention"] * 32, ["sliding_attention", 5], "\u202e\x1b[31m", [None] * 50, {"weights": []},
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("nonsense", "not JSON"),
        ("[1]", "JSON list"),
        ('"x"', "JSON str"),
        ('{"hidden_size": NaN}', "NaN"),
        ('{"hidden_size": -Infinity}', "Infinity"),
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 100_000, "too deeply"),
        ("{" + " " * config.MOST_BYTES + "}", "at most"),
        ('{"hidden_size": ' + "9" * 6000 + "}", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_no_configuration_at_all(text: str | bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.parse(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": None}, "lacks 'num_hidden_layers'"),
        ({"num_hidden_layers": -4}, "num_hidden_layers is -4; a number from 1"),
        ({"num_hidden_layers": 1e30}, "num_hidden_layers is 1e\\+30"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'; a whole number"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"architectures": "LlamaForCausalLM"}, "no list of names"),
        ({"torch_dtype": "float13"}, "no data type"),
        ({"layer_types": ["full_attention"]}, "names 1 layers"),
        ({"layer_types": ["warp"] * 32}, "names 'warp'"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"quantization_config": 5}, "an object was expected"),
        ({"quantization_config": {"quant_method": "gptq", "bits": -3}}, "bits is '-3'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(llama: dict[str, Any], change: dict[str, Any], says: str) -> None:
    answer = batch.answer_line(json.dumps({"ask": "weights", "config": llama | change}))
    assert answer["error"] is not None
    import re

    assert re.search(says, answer["error"])


def _nasty(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(NASTY))


def _mutated(source: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    changed = json.loads(json.dumps(source))
    for _ in range(chance.randint(1, 4)):
        key = chance.choice(
            [
                *changed,
                "layer_types",
                "sliding_window",
                "quantization_config",
                "text_config",
                "hybrid_override_pattern",
                "linear_attn_config",
                "vision_config",
                "expert_layer_period",
                "mamba_d_state",
            ]
        )
        action = chance.random()
        if action < 0.2:
            changed.pop(key, None)
        elif action < 0.8:
            changed[key] = _nasty(chance)
        elif isinstance(changed.get(key), dict) and changed[key]:
            changed[key][chance.choice(list(changed[key]))] = _nasty(chance)
        else:
            changed[key] = chance.randint(-(2**40), 2**40)
    return changed


def test_mutated_configurations_end_in_an_answer_or_a_sentence(fuzz_seconds: float) -> None:
    chance = random.Random(20261121)
    models = known_models.all_models()
    asks = ("weights", "tokens_from_available", "gib_for_tokens", "tokens_end_to_end", "available_end_to_end", None)
    answered = refused = 0
    end = time.monotonic() + fuzz_seconds
    while time.monotonic() < end:
        row: dict[str, Any] = {
            "id": 1, "ask": chance.choice(asks), "config": _mutated(dict(chance.choice(models).config), chance), "gpu": chance.choice(("H100", "RTX 4090", None)),
            "tensor_parallel_size": chance.choice((1, 2, 8, 1024)), "pipeline_parallel_size": chance.choice((1, 1, 2, 7)),
            "vllm_version": chance.choice(("0.6.4", "0.8.5", "0.11.0", "0.19.0", "0.33.0", "rubbish", None)), "tokens": 1000, "available_kv_gib": 3.5,
            "quantization": chance.choice((None, None, "fp8", "awq", "gguf q4_k_m", "mxfp4", "???")), "max_model_len": chance.choice((None, 1, 4096, 2**31)),
        }  # fmt: skip
        if chance.random() < 0.2:
            row[chance.choice(list(row))] = _nasty(chance)
        began = time.monotonic()
        answer = batch.answer_line(json.dumps(row))
        assert time.monotonic() - began < 2, row
        if answer["error"] is None:
            answered += 1
            for name, value in answer.items():
                if isinstance(value, float):
                    assert value == value and abs(value) < 1e18, (name, value, row)
        else:
            refused += 1
            assert 20 < len(answer["error"]) < 1500 and "\x1b" not in answer["error"], answer
    assert answered > 20 and refused > 20


def test_every_known_model_reads_in_every_version() -> None:
    for known in known_models.all_models():
        architecture.read(known.config)
        for version in ("0.5.5", "0.7.2", "0.9.0", "0.10.2", "0.14.0", "0.20.2", "0.25.1", "0.33.0"):
            answer = batch.answer_line(
                json.dumps(
                    {
                        "config": dict(known.config),
                        "gpu": "H200",
                        "vllm_version": version,
                        "tensor_parallel_size": 4 if known.config["num_attention_heads"] % 4 == 0 else 1,
                    }
                )
            )
            assert answer["error"] is None, (known.model, version, answer)
