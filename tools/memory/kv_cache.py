"""The KV cache as a version of vLLM lays it out: pages, groups, blocks, and what it prints.

Sources: ``vllm/v1/kv_cache_interface.py`` (page sizes, memory a request needs), ``vllm/v1/core/kv_cache_utils.py``
(groups, ``get_num_blocks``, ``get_max_concurrency_for_kv_cache_config``; ``kv_cache_planning.py`` since 0.33),
``vllm/worker/cache_engine.py`` (the old engine), ``vllm/model_executor/models/config.py`` (block size of hybrids) and
``vllm/model_executor/layers/mamba/mamba_utils.py`` (state shapes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

from tools.memory import releases
from tools.memory.config import ConfigError, Mamba, Model, dtype_bytes
from tools.memory.releases import Version
from tools.memory.shapes import cdiv
from tools.memory.weights import Division, stages

#: Tokens of a block where nothing else is asked for (CacheConfig.block_size on CUDA).
BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class Spec:
    """Layers that keep the same thing. ``page`` is bytes of one block of one layer, ``block`` its tokens."""

    kind: str  # full, window, chunked, mamba, cross
    block: int
    page: int
    layers: int
    reach: int = 0  # window or chunk, tokens


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a server's arguments decides the KV cache."""

    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    max_model_len: int = 0
    max_num_batched_tokens: int = 2048
    decode_context: int = 1
    prefix_caching: bool | None = None
    hybrid_manager: bool = True
    speculative_tokens: int = 0
    draft_layers: int = 0
    draft_model: Model | None = None
    async_batches: int = 1
    mamba_ssm_dtype: str = "auto"
    skip_layers: int = 0
    element: int = 2
    capability: float = 9.0


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cache of one GPU is cut into blocks. ``block_bytes`` is one block over all the layers that share it."""

    specs: tuple[Spec, ...]
    groups: tuple[Spec, ...]  # one for each group; layers is the size of a group
    block_bytes: int
    smallest_block: int
    version: Version
    asked: Asked
    has_state: bool

    def blocks_for(self, tokens: int) -> int:
        """Blocks one request of this length holds at most."""
        return sum(_blocks(group, tokens, self) for group in self.groups)

    def bytes_for(self, tokens: int) -> int:
        """Bytes that the start-up check wants for one request of this length.

        Until 0.13 the layers' needs were added as if each had its own memory; later, those of the groups.
        """
        if self.version < (0, 14, 0, 0):
            return sum(_blocks(spec, tokens, self) * spec.page * spec.layers for spec in self.specs)
        return self.blocks_for(tokens) * self.block_bytes

    def blocks_in(self, available: int) -> int:
        """Blocks that fit into ``available`` bytes."""
        return max(0, available // self.block_bytes) if self.block_bytes else 0

    def concurrency(self, blocks: int, length: int) -> float:
        """Requests of this length at once, as ``Maximum concurrency`` prints it."""
        if self.version < (0, 9, 1, 0):
            return blocks * self.smallest_block / length if length else 0.0
        needed = self.blocks_for(length)
        return blocks / needed if needed else 0.0

    def printed_tokens(self, blocks: int, length: int) -> int:
        """The number in ``GPU KV cache size: N tokens`` (before 0.7: blocks times block size)."""
        if self.version < (0, 9, 1, 0):
            return blocks * self.smallest_block
        if self.version < (0, 20, 2, 0) or not length:
            return blocks // len(self.groups) * self.smallest_block * self.asked.decode_context
        return int(self.concurrency(blocks, length) * length)

    def longest(self, available: int, limit: int) -> int:
        """The longest request that fits, at most ``limit`` tokens; 0 where none does."""
        if self.version >= (0, 29, 0, 0):
            available -= self.block_bytes  # the null block is kept back by the check
        if limit < 1 or self.bytes_for(1) > available:
            return 0
        low, high = 1, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes_for(middle) <= available:
                low = middle
            else:
                high = middle - 1
        return low


def _blocks(spec: Spec, tokens: int, layout: Layout) -> int:
    asked = layout.asked
    step = asked.max_num_batched_tokens * (asked.async_batches if layout.version >= (0, 26, 0, 0) else 1)
    if spec.kind == "window" and spec.reach and layout.version >= (0, 8, 3, 0):
        return cdiv(min(spec.reach - 1 + step, tokens), spec.block) + 1
    if spec.kind == "chunked" and spec.reach and layout.version >= (0, 10, 0, 0):
        return cdiv(min(spec.reach + step, tokens), spec.block)
    if spec.kind == "mamba":
        caching = asked.prefix_caching
        if caching is None:
            caching = releases.prefix_caching(layout.version, has_state=True, v0=False)
        return (2 if caching else 1) + asked.speculative_tokens
    if spec.kind == "cross":
        return cdiv(spec.reach, spec.block)
    return cdiv(cdiv(tokens, asked.decode_context), spec.block)


def lay_out(model: Model, division: Division, asked: Asked, version: Version, stage: int = 0) -> Layout:
    """The layout on each GPU of a pipeline stage. Raises :class:`ConfigError` where the model has no KV cache."""
    first, last = stages(model.layers, division.pipeline, version)[stage]
    specs = _specs(model, division, asked, version, first, last, last_stage=stage == division.pipeline - 1)
    if not specs:
        raise ConfigError(f"{model.architecture} keeps no KV cache: its layers attend to a whole input at once.")
    has_state = any(s.kind == "mamba" for s in specs)
    groups, block_bytes = _group(specs, asked, version)
    # Blocks of recurrent layers hold a state and no tokens; they set the smallest only where nothing else is there.
    smallest = min((g.block for g in groups if g.kind != "mamba"), default=max(1, asked.max_model_len or 1))
    return Layout(tuple(specs), groups, block_bytes, smallest, version, asked, has_state)


def per_token(heads: int, key: int, value: int, dtype: str, element: int) -> float:
    """Bytes of keys and values of one token in one layer."""
    if dtype in ("fp8_per_token_head", "int8_per_token_head"):
        return heads * (key + value + 8)
    if dtype == "int4_per_token_head":
        return heads * (key / 2 + value / 2 + 8)
    if dtype == "nvfp4":
        return heads * ((key + value) / 2 + (key + value) / 16)
    return heads * (key + value) * element


def kv_element(model: Model, dtype: str, weights_element: int) -> int:
    """Bytes of an element of the cache. Raises :class:`ConfigError` for a type that is not known."""
    name = dtype.lower()
    if name in ("auto", ""):
        return 1 if model.kv_cache_scheme_fp8 else weights_element
    if name.startswith(("fp8", "int8", "turboquant")):
        return 1
    if name in ("nvfp4", "int4_per_token_head"):
        return 1
    return dtype_bytes(name)


def _specs(
    model: Model, division: Division, asked: Asked, version: Version, first: int, last: int, *, last_stage: bool
) -> list[Spec]:
    element = kv_element(model, asked.kv_cache_dtype, asked.element)
    own = range(first, min(last, model.layers - model.shared_kv_layers))
    kinds = [model.kinds[i] if i < len(model.kinds) else "full" for i in own]
    count = {kind: kinds.count(kind) for kind in ("full", "window", "chunked", "mamba", "parallel")}
    block = asked.block_size or (64 if model.is_mla and not asked.block_size and version >= (0, 8, 0, 0) else BLOCK)
    attention: list[Spec] = []
    per: dict[str, float] = {}
    for kind in ("full", "window", "chunked"):
        layers = count[kind] + (count["parallel"] if kind == "full" else 0)
        if kind == "full" and last_stage and not model.is_mla:
            layers += asked.draft_layers
        if not layers:
            continue
        per[kind] = _token_bytes(model, kind, division, asked, version, element)
        attention.append(
            Spec(kind, block, 0, layers, model.window if kind == "window" else model.chunk if kind == "chunked" else 0)
        )
    states = count["mamba"] + count["parallel"]
    state_bytes = _state(model, division, asked) if states and model.mamba else 0
    if states and attention and state_bytes:
        block = _hybrid_block(state_bytes, max(per.values()), block, asked, model)
    specs = [replace(s, block=block, page=int(per[s.kind] * block)) for s in attention]
    if model.is_mla and asked.draft_layers and last_stage and specs:
        specs[0] = replace(specs[0], layers=specs[0].layers + asked.draft_layers)
    if model.is_mla and model.index_head_dim and specs:
        # The indexer of sparse attention keeps an FP8 vector and a scale for every token (deepseek_v2.py, DeepseekV32IndexerCache).
        specs.append(Spec("full", block, block * (model.index_head_dim + 4), specs[0].layers))
    if states and state_bytes:
        page = max([s.page for s in specs], default=0)
        specs.append(
            Spec("mamba", block if specs else max(1, asked.max_model_len or 1), max(page, state_bytes), states)
        )
    if model.encoder_layers and specs:
        specs.append(Spec("cross", block, specs[0].page, last - first, model.cross_length))
    if asked.draft_model is not None and last_stage:
        draft = asked.draft_model
        bytes_ = _token_bytes(draft, "full", division, asked, version, element)
        specs.append(Spec("full", block, int(bytes_ * block), draft.layers))
    return specs


def _token_bytes(model: Model, kind: str, division: Division, asked: Asked, version: Version, element: int) -> float:
    dtype = asked.kv_cache_dtype.lower()
    if model.is_mla:
        if version < (0, 7, 1, 0):
            # Before MLA was known, its keys and values were stored whole, padded to the 256 that the kernels took.
            return max(1, cdiv(model.heads, division.tensor)) * 2 * 256 * element
        if dtype == "fp8_ds_mla" or (model.index_head_dim and dtype.startswith("fp8")):
            return 656
        if dtype == "nvfp4_ds_mla":
            return 352
        latent = (model.kv_lora_rank + model.rope_dim) * element
        if (0, 7, 2, 0) <= version < (0, 8, 2, 0):
            return cdiv(latent, 256) * 256  # VLLM_CUDA_MEM_ALIGN_KV_CACHE, on by default on CUDA
        return latent
    heads, size = model.kv_heads, model.head_dim
    if kind == "full" and model.global_head_dim:
        heads, size = model.global_kv_heads or heads, model.global_head_dim
    heads = max(1, heads // division.tensor)
    value = size
    if model.value_dim and model.value_dim != size and version >= (0, 14, 0, 0):
        value = model.value_dim
    return per_token(heads, size, value, dtype, element)


def _state(model: Model, division: Division, asked: Asked) -> int:
    """Bytes of the whole state of one request in one recurrent layer."""
    mamba = model.mamba
    if mamba is None:
        return 0
    tp, element = division.tensor, asked.element
    wide = 4 if mamba.float32_state or asked.mamba_ssm_dtype == "float32" else element
    history = mamba.conv - 1 + asked.speculative_tokens
    if mamba.kind == "gdn":
        channels = cdiv(2 * mamba.key_heads * mamba.state + mamba.inner, tp)
        return channels * history * element + cdiv(mamba.heads, tp) * mamba.head_dim * mamba.state * wide
    if mamba.kind == "kda":
        return 3 * cdiv(mamba.inner, tp) * history * element + cdiv(mamba.heads, tp) * mamba.head_dim**2 * wide
    if mamba.kind == "lightning":
        return cdiv(mamba.heads, tp) * mamba.head_dim**2 * wide
    if mamba.kind == "short_conv":
        return cdiv(mamba.inner, tp) * (mamba.conv - 1) * element
    if mamba.kind == "mamba2":
        return _mamba2(mamba, tp, history, element, wide)
    return cdiv(mamba.inner, tp) * ((mamba.conv - 1) * element + mamba.state * wide)


def _mamba2(mamba: Mamba, tp: int, history: int, element: int, wide: int) -> int:
    # Groups that do not divide are repeated on the GPUs (extra_groups_for_head_shards).
    groups = (
        mamba.groups if mamba.groups % tp == 0 else tp if mamba.groups == 1 else mamba.groups + tp - mamba.groups % tp
    )
    channels = cdiv(mamba.inner + 2 * groups * mamba.state, tp)
    return channels * history * element + cdiv(mamba.heads, tp) * mamba.head_dim * mamba.state * wide


def _hybrid_block(state: int, per_token_bytes: float, block: int, asked: Asked, model: Model) -> int:
    """Tokens of a block so large that its page holds a state (HybridAttentionMambaModelConfig.verify_and_update_config)."""
    step = 64 if model.is_mla else 16
    least = step * cdiv(state, max(1, int(step * per_token_bytes)))
    return max(block, least) if asked.block_size else least


def _group(specs: Sequence[Spec], asked: Asked, version: Version) -> tuple[tuple[Spec, ...], int]:
    """Groups of layers that share blocks (``get_kv_cache_groups``) and the bytes of one block."""
    specs = list(specs)
    if version < (0, 9, 1, 0) or not asked.hybrid_manager or asked.decode_context > 1:
        specs = [replace(s, kind="full", reach=0) if s.kind in ("window", "chunked") else s for s in specs]
    elif any(s.kind == "chunked" for s in specs) and version < (0, 14, 0, 0):
        # Chunked layers switched the hybrid manager off (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE,
        # which is on since 0.14.0).
        specs = [replace(s, kind="full", reach=0) if s.kind == "chunked" else s for s in specs]
    if len({(s.kind, s.reach) for s in specs}) == 1:
        first = specs[0]
        total = sum(s.page * s.layers for s in specs)
        return (replace(first, layers=sum(s.layers for s in specs), page=total),), total
    largest = max(s.page for s in specs)
    level = []
    for spec in specs:
        if spec.page == largest or spec.kind == "mamba":
            level.append(replace(spec, page=largest))
        elif largest % spec.page == 0:
            level.append(replace(spec, block=spec.block * (largest // spec.page), page=largest))
        else:
            # A page that does not divide the largest is padded to it, at the largest block that still fits inside.
            common = gcd(largest, spec.page)
            level.append(
                replace(spec, page=largest, block=spec.block * max(1, largest // spec.page)) if common else spec
            )
    merged: dict[tuple[str, int, int], int] = {}
    for spec in level:
        key = (spec.kind, spec.reach, spec.block)
        merged[key] = merged.get(key, 0) + spec.layers
    counts = list(merged.values())
    size = min(counts)
    generous = 1.5 if version >= (0, 18, 0, 0) else 1.25 if version >= (0, 12, 0, 0) else 1.0
    if max(counts) < generous * size:
        size = max(counts)
    groups: list[Spec] = []
    for (kind, reach, block), layers in merged.items():
        groups += [Spec(kind, block, largest, size, reach)] * cdiv(layers, size)
    return tuple(groups), largest * size
