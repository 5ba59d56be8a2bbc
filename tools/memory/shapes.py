"""The weight tensors of one GPU: which matrices a layer has, how tensor parallelism cuts them, what they are for.

Follows the model definitions in ``vllm/model_executor/models`` and ``layers/linear.py``: queries, keys and values are
one tensor, and so are gate and up; key and value heads are repeated where there are fewer than GPUs; a mixture keeps
all experts of a layer in two tensors (``layers/fused_moe``); the vocabulary is padded to a multiple of 64
(``layers/vocab_parallel_embedding.py``, ``DEFAULT_VOCAB_PADDING_SIZE``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tools.memory.config import Model

#: What a tensor is for. Quantization schemes treat them differently.
Role = Literal[
    "attention", "mlp", "expert", "shared", "router", "embedding", "head", "norm", "recurrent", "latent", "tower"
]

VOCABULARY_PADDING = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """One allocation: ``rows`` outputs of ``columns`` inputs, ``copies`` times in one storage (the experts of a layer)."""

    role: Role
    rows: int
    columns: int
    copies: int = 1
    fixed_bytes: int = 0  # bytes per element where the model's type does not apply
    is_down: bool = False  # the matrix of an expert that leads back to the hidden size
    split_columns: int = 1  # how many ways the inputs were cut, for scales of groups

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.copies


def cdiv(a: int, b: int) -> int:
    """Division rounded up."""
    return -(-a // b)


def padded_vocabulary(vocab: int, extra: int = 0) -> int:
    """Rows of the embedding, with LoRA's own rows where there are some."""
    return cdiv(vocab + extra, VOCABULARY_PADDING) * VOCABULARY_PADDING


@dataclass(frozen=True, slots=True)
class Cut:
    """How a model is divided: tensor, expert (the whole group over which experts spread) and data parallel sizes."""

    tensor: int = 1
    experts: int = 1  # ways the experts themselves are spread (1: every GPU has a slice of all)
    experts_slice: int = 1  # ways each expert is cut


def layer(model: Model, index: int, cut: Cut) -> Iterator[Tensor]:
    """The tensors of one decoder layer on one GPU."""
    kind = model.kinds[index] if index < len(model.kinds) else "full"
    hidden = model.hidden
    yield Tensor("norm", 1, 2 * hidden)
    if (
        kind in ("full", "window", "chunked", "parallel")
        or kind == "none"
        and model.architecture.startswith(("Bert", "Roberta", "XLM"))
    ):
        yield from _attention(model, kind, cut)
    if kind in ("mamba", "parallel"):
        yield from _recurrent(model, cut)
    if model.encoder_layers:  # a decoder beside an encoder attends to it too
        yield from _attention(model, "full", cut)
    if _has_own_feed_forward(model, index):
        yield from _feed_forward(model, index, cut)


def _has_own_feed_forward(model: Model, index: int) -> bool:
    # Nemotron-H writes feed-forward layers as layers of their own; Mamba has none.
    if model.architecture.startswith("NemotronH"):
        return model.kinds[index] == "none"
    return not model.architecture.startswith(("Mamba", "FalconMamba"))


def _attention(model: Model, kind: str, cut: Cut) -> Iterator[Tensor]:
    tp, hidden = cut.tensor, model.hidden
    if model.is_mla:
        yield from _latent(model, cut)
        return
    head, kv_heads = model.head_dim, model.kv_heads
    if kind == "full" and model.global_head_dim:
        head, kv_heads = model.global_head_dim, model.global_kv_heads or kv_heads
    heads = cdiv(model.heads, tp)
    kv = max(1, cdiv(kv_heads, tp)) if kv_heads else 0
    queries = heads * head * (2 if model.gate_on_attention else 1)
    values = kv * (model.value_dim or head)
    rows = queries + kv * head + values
    yield Tensor("attention", rows, hidden)
    yield Tensor("attention", hidden, heads * (model.value_dim or head), split_columns=tp)
    if model.attention_bias != "none":
        yield Tensor("norm", 1, rows)
    if model.attention_bias == "all":
        yield Tensor("norm", 1, hidden)


def _latent(model: Model, cut: Cut) -> Iterator[Tensor]:
    """MLA (vllm/model_executor/models/deepseek_v2.py): the compressing matrices are on every GPU."""
    tp, hidden = cut.tensor, model.hidden
    heads = cdiv(model.heads, tp)
    nope, rope, value = model.nope_dim or model.head_dim, model.rope_dim, model.value_dim or model.head_dim
    if model.q_lora_rank:
        yield Tensor("latent", model.q_lora_rank + model.kv_lora_rank + rope, hidden)
        yield Tensor("attention", heads * (nope + rope), model.q_lora_rank)
    else:
        yield Tensor("latent", model.kv_lora_rank + rope, hidden)
        yield Tensor("attention", heads * (nope + rope), hidden)
    yield Tensor("attention", heads * (nope + value), model.kv_lora_rank)
    yield Tensor("attention", hidden, heads * value, split_columns=tp)
    if model.index_head_dim:
        heads_index = model.index_heads or 64
        yield Tensor("latent", heads_index * model.index_head_dim, model.q_lora_rank or hidden)
        yield Tensor("latent", model.index_head_dim + heads_index, hidden)


def absorbed(model: Model, cut: Cut) -> int:
    """Elements of the matrices that MLA derives from ``kv_b_proj`` after loading, and keeps beside it
    (``process_weights_after_loading`` in vllm/model_executor/layers/attention/mla_attention.py: W_UK_T and W_UV)."""
    heads = cdiv(model.heads, cut.tensor)
    return heads * ((model.nope_dim or model.head_dim) + (model.value_dim or model.head_dim)) * model.kv_lora_rank


def _recurrent(model: Model, cut: Cut) -> Iterator[Tensor]:
    mamba = model.mamba
    if mamba is None:
        return
    tp, hidden = cut.tensor, model.hidden
    if mamba.kind == "gdn":
        keys = mamba.key_heads * mamba.state
        yield Tensor("recurrent", cdiv(2 * keys + 2 * mamba.inner, tp), hidden)
        yield Tensor("router", cdiv(2 * mamba.heads, tp), hidden)
        yield Tensor("norm", cdiv(2 * keys + mamba.inner, tp), mamba.conv)
        yield Tensor("recurrent", hidden, cdiv(mamba.inner, tp), split_columns=tp)
    elif mamba.kind in ("kda", "lightning"):
        yield Tensor("recurrent", cdiv(3 * mamba.inner, tp), hidden)
        yield Tensor("recurrent", cdiv(mamba.inner, tp), hidden if mamba.kind == "lightning" else 2 * mamba.head_dim)
        yield Tensor("recurrent", hidden, cdiv(mamba.inner, tp), split_columns=tp)
    elif mamba.kind == "short_conv":
        yield Tensor("recurrent", cdiv(3 * hidden, tp), hidden)
        yield Tensor("recurrent", hidden, cdiv(hidden, tp), split_columns=tp)
        yield Tensor("norm", cdiv(hidden, tp), mamba.conv)
    elif mamba.kind == "mamba2":
        groups = cdiv(mamba.groups, tp) * tp if mamba.groups % tp else mamba.groups
        yield Tensor("recurrent", cdiv(2 * mamba.inner + 2 * groups * mamba.state + mamba.heads, tp), hidden)
        yield Tensor("norm", cdiv(mamba.inner + 2 * groups * mamba.state, tp), mamba.conv)
        yield Tensor("recurrent", hidden, cdiv(mamba.inner, tp), split_columns=tp)
    else:
        yield Tensor("recurrent", cdiv(2 * mamba.inner, tp), hidden)
        yield Tensor("recurrent", mamba.dt_rank + 2 * mamba.state, cdiv(mamba.inner, tp))
        yield Tensor("recurrent", cdiv(mamba.inner, tp), mamba.dt_rank)
        yield Tensor("norm", cdiv(mamba.inner, tp), mamba.state, fixed_bytes=4)
        yield Tensor("recurrent", hidden, cdiv(mamba.inner, tp), split_columns=tp)


def _feed_forward(model: Model, index: int, cut: Cut) -> Iterator[Tensor]:
    hidden, tp = model.hidden, cut.tensor
    up = 2 if model.gated else 1
    is_dense = model.dense[index] if index < len(model.dense) else True
    if is_dense or not model.is_moe or model.dense_beside_experts:
        width = cdiv(model.intermediate, tp)
        yield Tensor("mlp", up * width, hidden)
        yield Tensor("mlp", hidden, width, split_columns=tp)
        if model.attention_bias == "all":
            yield Tensor("norm", 1, width + hidden)
        if is_dense or not model.is_moe:
            return
    held = cdiv(model.experts, cut.experts)
    width = cdiv(model.expert_intermediate, cut.experts_slice)
    yield Tensor("expert", 2 * width if model.gated else width, hidden, held)
    yield Tensor("expert", hidden, width, held, is_down=True, split_columns=cut.experts_slice)
    yield Tensor("router", model.experts, hidden)
    if model.architecture.startswith("GptOss"):
        yield Tensor("norm", held, 2 * width + hidden)
    if model.shared_intermediate:
        shared = cdiv(model.shared_intermediate, tp)
        yield Tensor("shared", 2 * shared, hidden)
        yield Tensor("shared", hidden, shared, split_columns=tp)


def embedding(model: Model, cut: Cut, lora_extra: int = 0) -> Tensor:
    """The input embedding on one GPU."""
    return Tensor("embedding", cdiv(padded_vocabulary(model.vocab, lora_extra), cut.tensor), model.hidden)


def head(model: Model, cut: Cut, lora_extra: int = 0) -> Tensor:
    """The output matrix on one GPU."""
    return Tensor("head", cdiv(padded_vocabulary(model.vocab, lora_extra), cut.tensor), model.hidden)


def count(model: Model) -> int:
    """Parameters of the language model alone."""
    whole = Cut()
    total = sum(t.elements for i in range(model.layers) for t in layer(model, i, whole))
    total += model.vocab * model.hidden * (1 if model.tied else 2) + model.hidden
    if model.learned_positions:
        total += model.learned_positions * model.hidden
    return total
