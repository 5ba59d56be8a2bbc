"""From the fields of a configuration to a :class:`~tools.memory.config.Model`.

The rules follow the configuration classes of transformers and how vLLM reads them (``ModelConfig`` in
``vllm/config/model.py``, ``ModelArchConfigConvertorBase`` in later versions, and the model definitions). What a family
leaves out of its file is filled in with the default of its configuration class; the comment says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.memory.config import (
    _ALL_BIAS,
    _KNOWN,
    _MOST_LAYERS,
    _QKV_BIAS,
    _TWO_MATRICES,
    ConfigError,
    Fields,
    Mamba,
    Model,
    dtype_bytes,
    starts_with,
    text_part,
)

_KIND = {
    "full_attention": "full", "attention": "full", "global": "full", "sliding_attention": "window", "local": "window",
    "chunked_attention": "chunked", "linear_attention": "mamba", "mamba": "mamba", "recurrent": "mamba", "conv": "mamba",
    "hybrid": "parallel", "mlp": "none", "moe": "none", "sparse_attention": "full", "minimax_m3_sparse": "full",
    "deepseek_sparse_attention": "full", "linear": "mamba", "kda": "mamba",
}  # fmt: skip

#: Gemma 2 slides on even layers (Gemma2Config); Gemma 3 and Cohere 2 name a period; Exaone 4 likewise.
_WINDOW_PERIOD = {"Gemma2": 2, "Gemma3n": 5, "Gemma3": 6, "Cohere2": 4, "GptOss": 2, "Exaone4": 4, "Olmo3": 4}


def read(raw: Mapping[str, Any]) -> Model:
    """The model that this configuration describes. Raises :class:`ConfigError`."""
    inner = text_part(raw)
    fields = Fields(inner, raw)
    architecture = _architecture(raw, inner)
    encoder_layers = 0
    if architecture.startswith("Whisper") or raw.get("is_encoder_decoder") is True:
        encoder_layers = fields.whole(
            "encoder_layers", "num_encoder_layers", "num_layers", default=0, high=_MOST_LAYERS
        )
        layers = fields.whole("decoder_layers", "num_decoder_layers", "num_hidden_layers", low=1, high=_MOST_LAYERS)
    else:
        layers = fields.whole("num_hidden_layers", "n_layer", "n_layers", "num_layers", low=1, high=_MOST_LAYERS)
    hidden = fields.whole("hidden_size", "n_embd", "d_model", "dim", "model_dim", low=1, high=2**20)
    heads = fields.whole(
        "num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads", default=0, high=2**16
    )
    kv_heads = _kv_heads(fields, architecture, heads)
    if not heads and not architecture.startswith("Mamba"):
        raise ConfigError(
            "The configuration lacks 'num_attention_heads', which decides memory; give the whole config.json."
        )
    rope, nope = (
        fields.whole("qk_rope_head_dim", default=0, high=4096),
        fields.whole("qk_nope_head_dim", default=0, high=4096),
    )
    kv_lora = fields.whole("kv_lora_rank", default=0, high=2**16)
    head_dim = fields.whole("head_dim", "kv_channels", "attention_head_dim", default=0, high=2**14)
    if not head_dim:
        head_dim = nope + rope if kv_lora and nope else hidden // heads if heads else 0
    dtype = fields.text("torch_dtype", "dtype", default="bfloat16").removeprefix("torch.")
    dtype_bytes(dtype)
    experts = (
        fields.whole(
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "num_experts_per_layer",
            default=0,
            high=2**16,
        )
        if not isinstance(fields.get("num_experts"), list)
        else 0
    )
    intermediate = _intermediate(fields, architecture, hidden)
    kinds = _kinds(fields, architecture, layers)
    mamba = _mamba(fields, architecture, hidden) if {"mamba", "parallel"} & set(kinds) else None
    longest = fields.whole(
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
        "max_target_positions",
        "n_ctx",
        default=0,
        high=2**31,
    )
    expert_intermediate = (
        fields.whole("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", default=0, high=2**22)
        if not isinstance(fields.get("moe_intermediate_size"), list)
        else 0
    )
    if architecture.startswith("Llama4"):  # intermediate_size is that of an expert, and of the one that sees all tokens
        expert_intermediate = fields.whole("intermediate_size", low=1, high=2**22)
    shared = expert_intermediate if architecture.startswith("Llama4") else _shared(fields, expert_intermediate)
    if experts and not expert_intermediate:
        expert_intermediate = intermediate
    quantization = fields.part("quantization_config", "compression_config")
    tower = raw.get("vision_config") if isinstance(raw.get("vision_config"), dict) else None
    return Model(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=fields.whole("vocab_size", "padded_vocab_size", low=0, default=0, high=2**26),
        tied=_tied(fields, raw, architecture),
        dtype=dtype,
        kinds=kinds,
        dense=_dense(fields, architecture, layers, experts),
        intermediate=intermediate,
        gated=architecture not in _TWO_MATRICES,
        value_dim=fields.whole("v_head_dim", default=0, high=2**14),
        experts=experts,
        experts_per_token=fields.whole("num_experts_per_tok", "moe_topk", "top_k_experts", default=0, high=2**12) if not isinstance(fields.get("num_experts_per_tok", "moe_topk"), list) else 0,
        expert_intermediate=expert_intermediate,
        shared_intermediate=shared,
        dense_beside_experts=architecture.startswith("Gemma4"),
        window=_window(fields) if "window" in kinds else 0,
        chunk=fields.whole("attention_chunk_size", default=0, high=2**31) if "chunked" in kinds else 0,
        global_head_dim=fields.whole("global_head_dim", default=0, high=2**14),
        global_kv_heads=fields.whole("num_global_key_value_heads", default=0, high=2**16),
        kv_lora_rank=kv_lora,
        q_lora_rank=fields.whole("q_lora_rank", default=0, high=2**16),
        rope_dim=rope,
        nope_dim=nope,
        index_head_dim=fields.whole("index_head_dim", default=0, high=2**14),
        index_heads=fields.whole("index_n_heads", default=0, high=2**12),
        shared_kv_layers=fields.whole("num_kv_shared_layers", default=0, high=layers),
        attention_bias=_bias(fields, architecture),
        gate_on_attention=architecture.startswith(("Qwen3Next", "Qwen3_5")) or fields.get("attn_output_gate") is True,
        learned_positions=(longest or (1024 if architecture.startswith("GPT") else 2048)) + (2 if architecture.startswith("OPT") else 0) if architecture.startswith(("OPT", "GPT2", "GPTBigCode", "Bert", "Roberta", "Whisper")) else 0,
        longest=longest,
        rotary_dim=_rotary(fields, architecture, rope or head_dim),
        mamba=mamba,
        encoder_layers=encoder_layers,
        cross_length=fields.whole("max_source_positions", default=1500 if encoder_layers else 0, high=2**24),
        mtp_layers=fields.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", default=0, high=64),
        deepstack_levels=3 if architecture.startswith(("Qwen3VL", "Qwen3_VL")) else 0,
        is_multimodal=bool(tower) or _is_multimodal(architecture, raw),
        vision={k: v for k, v in (tower or {}).items() if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**24},
        quantization=quantization,
        kv_cache_scheme_fp8=_kv_fp8(quantization),
        known=starts_with(architecture, _KNOWN) or architecture in _TWO_MATRICES,
    )  # fmt: skip


def _architecture(raw: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    for source in (raw, inner):
        names = source.get("architectures")
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(names) > 16:
            raise ConfigError("architectures is no list of names; the configuration's first field usually is one.")
        if names:
            return str(names[0])[:120]
    kind = raw.get("model_type") or inner.get("model_type")
    return f"{str(kind)[:60].title().replace('_', '')}ForCausalLM" if isinstance(kind, str) and kind else "unknown"


def _kv_heads(fields: Fields, architecture: str, heads: int) -> int:
    """``ModelConfig.get_total_num_kv_heads``."""
    if architecture.startswith(("Falcon", "RW")) and not architecture.startswith(("FalconH1", "FalconMamba")):
        if fields.get("new_decoder_architecture") is True:
            return fields.whole("num_kv_heads", "n_head_kv", default=heads, low=1, high=2**16)
        return 1 if fields.flag("multi_query", default=True) else heads
    if architecture.startswith("GPTBigCode"):
        return 1 if fields.flag("multi_query", default=True) else heads
    value = fields.get("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "n_kv_heads")
    if isinstance(value, list):
        rows = [v for v in value if isinstance(v, int) and not isinstance(v, bool) and 0 < v <= 2**16]
        if len(rows) != len(value) or not rows:
            raise ConfigError("num_key_value_heads is a list that holds something else than positive numbers.")
        return max(rows)
    found = fields.whole(
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "multi_query_group_num",
        "n_kv_heads",
        default=heads,
        high=2**16,
    )
    return found or heads


def _intermediate(fields: Fields, architecture: str, hidden: int) -> int:
    value = fields.get("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size")
    if isinstance(value, list):  # one size for each layer: their mean keeps the sum right
        rows = [v for v in value if isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 2**24]
        if len(rows) != len(value) or not rows:
            raise ConfigError("intermediate_size is a list that holds something else than sizes.")
        return sum(rows) // len(rows)
    if architecture.startswith("Llama4"):
        return fields.whole("intermediate_size_mlp", "intermediate_size", default=4 * hidden, high=2**24)
    return fields.whole("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", default=4 * hidden, high=2**24)  # fmt: skip


def _shared(fields: Fields, expert: int) -> int:
    """Width of the experts that see every token (0 where there are none)."""
    stated = fields.get(
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"
    )
    if stated is not None and not isinstance(stated, list):
        return fields.whole(
            "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_intermediate_size",
            high=2**22,
        )
    value = fields.get("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
    count = (
        fields.whole(
            "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert", default=0, high=256
        )
        if not isinstance(value, list)
        else 0
    )
    return count * expert


def _dense(fields: Fields, architecture: str, layers: int, experts: int) -> tuple[bool, ...]:
    if experts <= 1:
        return (True,) * layers
    first = fields.get("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
    first = max(0, min(first, layers)) if isinstance(first, int) and not isinstance(first, bool) else 0
    step = fields.get("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq", "expert_layer_period")
    step = step if isinstance(step, int) and not isinstance(step, bool) and 0 < step <= layers else 1
    offset = fields.whole("expert_layer_offset", default=step - 1, high=_MOST_LAYERS)
    only = {v for v in fields.list_of("mlp_only_layers") if isinstance(v, int)}
    frequency = fields.get("moe_layer_freq")
    if isinstance(frequency, list) and len(frequency) == layers:
        return tuple(not v for v in frequency)
    return tuple(i < first or i in only or (step > 1 and i % step != offset % step) for i in range(layers))


def _kinds(fields: Fields, architecture: str, layers: int) -> tuple[str, ...]:
    """What each layer keeps for a request."""
    if architecture.startswith(("Bert", "Roberta", "XLMRoberta", "NomicBert", "ModernBert")):
        return ("none",) * layers
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        letters = {"M": "mamba", "*": "full", "-": "none", "E": "none"}
        if len(pattern) > _MOST_LAYERS or not set(pattern) <= set(letters):
            raise ConfigError(f"hybrid_override_pattern is {pattern[:40]!r}; letters out of M * - E were expected.")
        return tuple(letters[c] for c in pattern)
    if architecture.startswith("FalconH1"):
        return ("parallel",) * layers
    named = fields.list_of("layer_types", "layers_block_type")
    if named:
        if not all(isinstance(v, str) for v in named):
            raise ConfigError("layer_types holds something else than names of layer types.")
        unknown = sorted({v for v in named if _kind(v) is None})
        if unknown:
            raise ConfigError(f"layer_types names {unknown[0][:40]!r}; known are {', '.join(sorted(_KIND))}.")
        if len(named) < layers:
            raise ConfigError(f"layer_types names {len(named)} layers, num_hidden_layers says {layers}.")
        kinds = tuple(_kind(v) or "full" for v in named[:layers])
        return _without_window(fields, architecture, kinds)
    numbers = fields.get("attn_type_list")
    if isinstance(numbers, list) and len(numbers) >= layers:  # MiniMax Text 01: 1 is softmax attention
        return tuple("full" if v == 1 else "mamba" for v in numbers[:layers])
    linear = fields.part("linear_attn_config") if isinstance(fields.get("linear_attn_config"), dict) else {}
    if isinstance(linear.get("kda_layers"), list):  # counted from 1 (KimiLinearConfig)
        kda = {v for v in linear["kda_layers"] if isinstance(v, int)}
        return tuple("mamba" if i + 1 in kda else "full" for i in range(layers))
    if architecture.startswith(("Mamba", "FalconMamba")):
        return ("mamba",) * layers
    interval = fields.whole(
        "full_attention_interval",
        default=4 if architecture.startswith(("Qwen3Next", "Qwen3_5")) else 0,
        high=_MOST_LAYERS,
    )
    if interval:
        return tuple("full" if (i + 1) % interval == 0 else "mamba" for i in range(layers))
    if architecture.startswith("Jamba"):
        period, offset = (
            fields.whole("attn_layer_period", default=8, low=1, high=999),
            fields.whole("attn_layer_offset", default=4, high=999),
        )
        return tuple("full" if i % period == offset else "mamba" for i in range(layers))
    attention = fields.get("attn_layer_indices", "full_attn_idxs")
    if isinstance(attention, list):  # Bamba; LFM2
        return tuple("full" if i in attention else "mamba" for i in range(layers))
    if architecture.startswith("Llama4"):
        without = fields.get("no_rope_layers")
        if isinstance(without, list) and len(without) == layers:
            return tuple("full" if not v else "chunked" for v in without)
        return tuple("full" if (i + 1) % 4 == 0 else "chunked" for i in range(layers))
    if not _window_given(fields):
        return ("full",) * layers
    period = (
        fields.whole("sliding_window_pattern", "_sliding_window_pattern", default=0, high=_MOST_LAYERS)
        if not isinstance(fields.get("sliding_window_pattern"), str)
        else len(str(fields.get("sliding_window_pattern")))
    )
    if not period:
        period = next((v for name, v in _WINDOW_PERIOD.items() if architecture.startswith(name)), 0)
    if period:
        kinds = tuple("full" if (i + 1) % period == 0 else "window" for i in range(layers))
        return _without_window(fields, architecture, kinds)
    return _without_window(fields, architecture, ("window",) * layers)


def _kind(name: str) -> str | None:
    """The kind that a name of a layer type means; names that are new but tell their family are taken by it."""
    if name in _KIND:
        return _KIND[name]
    low = name.lower()[:60]
    if any(word in low for word in ("mamba", "linear", "recurrent", "delta", "ssm", "conv")):
        return "mamba"
    if "sliding" in low or "window" in low:
        return "window"
    return "full" if "attention" in low or "attn" in low else None


def _window_given(fields: Fields) -> bool:
    value = fields.get("sliding_window", "sliding_window_size", "window_size")
    return (
        isinstance(value, (int, list))
        and not isinstance(value, bool)
        and bool(value)
        and fields.get("use_sliding_window") is not False
    )


def _without_window(fields: Fields, architecture: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Layers that slide over a window which is not given, or switched off, attend to everything."""
    if _window_given(fields):
        return kinds
    return tuple("full" if kind == "window" else kind for kind in kinds)


def _window(fields: Fields) -> int:
    value = fields.get("sliding_window", "sliding_window_size", "window_size")
    if isinstance(value, list):
        numbers = [v for v in value if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 2**31]
        return max(numbers, default=0)
    return fields.whole("sliding_window", "sliding_window_size", "window_size", default=0, high=2**31)


def _mamba(fields: Fields, architecture: str, hidden: int) -> Mamba | None:
    if fields.get("linear_num_value_heads") is not None:
        heads = fields.whole("linear_num_value_heads", low=1, high=2**12)
        value = fields.whole("linear_value_head_dim", default=128, low=1, high=2**12)
        # Qwen3.5 states mamba_ssm_dtype float32 in its configurations; Qwen3-Next follows the model's type.
        stated = fields.text("mamba_ssm_dtype", default="float32" if architecture.startswith("Qwen3_5") else "")
        return Mamba(
            "gdn", heads * value, fields.whole("linear_key_head_dim", default=128, low=1, high=2**12), heads, value,
            conv=fields.whole("linear_conv_kernel_dim", default=4, low=1, high=64),
            key_heads=fields.whole("linear_num_key_heads", default=heads, low=1, high=2**12),
            float32_state=stated == "float32",
        )  # fmt: skip
    linear = fields.get("linear_attn_config")
    if isinstance(linear, dict):
        part = Fields(linear)
        heads, size = part.whole("num_heads", low=1, high=2**12), part.whole("head_dim", low=1, high=2**12)
        return Mamba(
            "kda",
            heads * size,
            size,
            heads,
            size,
            conv=part.whole("short_conv_kernel_size", default=4, low=1, high=64),
            key_heads=heads,
            float32_state=True,
        )
    if architecture.startswith("MiniMax"):
        heads = fields.whole("num_attention_heads", low=1, high=2**12)
        size = fields.whole("head_dim", default=hidden // heads, low=1, high=2**12)
        return Mamba("lightning", heads * size, size, heads, size, conv=1, float32_state=True)
    if architecture.startswith("Lfm2"):
        return Mamba("short_conv", hidden, 0, 1, hidden, conv=fields.whole("conv_L_cache", default=3, low=1, high=64))
    inner = fields.whole("mamba_d_ssm", "mamba_intermediate_size", default=0, high=2**22)
    state = fields.whole("mamba_d_state", "ssm_state_size", "state_size", default=16, low=1, high=2**14)
    conv = fields.whole("mamba_d_conv", "conv_kernel", default=4, low=1, high=64)
    expand = fields.get("mamba_expand", "expand")
    factor = (
        float(expand) if isinstance(expand, (int, float)) and not isinstance(expand, bool) and 0 < expand <= 64 else 2.0
    )
    heads = fields.whole("mamba_n_heads", "mamba_num_heads", default=0, high=2**14)
    size = (
        fields.whole("mamba_d_head", "mamba_head_dim", default=0, high=2**14)
        if not isinstance(fields.get("mamba_d_head"), str)
        else 0
    )
    if not inner:
        inner = heads * size if heads and size else int(factor * hidden)
    if heads or size or fields.get("n_groups", "mamba_n_groups") is not None:
        size = size or (inner // heads if heads else 64)
        return Mamba(
            "mamba2",
            inner,
            state,
            heads or inner // size,
            size,
            fields.whole("mamba_n_groups", "n_groups", default=1, low=1, high=2**10),
            conv,
            float32_state=fields.get("mamba_ssm_cache_dtype") == "float32",
        )
    rank = fields.get("mamba_dt_rank", "time_step_rank")
    rank = rank if isinstance(rank, int) and not isinstance(rank, bool) and 0 < rank < 2**20 else -(-hidden // 16)
    return Mamba("mamba1", inner, state, 1, inner, 1, conv, dt_rank=rank)


def _rotary(fields: Fields, architecture: str, head: int) -> int:
    """Width of the table of cosines and sines (``vllm/model_executor/layers/rotary_embedding``)."""
    if architecture.startswith(("OPT", "GPT2", "GPTBigCode", "Bloom", "MPT", "Mpt", "Bert", "Roberta", "Whisper")):
        return 0
    share = fields.get("partial_rotary_factor", "rotary_pct")
    if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1:
        return int(head * share)
    return head // 4 if architecture.startswith(("Qwen3Next", "Qwen3_5")) else head


def _bias(fields: Fields, architecture: str) -> str:
    if architecture in _ALL_BIAS:
        return "all"
    if architecture.startswith(tuple(_QKV_BIAS)) or fields.get("attention_bias") is True:
        return "qkv"
    return "none"


def _tied(fields: Fields, raw: Mapping[str, Any], architecture: str) -> bool:
    # The default of PretrainedConfig is true; families that say otherwise write it into their file.
    value = fields.get("tie_word_embeddings", "tie_embeddings")
    if value is None:
        return architecture.startswith(("Gemma", "GPT2", "OPT", "Cohere", "Bloom", "GPTBigCode", "Whisper", "Phi4MM"))
    if not isinstance(value, bool):
        raise ConfigError(f"tie_word_embeddings is {str(value)[:40]!r}; true or false was expected.")
    return value


def _is_multimodal(architecture: str, raw: Mapping[str, Any]) -> bool:
    # A decoder alone is called ForCausalLM; what conditions it is a tower, or an encoder that is counted by itself.
    if architecture.endswith("ForConditionalGeneration") and not architecture.startswith(
        ("Whisper", "Bart", "T5", "MBart")
    ):
        return True
    return any(k in raw for k in ("vision_config", "audio_config", "thinker_config")) or any(
        part in architecture for part in ("VL", "Vl", "Omni", "Llava", "InternVL", "4v", "Audio", "Vision", "Pixtral", "Gemma3ForConditional", "Gemma4ForConditional", "Llama4", "MiniCPMV", "Molmo", "Idefics", "PaliGemma", "Phi3V", "Phi4MM", "Ultravox", "Ovis")
    )  # fmt: skip


def _kv_fp8(quantization: Mapping[str, Any]) -> bool:
    """Whether the checkpoint itself asks for an FP8 KV cache (compressed-tensors, ModelOpt)."""
    scheme = quantization.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return scheme.get("num_bits") == 8
    return str(quantization.get("kv_cache_quant_algo", "")).upper() == "FP8"
