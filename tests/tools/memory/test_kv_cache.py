"""The KV cache's layout, by arithmetic that can be followed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tools.memory import architecture, kv_cache, releases
from tools.memory.config import ConfigError
from tools.memory.kv_cache import Asked
from tools.memory.weights import Division

GIB = 2**30
GEMMA = {
    "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 30, "hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "intermediate_size": 8192, "vocab_size": 1000, "sliding_window": 1024, "sliding_window_pattern": 3,
}  # fmt: skip
HYBRID = {
    "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "intermediate_size": 5120, "vocab_size": 1000, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
MLA = {
    "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 10, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 1000,
    "intermediate_size": 2048, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
}  # fmt: skip


def lay(
    config: dict[str, Any], version: str = "0.19.0", tp: int = 1, pp: int = 1, stage: int = 0, **asked: Any
) -> kv_cache.Layout:
    return kv_cache.lay_out(architecture.read(config), Division(tp, pp), Asked(**asked), releases.read(version), stage)


def test_one_kind_of_layer(llama: dict[str, Any]) -> None:
    layout = lay(llama)
    assert layout.block_bytes == 16 * 131072  # 128 KiB a token
    blocks = layout.blocks_in(10 * GIB)
    assert layout.printed_tokens(blocks, 8192) == 10 * GIB // (16 * 131072) * 16
    assert layout.bytes_for(131072) == 16 * GIB


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_heads_are_cut_until_they_are_copied(llama: dict[str, Any], tp: int, heads: int) -> None:
    assert lay(llama, tp=tp).block_bytes == 32 * 2 * 16 * heads * 128 * 2


@pytest.mark.parametrize(
    ("dtype", "per_head"),
    [
        ("auto", 512),
        ("fp8", 256),
        ("fp8_e5m2", 256),
        ("int8_per_token_head", 264),
        ("int4_per_token_head", 136),
        ("nvfp4", 144),
    ],
)
def test_cache_types(llama: dict[str, Any], dtype: str, per_head: int) -> None:
    assert lay(llama, kv_cache_dtype=dtype).block_bytes == 32 * 16 * 8 * per_head


def test_a_checkpoint_can_ask_for_an_fp8_cache(llama: dict[str, Any]) -> None:
    llama["quantization_config"] = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    assert lay(llama).block_bytes == 16 * 131072 // 2


def test_windows_share_blocks_in_groups() -> None:
    layout = lay(GEMMA, max_num_batched_tokens=2048)
    # 10 full and 20 sliding layers: groups of 10, three of them, 10 pages a block
    assert len(layout.groups) == 3
    assert layout.block_bytes == 10 * 2 * 16 * 4 * 256 * 2
    assert layout.blocks_for(32768) == 2048 + 2 * ((1023 + 2048 + 15) // 16 + 1)
    assert layout.printed_tokens(3000, 32768) == 1000 * 16
    assert layout.concurrency(3000, 32768) == pytest.approx(3000 / (2048 + 2 * 193))


def test_without_the_hybrid_manager_windows_cost_as_much_as_everything() -> None:
    layout = lay(GEMMA, hybrid_manager=False)
    assert len(layout.groups) == 1 and layout.block_bytes == 30 * 2 * 16 * 4 * 256 * 2
    assert lay(GEMMA, version="0.8.5").block_bytes == layout.block_bytes


def test_newer_versions_print_tokens_that_follow_concurrency() -> None:
    layout = lay(GEMMA, version="0.21.0", max_num_batched_tokens=2048)
    assert layout.printed_tokens(3000, 32768) == int(3000 / layout.blocks_for(32768) * 32768)


def test_hybrid_blocks_grow_until_a_state_fits() -> None:
    layout = lay(HYBRID, version="0.11.0", tp=2)
    state = 4096 * 3 * 2 + 16 * 128 * 128 * 2
    assert 1024 * 544 >= state > 1024 * (544 - 16)
    assert layout.smallest_block == 544
    assert len(layout.groups) == 4 and layout.block_bytes == 12 * 544 * 1024


def test_states_are_counted_by_request_and_twice_with_prefix_caching() -> None:
    plain = lay(HYBRID, version="0.21.0", prefix_caching=False)
    cached = lay(HYBRID, version="0.21.0", prefix_caching=True)
    assert cached.blocks_for(100_000) - plain.blocks_for(100_000) == 3
    assert lay(HYBRID, version="0.27.0").blocks_for(100_000) == cached.blocks_for(100_000)  # on by default there
    drafted = lay(HYBRID, version="0.21.0", prefix_caching=False, speculative_tokens=2)
    # The history of the convolution is longer too, so the block may be.
    assert drafted.blocks_for(1000) - plain.blocks_for(1000) == 6


def test_mla_keeps_one_vector_that_no_gpu_shares() -> None:
    one, eight = lay(MLA), lay(MLA, tp=8)
    assert one.block_bytes == eight.block_bytes == 10 * 64 * 576 * 2
    assert lay(MLA, kv_cache_dtype="fp8_ds_mla").block_bytes == 10 * 64 * 656
    assert lay(MLA, version="0.7.2").block_bytes == 10 * 16 * 1280  # rounded up to 256 bytes there
    spread = lay(MLA, tp=8, decode_context=8)
    assert spread.bytes_for(64_000) * 8 == one.bytes_for(64_000)
    assert spread.printed_tokens(100, 64_000) == 8 * one.printed_tokens(100, 64_000)


def test_the_indexer_of_sparse_attention_takes_its_own() -> None:
    layout = lay(
        {**MLA, "architectures": ["DeepseekV32ForCausalLM"], "index_head_dim": 128, "index_n_heads": 64},
        kv_cache_dtype="fp8",
    )
    assert layout.block_bytes == 10 * 64 * (656 + 132)


def test_a_stage_holds_its_layers_only(llama: dict[str, Any]) -> None:
    llama["num_hidden_layers"] = 30
    assert [lay(llama, pp=4, stage=s).block_bytes // (16 * 4096) for s in range(4)] == [7, 8, 8, 7]


def test_draft_layers_take_cache_on_the_last_stage(llama: dict[str, Any]) -> None:
    assert lay(llama, draft_layers=1).block_bytes * 32 == lay(llama).block_bytes * 33


def test_layers_that_share_their_cache_have_none_of_their_own() -> None:
    shared = {**GEMMA, "num_kv_shared_layers": 10}
    assert lay(shared).groups[0].layers * len(lay(shared).groups) >= 20
    assert lay(shared, hybrid_manager=False).block_bytes == 20 * 2 * 16 * 4 * 256 * 2


def test_different_head_sizes_meet_at_the_largest_page() -> None:
    config = {
        **GEMMA,
        "architectures": ["Gemma4ForConditionalGeneration"],
        "global_head_dim": 512,
        "num_global_key_value_heads": 1,
    }
    layout = lay(config)
    pages = {g.page for g in layout.groups}
    assert pages == {2 * 16 * 4 * 256 * 2}
    assert {g.kind: g.block for g in layout.groups} == {"full": 32, "window": 16}


def test_the_longest_context_is_the_last_that_fits(llama: dict[str, Any]) -> None:
    layout = lay(llama)
    longest = layout.longest(5 * GIB, 131072)
    assert layout.bytes_for(longest) <= 5 * GIB < layout.bytes_for(longest + 1)
    assert layout.longest(1000, 131072) == 0
    # The null block is kept back since 0.29.
    assert lay(llama, version="0.30.0").longest(5 * GIB, 131072) == longest - 16


def test_an_encoder_has_no_cache() -> None:
    with pytest.raises(ConfigError, match="keeps no KV cache"):
        lay(
            {
                "architectures": ["BertModel"],
                "num_hidden_layers": 2,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "vocab_size": 100,
            }
        )


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.19.2rc1.dev8", (0, 19, 2, 0)),
        ("0.5.x", (0, 5, 0, 0)),
        ("0.1.dev7 (0.19 main)", (0, 19, 0, 0)),
        ("0.1.dev7", releases.NEWEST),
        (None, releases.NEWEST),
    ],
)
def test_versions_as_logs_print_them(text: str | None, version: releases.Version) -> None:
    assert releases.read(text) == version
