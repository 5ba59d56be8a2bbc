"""GiB of weights on one GPU, as "Model loading took" prints them.

The figure vLLM prints is what PyTorch's allocator holds (``DeviceMemoryProfiler``, vllm/utils/mem_utils.py), which is
more than the sum of the tensors: an allocation above 1 MiB keeps a remainder of up to 1 MiB of its segment
(``CUDACachingAllocator.cpp``: kMinLargeAlloc 10 MiB, kRoundLarge 2 MiB, kLargeBuffer 20 MiB, kSmallSize 1 MiB). Tables
and buffers that a model allocates while it is built are in the figure too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tools.memory import shapes
from tools.memory.config import Model
from tools.memory.quantization import Scheme
from tools.memory.shapes import Cut, Tensor, cdiv

MIB = 2**20
GIB = 2**30


@lru_cache(maxsize=4096)
def allocated(size: int) -> int:
    """Bytes that PyTorch's caching allocator counts for a tensor of ``size`` bytes."""
    if size <= 0:
        return 0
    size = cdiv(size, 512) * 512
    if size < MIB:
        return size
    if size < 10 * MIB:
        held = 20 * MIB // size
        left = 20 * MIB - held * size
        return size + (left // held if left <= MIB else 0)
    left = cdiv(size, 2 * MIB) * 2 * MIB - size
    return size + (left if left <= MIB else 0)


@dataclass(frozen=True, slots=True)
class Division:
    """How many GPUs, divided how. All sizes are at least 1; experts spread over ``tensor * data`` with ``expert``."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False

    def cut(self) -> Cut:
        if self.expert:
            return Cut(self.tensor, self.tensor * self.data, 1)
        # Without expert parallelism the experts of a data parallel group are cut over all of its GPUs too
        # (FusedMoEParallelConfig.make in vllm/model_executor/layers/fused_moe/config.py).
        return Cut(self.tensor, 1, self.tensor * self.data)


def stages(layers: int, pipeline: int, version: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """First and last-plus-one layer of each stage (``get_pp_indices``, vllm/distributed/utils.py): until 0.6 the last
    stage took the rest; since 0.7.0 the rest goes to the stages before the last, from the back."""
    each, rest = divmod(layers, pipeline)
    sizes = [each] * pipeline
    if rest and version < (0, 7, 0, 0):
        sizes[-1] += rest
    else:
        for i in range(2, rest + 2):
            sizes[-i if i <= pipeline else 0] += 1
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes on one GPU of one pipeline stage. ``parts`` are what it consists of."""

    total: int
    parts: Mapping[str, int]
    uncertain: int = 0  # bytes that rest on an assumption


@dataclass(frozen=True, slots=True)
class Extras:
    """What else is allocated while the model is built."""

    total_params: int | None = None
    max_model_len: int = 0
    max_num_batched_tokens: int = 0
    lora_rank: int = 0
    max_loras: int = 0
    lora_extra_vocab: int = 0
    lora_targets: tuple[str, ...] = ()
    version: tuple[int, int, int, int] = (99, 0, 0, 0)
    text_only: bool = False


def on_stage(model: Model, division: Division, scheme: Scheme, element: int, stage: int, extras: Extras) -> Weights:
    """The weights on each GPU of pipeline stage ``stage``."""
    cut = division.cut()
    bounds = stages(model.layers, division.pipeline, extras.version)
    first, last = bounds[stage]
    parts: dict[str, int] = {}

    def add(name: str, tensor: Tensor, times: int = 1) -> None:
        parts[name] = parts.get(name, 0) + sum(map(allocated, scheme.sizes(tensor, element))) * times

    # Layers of one kind are alike: each kind is counted once.
    kinds: dict[tuple[str, bool], int] = {}
    examples: dict[tuple[str, bool], int] = {}
    for index in range(first, last):
        key = (
            model.kinds[index] if index < len(model.kinds) else "full",
            model.dense[index] if index < len(model.dense) else True,
        )
        kinds[key] = kinds.get(key, 0) + 1
        examples.setdefault(key, index)
    for key, times in kinds.items():
        for tensor in shapes.layer(model, examples[key], cut):
            add(_NAMES.get(tensor.role, "layers"), tensor, times)
    attention_layers = sum(n for (kind, _), n in kinds.items() if kind in ("full", "window", "chunked"))
    if model.is_mla and extras.version >= (0, 7, 1, 0):
        parts["attention"] = parts.get("attention", 0) + attention_layers * _mla_copies(
            model, cut, element, scheme, extras.version
        )
    if stage == 0 or (model.tied and stage == division.pipeline - 1):
        add("embedding", shapes.embedding(model, cut, extras.lora_extra_vocab))
    if stage == division.pipeline - 1 and not model.tied:
        add("head", shapes.head(model, cut, extras.lora_extra_vocab))
    if model.learned_positions and stage == 0:
        add("embedding", Tensor("norm", model.learned_positions, model.hidden))
    if model.encoder_layers and stage == 0:
        whole = _encoder_layer(model, cut)
        for tensor in whole:
            add("tower", tensor, model.encoder_layers)
    uncertain = 0
    if stage == 0 and model.is_multimodal and not extras.text_only and not model.encoder_layers:
        tower, guessed = _tower(model, cut, scheme, element, extras.total_params)
        parts["tower"] = parts.get("tower", 0) + tower
        uncertain += guessed
    elif not model.known and extras.total_params:
        # An architecture nobody counted here: the stated number of parameters decides, cut evenly.
        missing = extras.total_params - shapes.count(model)
        parts["other"] = max(-sum(parts.values()) // 2, int(missing * element / division.tensor / division.pipeline))
        uncertain += abs(parts["other"]) + sum(parts.values()) // 20
    elif not model.known:
        uncertain += sum(parts.values()) // 8
    parts["tables"] = _tables(model, element, extras)
    if extras.lora_rank:
        parts["lora"] = _lora(model, cut, element, extras, first, last)
    return Weights(sum(parts.values()), {k: v for k, v in parts.items() if v}, uncertain)


_NAMES = {
    "attention": "attention", "latent": "attention", "mlp": "mlp", "shared": "experts", "expert": "experts", "router": "experts",
    "recurrent": "recurrent", "norm": "norms",
}  # fmt: skip


def _mla_copies(model: Model, cut: Cut, element: int, scheme: Scheme, version: tuple[int, int, int, int]) -> int:
    """W_UK and W_UV in the model's type. 0.7.1 to 0.7.3 multiplied them into the matrices around them instead
    (VLLM_MLA_PERFORM_MATRIX_ABSORPTION), in FP8 where the checkpoint was FP8."""
    heads = cdiv(model.heads, cut.tensor)
    if version < (0, 8, 0, 0):
        inputs = model.q_lora_rank or model.hidden
        elements = heads * model.kv_lora_rank * (inputs + model.hidden) + inputs * heads * model.rope_dim
        return elements * (1 if scheme.bits == 8 else element)
    return shapes.absorbed(model, cut) * element


def _encoder_layer(model: Model, cut: Cut) -> list[Tensor]:
    """Tensors of one encoder layer of the same width."""
    heads = cdiv(model.heads, cut.tensor) * model.head_dim
    width = cdiv(model.intermediate, cut.tensor)
    return [Tensor("attention", 3 * heads, model.hidden), Tensor("attention", model.hidden, heads),
            Tensor("mlp", width, model.hidden), Tensor("mlp", model.hidden, width)]  # fmt: skip


def _tower(model: Model, cut: Cut, scheme: Scheme, element: int, total_params: int | None) -> tuple[int, int]:
    """Bytes of the towers and how many of them are a guess. Their linear layers are cut by tensor parallelism."""
    if total_params:
        parameters = max(0, total_params - shapes.count(model))
        known = True
    else:
        parameters, known = tower_parameters(model), bool(model.vision)
    size = parameters * (scheme.bits / 8 if "tower" in scheme.roles else element)
    bytes_ = int(size / cut.tensor)
    return bytes_, bytes_ // (20 if total_params else 4 if known else 1)


def tower_parameters(model: Model) -> int:
    """Parameters of a vision transformer from its own configuration, with the projection into the language model."""
    v = model.vision
    width = v.get("hidden_size") or v.get("embed_dim") or v.get("width") or 0
    depth = v.get("num_hidden_layers") or v.get("depth") or v.get("layers") or 0
    if not width or not depth:
        # Towers of served models have 0.3 to 0.7 billion parameters (SigLIP So400m, CLIP-L, Qwen2.5-VL).
        return 500_000_000
    if v.get("embed_dim") and v.get("hidden_size") and v["hidden_size"] == model.hidden:
        width = v["embed_dim"]  # Qwen2-VL: hidden_size is that of the language model
    inner = v.get("intermediate_size") or int(width * v.get("mlp_ratio", 4))
    merge = (v.get("spatial_merge_size") or 1) ** 2 * width
    out = v.get("out_hidden_size") or model.hidden
    merger = merge * merge + merge * out
    patch = 3 * (v.get("patch_size") or 14) ** 2 * (v.get("temporal_patch_size") or 1) * width
    matrices = 3 if "spatial_merge_size" in v and "num_position_embeddings" not in v and "intermediate_size" in v else 2
    return depth * (4 * width * width + matrices * width * inner) + merger * (1 + model.deepstack_levels) + patch


def _tables(model: Model, element: int, extras: Extras) -> int:
    """Cosines and sines of the rotary embedding, one table for every different kind of layer; and what a model reserves
    for every token of a step."""
    length = max(model.longest, extras.max_model_len)
    tables = 2 if "window" in model.kinds and model.architecture.startswith(("Gemma3", "Gemma4")) else 1
    rotary = allocated(length * model.rotary_dim * element) * tables if model.rotary_dim else 0
    # Qwen3-VL keeps the features of three depths for every token of a step (deepstack_input_embeds in qwen3_vl.py).
    deep = model.deepstack_levels * allocated(extras.max_num_batched_tokens * model.hidden * element)
    return rotary + deep


def _lora(model: Model, cut: Cut, element: int, extras: Extras, first: int, last: int) -> int:
    """Buffers of ``--max-loras`` adapters of ``--max-lora-rank`` (vllm/lora/layers): A is whole on every GPU, B is cut
    with the outputs; row-parallel layers the other way round. They exist for every layer that can be adapted."""
    wanted = {
        "attention": not extras.lora_targets or bool({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"} & set(extras.lora_targets)),
        "mlp": not extras.lora_targets or bool({"gate_proj", "up_proj", "down_proj", "gate_up_proj"} & set(extras.lora_targets)),
    }  # fmt: skip
    total = 0
    for index in range(first, last):
        for tensor in shapes.layer(model, index, cut):
            if tensor.role in ("attention", "mlp") and wanted[tensor.role]:
                slices = (
                    3
                    if tensor.role == "attention" and tensor.split_columns == 1
                    else 2
                    if tensor.rows > tensor.columns and tensor.role == "mlp"
                    else 1
                )
                total += extras.max_loras * extras.lora_rank * (tensor.columns * slices + tensor.rows) * element
    return total
