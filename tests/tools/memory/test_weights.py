"""Weights on one GPU: the allocator, division, quantization."""

from __future__ import annotations

from typing import Any

import pytest

from tools.memory import architecture, quantization, weights
from tools.memory.config import ConfigError
from tools.memory.weights import GIB, MIB, Division, Extras


def on(
    config: dict[str, Any], division: Division | None = None, name: str | None = None, stage: int = 0, **extras: Any
) -> weights.Weights:
    model = architecture.read(config)
    scheme = quantization.choose(name, model)
    return weights.on_stage(model, division or Division(), scheme, 2, stage, Extras(**extras))


@pytest.mark.parametrize(
    ("size", "counted"),
    [
        (0, 0),
        (1, 512),
        (513, 1024),
        (8 * MIB, 8 * MIB),  # two in a segment of 20 MiB leave 4 MiB, which the next one takes
        (19 * MIB // 2 + MIB // 4, 10 * MIB),  # two leave half a MiB, which stays with them
        (129 * MIB + MIB // 2, 130 * MIB),  # rounded up to 2 MiB, and the rest is too small to split off
        (24 * MIB + MIB // 2, 24 * MIB + MIB // 2),  # 1.5 MiB are left and are split off
    ],
)  # fmt: skip
def test_the_allocator_keeps_small_remainders(size: int, counted: int) -> None:
    assert weights.allocated(size) == counted


def test_dense_model_takes_two_bytes_a_parameter_and_the_rotary_table(llama: dict[str, Any]) -> None:
    found = on(llama)
    rotary = 131072 * 128 * 2
    assert found.total == pytest.approx(8_030_261_248 * 2 + rotary, rel=0.0005)


def test_tensor_parallel_halves_what_is_cut_and_pipeline_takes_layers(llama: dict[str, Any]) -> None:
    whole, half = on(llama), on(llama, Division(tensor=2))
    assert half.total == pytest.approx(whole.total / 2, rel=0.005)
    first, last = on(llama, Division(pipeline=2)), on(llama, Division(pipeline=2), stage=1)
    assert "head" not in first.parts and "embedding" not in last.parts
    assert first.parts["mlp"] == last.parts["mlp"] == whole.parts["mlp"] // 2


@pytest.mark.parametrize(
    ("version", "expected"),
    [((0, 6, 6, 0), [30, 31]), ((0, 8, 0, 0), [31, 30])],
)
def test_uneven_stages_follow_the_version(version: tuple[int, int, int, int], expected: list[int]) -> None:
    assert [b - a for a, b in weights.stages(61, 2, version)] == expected
    assert weights.stages(61, 4, version)[-1][1] == 61


def test_heads_below_the_number_of_gpus_are_copied(llama: dict[str, Any]) -> None:
    eight, sixteen = (on(llama, Division(tensor=n)).parts["attention"] for n in (8, 16))
    # Queries and output halve, keys and values do not.
    rows8, rows16 = (4 + 2) * 128 + 4 * 128, (2 + 2) * 128 + 2 * 128
    assert sixteen / eight == pytest.approx(rows16 / rows8, rel=0.01)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp8", 8), ("int8 w8a8", 8), ("awq", 4 + 20 / 128), ("gptq 4bit", 4 + 20 / 128), ("compressed-tensors w4a16", 4 + 16 / 128),
        ("modelopt nvfp4", 4.5), ("mxfp4", 4.25), ("bitsandbytes", 4 + 8 / 64),
    ],
)  # fmt: skip
def test_quantized_layers_take_their_bits_and_the_rest_stays(llama: dict[str, Any], name: str, bits: float) -> None:
    plain, small = on(llama), on(llama, name=name)
    assert small.parts["mlp"] / plain.parts["mlp"] == pytest.approx(bits / 16, rel=0.01)
    assert small.parts["embedding"] == plain.parts["embedding"]


def test_gguf_quantizes_embedding_and_head_too(llama: dict[str, Any]) -> None:
    plain, small = on(llama), on(llama, name="gguf q4_k_m")
    assert small.parts["head"] < 0.5 * plain.parts["head"]


def test_a_checkpoints_own_list_leaves_attention_alone(llama: dict[str, Any]) -> None:
    llama["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
        "ignore": ["lm_head", "re:.*self_attn.*"],
    }
    plain = on({k: v for k, v in llama.items() if k != "quantization_config"})
    small = on(llama)
    assert small.parts["attention"] == plain.parts["attention"]
    assert small.parts["mlp"] < 0.52 * plain.parts["mlp"]


def test_experts_are_spread_or_cut_but_take_the_same(llama: dict[str, Any]) -> None:
    llama |= {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
    cut, spread = on(llama, Division(tensor=4)), on(llama, Division(tensor=4, expert=True))
    assert spread.parts["experts"] == pytest.approx(cut.parts["experts"], rel=0.01)
    assert cut.parts["experts"] == pytest.approx(32 * 8 * 3 * 4096 * 14336 * 2 / 4, rel=0.01)


def test_lora_buffers_grow_with_rank_and_number(llama: dict[str, Any]) -> None:
    one, two = on(llama, lora_rank=16, max_loras=1), on(llama, lora_rank=64, max_loras=4)
    assert one.parts["lora"] > 0
    assert two.parts["lora"] == 16 * one.parts["lora"]


def test_an_unknown_method_is_refused_with_what_is_known(llama: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'sixbit'.*known are fp8"):
        on(llama, name="sixbit")


def test_an_unknown_architecture_says_how_little_it_knows(llama: dict[str, Any]) -> None:
    llama["architectures"] = ["ZebraForCausalLM"]
    found = on(llama)
    assert found.uncertain > 0.1 * found.total
    assert on(llama, total_params=9_000_000_000).total == pytest.approx(18e9, rel=0.01)


def test_mla_keeps_its_absorbed_matrices() -> None:
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 1000,
        "intermediate_size": 2048, "kv_lora_rank": 512, "q_lora_rank": 256, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip
    new, old = on(config, version=(0, 19, 0, 0)), on(config, version=(0, 7, 0, 0))
    assert new.parts["attention"] - old.parts["attention"] == 4 * 16 * 256 * 512 * 2
    assert new.total < GIB
