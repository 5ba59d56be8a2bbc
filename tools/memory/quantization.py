"""How many bytes a quantized matrix takes, and which matrices a scheme leaves alone.

Sources: ``vllm/model_executor/layers/quantization`` (``create_weights`` of fp8, awq, gptq, compressed_tensors, modelopt,
mxfp4, bitsandbytes, gguf) and, for GGUF, the block sizes of ``gguf/constants.py`` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tools.memory.config import ConfigError, Model, dtype_bytes
from tools.memory.shapes import Role, Tensor, cdiv

_LINEAR: Final[frozenset[Role]] = frozenset(("attention", "mlp", "expert", "shared", "recurrent", "latent"))


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store matrices. ``bits`` a weight; ``group`` inputs share a scale of ``scale_bytes`` (0: one per
    output); ``zero_bits`` a group; ``block`` is the square of block-wise FP8 (0: none)."""

    name: str
    bits: float = 16
    group: int = 0
    scale_bytes: int = 0
    zero_bits: int = 0
    block: int = 0
    roles: frozenset[Role] = _LINEAR
    pad_inner: int = 1  # kernels round the inner size of an expert, and the hidden size, up to these
    pad_hidden: int = 1
    head_bits: float = 0  # GGUF quantizes embedding and head too

    def sizes(self, tensor: Tensor, element: int) -> tuple[int, ...]:
        """Bytes of each allocation of one tensor: weights, scales, zero points. ``element`` is that of plain ones."""
        if tensor.fixed_bytes:
            return (tensor.elements * tensor.fixed_bytes,)
        if self.head_bits and tensor.role in ("embedding", "head"):
            return (int(tensor.elements * self.head_bits / 8),)
        if tensor.role not in self.roles or self.bits >= 16:
            return (tensor.elements * element,)
        rows, columns = tensor.rows, tensor.columns
        if tensor.role == "expert" and self.pad_hidden > 1:
            inner, hidden = (columns, rows) if tensor.is_down else (rows // 2, columns)
            inner, hidden = _up(inner, self.pad_inner), _up(hidden, self.pad_hidden)
            rows, columns = (hidden, inner) if tensor.is_down else (2 * inner, hidden)
        weight = int(rows * columns * self.bits / 8) * tensor.copies
        if self.block:
            scales = cdiv(rows, self.block) * cdiv(columns, self.block) * self.scale_bytes
            return weight, scales * tensor.copies
        if self.group:
            groups = rows * cdiv(columns, self.group) * tensor.copies
            return weight, groups * self.scale_bytes, int(groups * self.zero_bits / 8)
        return weight, rows * self.scale_bytes * tensor.copies


def _up(size: int, unit: int) -> int:
    return cdiv(size, unit) * unit


PLAIN: Final = Scheme("none")
_FP8 = Scheme("fp8", 8, scale_bytes=4)
_FP8_BLOCK = Scheme("fp8 block", 8, scale_bytes=4, block=128)
_INT8 = Scheme("int8", 8, scale_bytes=4)
_W4 = Scheme("int4", 4, group=128, scale_bytes=2)
_AWQ = Scheme("awq", 4, group=128, scale_bytes=2, zero_bits=4)
_NVFP4 = Scheme("nvfp4", 4, group=16, scale_bytes=1)
_MXFP4 = Scheme("mxfp4", 4, group=32, scale_bytes=1)
#: bitsandbytes NF4 with nested statistics: one byte for 64 weights (bitsandbytes/functional.py, quantize_4bit).
_BNB4 = Scheme("bitsandbytes", 4, group=64, scale_bytes=1)

#: Bits a weight of the usual GGUF mixes: the bulk type's block size (gguf/constants.py GGML_QUANT_SIZES) averaged with
#: the better types that llama-quantize gives to some matrices (llama.cpp, tools/quantize/README.md, 8B table).
_GGUF_BITS: Final[Mapping[str, float]] = {
    "q2_k": 3.35, "q3_k_s": 3.5, "q3_k_m": 3.91, "q3_k_l": 4.27, "q4_0": 4.5, "q4_1": 5.0, "q4_k_s": 4.58, "q4_k_m": 4.85,
    "q5_0": 5.5, "q5_1": 6.0, "q5_k_s": 5.54, "q5_k_m": 5.69, "q6_k": 6.56, "q8_0": 8.5, "iq4_xs": 4.25, "iq4_nl": 4.5,
    "iq3_m": 3.66, "iq2_m": 2.7, "f16": 16.0, "bf16": 16.0,
}  # fmt: skip


def choose(name: str | None, model: Model, compute_capability: float = 9.0) -> Scheme:
    """The scheme that ``--quantization`` or the checkpoint asks for. Raises :class:`ConfigError` for an unknown one.

    ``name`` is free text as logs print it, for example ``compressed-tensors w4a16`` or ``fp8 (online)``; it counts
    before the configuration's own ``quantization_config``, except where that says more about the same method.
    """
    stated = model.quantization
    text = (name or "").strip().lower()
    if text in ("none", "null"):
        return PLAIN
    if not text and not stated:
        return PLAIN
    if stated and (
        not text
        or _method(stated) in text
        or text in _method(stated)
        or text in ("compressed-tensors", "modelopt", "auto")
    ):
        return _ignoring(_from_config(stated, model, compute_capability), stated)
    return _from_text(text, model, compute_capability)


def _method(stated: Mapping[str, Any]) -> str:
    value = stated.get("quant_method", "")
    if not isinstance(value, str):
        raise ConfigError(f"quant_method is {str(value)[:40]!r}; the name of a method was expected.")
    return value.lower()


def _number(value: Any, default: int, low: int, high: int, what: str) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{what} is {str(value)[:40]!r}; a whole number from {low} to {high} was expected.")
    return value


def _from_config(stated: Mapping[str, Any], model: Model, capability: float) -> Scheme:
    method = _method(stated)
    algorithm = str(stated.get("quant_algo", ""))[:40].lower()
    if method == "compressed-tensors":
        groups = stated.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                bits = _number(weights.get("num_bits"), 8, 1, 16, "num_bits")
                size = _number(weights.get("group_size"), 0, -1, 2**16, "group_size")
                is_float = weights.get("type") == "float"
                if is_float and bits == 4:
                    return _NVFP4 if size in (0, -1, 16) else _MXFP4
                if weights.get("strategy") == "block":
                    return _FP8_BLOCK
                if bits == 8:
                    return _FP8 if is_float else _INT8
                zero = bits if weights.get("symmetric") is False else 0
                return replace(_W4, bits=bits, group=max(size, 0) or 0, zero_bits=zero)
        return _FP8
    if method == "fp8" or algorithm.startswith("fp8"):
        return _FP8_BLOCK if stated.get("weight_block_size") else _FP8
    if method in ("gptq", "gptq_marlin", "awq", "awq_marlin", "auto-round", "autoround", "inc"):
        bits = _number(stated.get("bits", stated.get("w_bit")), 4, 1, 16, "bits")
        size = _number(stated.get("group_size", stated.get("q_group_size")), 128, -1, 2**16, "group_size")
        return replace(_AWQ, name=method, bits=bits, group=max(size, 0), zero_bits=bits)
    if method == "bitsandbytes":
        return _INT8 if stated.get("load_in_8bit") is True else _BNB4
    return _from_text(f"{method} {algorithm}".strip(), model, capability)


def _from_text(text: str, model: Model, capability: float) -> Scheme:
    if found := re.search(r"\b(i?q\d_[a-z0-9_]+|f16|bf16)\b", text) if "gguf" in text else None:
        bits = _GGUF_BITS.get(found.group(1))
        if bits is not None:
            return Scheme(found.group(1), bits, roles=_LINEAR, head_bits=max(bits, 6.56) if bits < 16 else 16)
    if "gguf" in text:
        return Scheme("gguf", _GGUF_BITS["q4_k_m"], roles=_LINEAR, head_bits=6.56)
    if "mxfp4" in text or (text in ("modelopt", "quark") and model.architecture.startswith("GptOss")):
        # layers/quantization/mxfp4.py rounds the sizes up for its kernels: Marlin and the Blackwell ones do, Triton does not.
        inner, hidden = (256, 256) if 10 <= capability < 11 else (1, 1) if 9 <= capability < 10 else (128, 256)
        roles: frozenset[Role] = frozenset(("expert",)) if model.architecture.startswith("GptOss") else _LINEAR
        return replace(_MXFP4, roles=roles, pad_inner=inner, pad_hidden=hidden)
    if "mxfp8" in text:
        return Scheme("mxfp8", 8, group=32, scale_bytes=1)
    if "nvfp4" in text or "fp4" in text:
        return _NVFP4
    if "bitsandbytes" in text or "bnb" in text:
        return _INT8 if "8bit" in text.replace("-", "").replace("_", "") else _BNB4
    if "fp8" in text or "ptpc" in text:
        if "online" in text or "dynamic" in text and "compressed" not in text:
            return replace(_FP8, name="fp8 online", roles=_LINEAR | {"tower"})
        # A checkpoint of DeepSeek's or Qwen's own making has blocks of 128 x 128; the difference is 0.03 %.
        return _FP8_BLOCK if text.startswith("fp8") and model.is_moe else _FP8
    bits = 8 if re.search(r"w8a16|8.?bit|int8|w8a8", text) else 4
    if re.search(r"w8a8|int8", text) and "w8a16" not in text:
        return _INT8
    if re.search(r"awq", text):
        return replace(_AWQ, bits=bits, zero_bits=bits)
    if re.search(r"gptq|auto.?round|autoround|inc\b|marlin|moe_wna16|rtn|hqq|torchao", text):
        return replace(_AWQ, name="gptq", bits=bits, zero_bits=0 if "w4a16" in text else bits)
    if re.search(r"w4a16|int4|w8a16|compressed.tensors|4.?bit|w4a8|quark|modelopt", text):
        return replace(_W4, bits=bits)
    raise ConfigError(
        f"{text[:60]!r} is no quantization this estimate knows; known are fp8, int8, awq, gptq, compressed-tensors, nvfp4, mxfp4, bitsandbytes and gguf."
    )


#: What a pattern of modules left in 16 bit speaks of.
_SPOKEN: Final[tuple[tuple[str, tuple[Role, ...]], ...]] = (
    ("linear_attn", ("recurrent",)), ("mamba", ("recurrent",)), ("mixer", ("recurrent",)),
    ("self_attn", ("attention", "latent")), ("attention", ("attention", "latent")),
    ("shared_expert", ("shared",)), ("experts", ("expert",)), ("visual", ()), ("vision", ()), ("gate", ()), ("lm_head", ()),
)  # fmt: skip


def _ignoring(scheme: Scheme, stated: Mapping[str, Any]) -> Scheme:
    """The scheme without the parts that the checkpoint lists as not quantized, where the list covers most layers."""
    listed: list[str] = []
    for key in ("ignore", "ignored_layers", "exclude_modules", "modules_to_not_convert"):
        value = stated.get(key)
        if isinstance(value, list):
            listed += [v for v in value[:20_000] if isinstance(v, str)]
    roles = set(scheme.roles)
    for word, spoken in _SPOKEN:
        matching = [v for v in listed if word in v and "mlp.gate" not in v]
        layers = {m.group(1) for v in matching if (m := re.search(r"layers\.(\d+)", v))}
        if spoken and matching and (len(layers) > 8 or any("*" in v or "re:" in v for v in matching)):
            roles -= set(spoken)
    return replace(scheme, roles=frozenset(roles))


def element_bytes(model: Model, dtype: str | None, scheme: Scheme) -> int:
    """Bytes of an unquantized element: ``--dtype``, else the checkpoint's type with float32 halved
    (``_get_and_verify_dtype`` in vllm/config/model.py: auto turns float32 into a 16 bit type)."""
    if dtype and dtype.lower() != "auto":
        return dtype_bytes(dtype)
    return min(2, dtype_bytes(model.dtype))
