"""One call: will this model with these arguments fit on this GPU, and what will vLLM print?

>>> from tools.memory import architecture, estimate
>>> model = architecture.read({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
...     "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
...     "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16"})
>>> result = estimate.estimate(model, estimate.Server(gpu="H100", max_model_len=8192, vllm_version="0.19.0"))
>>> result.verdict
'fits'
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from knowledge import gpus
from tools.memory import kv_cache, quantization, releases, runtime, weights
from tools.memory.config import ConfigError, Model
from tools.memory.kv_cache import Asked, Layout
from tools.memory.runtime import Figure, Load
from tools.memory.weights import GIB, Division, Extras

Verdict = Literal["fits", "does-not-fit", "unsure", "unknown"]

#: Beyond these no machine goes; a number above is a slip of the hand.
_LIMITS = {
    "tensor_parallel_size": 1024, "pipeline_parallel_size": 256, "data_parallel_size": 4096, "decode_context_parallel_size": 1024,
    "max_model_len": 2**31, "max_num_batched_tokens": 2**24, "max_num_seqs": 2**20, "block_size": 2**16,
    "max_loras": 4096, "max_lora_rank": 1024, "num_speculative_tokens": 64, "num_gpu_blocks_override": 2**31,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """The arguments of a server that decide memory, spelled as vLLM spells them. ``None`` means not given."""

    gpu: str | None = None
    gpu_total_gib: float | None = None
    vllm_version: str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    decode_context_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    disable_hybrid_kv_cache_manager: bool = False
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    cpu_offload_gb: float = 0.0
    max_loras: int = 0
    max_lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    num_speculative_tokens: int = 0
    speculative_method: str | None = None
    draft_model: Model | None = None
    language_model_only: bool = False
    offline: bool = False
    total_params: int | None = None

    def problems(self) -> list[str]:
        """A sentence for each argument that cannot be meant."""
        found = []
        for name, most in _LIMITS.items():
            value = getattr(self, name)
            least = 0 if name in ("max_loras", "max_lora_rank", "num_speculative_tokens") else 1
            if value is not None and not least <= value <= most:
                found.append(f"{name} is {value}; a whole number from {least} to {most:,} was expected.")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            found.append(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; a share above 0 and at most 1 was expected."
            )
        if self.gpu_total_gib is not None and not 0.5 <= self.gpu_total_gib <= 4096:
            found.append(f"gpu_total_gib is {self.gpu_total_gib}; GiB from 0.5 to 4096 were expected.")
        if not 0 <= self.cpu_offload_gb <= 2**14:
            found.append(f"cpu_offload_gb is {self.cpu_offload_gb}; GiB from 0 to 16384 were expected.")
        if self.kv_cache_memory_bytes is not None and not 0 < self.kv_cache_memory_bytes < 2**50:
            found.append(f"kv_cache_memory_bytes is {self.kv_cache_memory_bytes}; bytes above 0 were expected.")
        if not found and self.tensor_parallel_size % self.decode_context_parallel_size:
            found.append(
                f"decode_context_parallel_size {self.decode_context_parallel_size} does not divide tensor_parallel_size {self.tensor_parallel_size}."
            )
        return found


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was computed; sizes are GiB on the fullest GPU. ``available`` and what follows from it are ``None`` where the
    GPU is not known. ``verdict`` is judged at the pessimistic end of the band."""

    verdict: Verdict
    weights: Figure
    activations: Figure
    non_torch: Figure
    graphs: Figure
    counted_graphs: Figure
    available: Figure | None
    total_gib: float | None
    requested_gib: float | None
    needed_gib: float
    kv_bytes_per_token: float
    tokens: Figure | None
    concurrency: Figure | None
    longest_context: int | None
    longest_context_likely: int | None
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    gpu_memory_utilization: float
    vllm_version: str
    weight_parts: dict[str, float]
    block_size: int
    groups: int
    notes: tuple[str, ...] = ()
    layout: Layout | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Setting:
    version: releases.Version
    v0: bool
    division: Division
    scheme: quantization.Scheme
    element: int
    load: Load
    length: int
    total: Figure | None
    utilization: float
    card: gpus.Gpu | None


def estimate(model: Model, server: Server) -> Estimate:
    """The estimate. Raises :class:`ConfigError` for arguments that cannot be, and for a model without a KV cache."""
    _refuse(model, server)
    setting = _settle(model, server)
    notes = _notes(model, server, setting)
    stage_results = [_stage(model, server, setting, stage) for stage in _telling_stages(server.pipeline_parallel_size)]
    layouts = [lay_out(model, server, setting, stage) for stage in _telling_stages(server.pipeline_parallel_size)]
    # Every stage counts its blocks and the fewest decide (get_kv_cache_configs).
    order = sorted(range(len(layouts)), key=lambda i: _room(stage_results[i], layouts[i]))
    first, layout = stage_results[order[0]], layouts[order[0]]
    needed = layout.bytes_for(setting.length) / GIB if setting.length else 0.0
    available = first.available
    if server.kv_cache_memory_bytes is not None and setting.version >= (0, 10, 2, 0):
        available = Figure.exact(server.kv_cache_memory_bytes / GIB, "kv_cache_memory_bytes")
    tokens = concurrency = None
    longest = likely = None
    verdict: Verdict = "unknown"
    if available is not None:
        blocks = [
            layout.blocks_in(int(max(0.0, value) * GIB)) for value in (available.value, available.low, available.high)
        ]
        if server.num_gpu_blocks_override is not None:
            blocks = [server.num_gpu_blocks_override] * 3
        printed = [float(layout.printed_tokens(b, setting.length)) for b in blocks]
        tokens = Figure(printed[0], printed[1], printed[2])
        if setting.length:
            at_once = [layout.concurrency(b, setting.length) for b in blocks]
            concurrency = Figure(at_once[0], at_once[1], at_once[2])
        limit = max(model.longest, setting.length, 1)
        longest = layout.longest(int(max(0.0, available.low) * GIB), limit)
        likely = layout.longest(int(max(0.0, available.value) * GIB), limit)
        verdict = _judge(available, needed, first, setting)
    return Estimate(
        verdict=verdict,
        weights=first.weights,
        activations=first.activations,
        non_torch=first.non_torch,
        graphs=first.graphs,
        counted_graphs=first.counted,
        available=available,
        total_gib=setting.total.value if setting.total else None,
        requested_gib=setting.total.value * setting.utilization if setting.total else None,
        needed_gib=needed,
        kv_bytes_per_token=layout.block_bytes * len(layout.groups) / layout.smallest_block
        if not layout.has_state
        else _slope(layout),
        tokens=tokens,
        concurrency=concurrency,
        longest_context=longest,
        longest_context_likely=likely,
        max_model_len=setting.length,
        max_num_batched_tokens=setting.load.tokens,
        max_num_seqs=setting.load.sequences,
        gpu_memory_utilization=setting.utilization,
        vllm_version=".".join(map(str, setting.version[:3])),
        weight_parts={k: v / GIB for k, v in first.parts.items()},
        block_size=layout.smallest_block,
        groups=len(layout.groups),
        notes=notes,
        layout=layout,
    )


def _slope(layout: Layout) -> float:
    """Bytes that one more token costs in a long request."""
    return (layout.bytes_for(2_000_000) - layout.bytes_for(1_000_000)) / 1_000_000


def _refuse(model: Model, server: Server) -> None:
    problems = server.problems()
    if problems:
        raise ConfigError(" ".join(problems))
    tp = server.tensor_parallel_size
    if model.heads and model.heads % tp:
        problems.append(
            f"tensor_parallel_size {tp} does not divide the {model.heads} attention heads; vLLM refuses that. It can be one of {', '.join(map(str, divisors(model)))}."
        )
    if server.pipeline_parallel_size > model.layers:
        problems.append(
            f"pipeline_parallel_size {server.pipeline_parallel_size} is more than the model's {model.layers} layers."
        )
    if problems:
        raise ConfigError(" ".join(problems))


def divisors(model: Model, most: int = 64) -> tuple[int, ...]:
    """Tensor parallel sizes that vLLM accepts for the model (``verify_with_parallel_config``), up to ``most``."""
    return tuple(
        n for n in range(1, most + 1) if (n & (n - 1) == 0 or n in (3, 6, 12, 24)) and model.heads % n == 0
    ) or (1,)


def _settle(model: Model, server: Server) -> _Setting:
    version = releases.read(server.vllm_version)
    v0 = releases.is_v0(version)
    card = gpus.find(server.gpu) if server.gpu else None
    if server.gpu and card is None and server.gpu_total_gib is None:
        near = gpus.near(server.gpu)
        hint = f"; perhaps {', '.join(near)} is meant" if near else ""
        raise ConfigError(
            f"No GPU is known as {server.gpu[:60]!r}{hint}. Give its memory in GiB instead (--gpu-memory-gib, gpu_total_gib): nvidia-smi's MiB / 1024."
        )
    total = None
    if server.gpu_total_gib is not None:
        total = Figure(server.gpu_total_gib, server.gpu_total_gib - 0.005, server.gpu_total_gib + 0.005, "given")
    elif card is not None:
        total = Figure(card.total_gib, card.total_gib - card.spread_gib, card.total_gib + card.spread_gib, card.name)
    size = total.value if total else 24.0
    length = server.max_model_len or model.longest
    scheme = quantization.choose(server.quantization, model, card.capability if card else 9.0)
    element = quantization.element_bytes(model, server.dtype, scheme)
    if server.max_num_batched_tokens:
        step = server.max_num_batched_tokens
    elif total is None and not v0:
        step = 8192  # between the defaults of small and large cards
    else:
        step = releases.batched_tokens(version, size, server.gpu or "", length or 2048, offline=server.offline, v0=v0)
    sequences = server.max_num_seqs or releases.sequences(version, size, server.gpu or "", step, v0=v0)
    capability, link = (card.capability, card.link) if card else (9.0, "nvlink") if size > 70 else (8.6, "pcie")
    load = Load(
        step,
        sequences,
        length,
        version,
        v0,
        server.enforce_eager,
        element,
        capability,
        link,
        not server.language_model_only,
    )
    division = Division(
        server.tensor_parallel_size,
        server.pipeline_parallel_size,
        server.data_parallel_size,
        server.enable_expert_parallel,
    )
    utilization = server.gpu_memory_utilization or releases.default_utilization(version)
    return _Setting(version, v0, division, scheme, element, load, length, total, utilization, card)


def _telling_stages(pipeline: int) -> tuple[int, ...]:
    """First, second and last stage: those between are alike."""
    return tuple(sorted({0, min(1, pipeline - 1), max(0, pipeline - 2), pipeline - 1}))


#: Parts that nobody listed make real starts scatter more than the bands of the listed ones: by half again, and by
#: half a percent of the card. Chosen so that bands hold at least nine of ten starts of models that no constant was taken from.
_UNFORESEEN = 1.5
_FLOOR = 0.005


@dataclass(frozen=True, slots=True)
class _Stage:
    weights: Figure
    parts: dict[str, int]
    activations: Figure
    non_torch: Figure
    graphs: Figure
    counted: Figure
    available: Figure | None


def weights_on(model: Model, server: Server, setting: _Setting, stage: int) -> tuple[Figure, dict[str, int]]:
    """GiB of weights on a GPU of a stage, with draft model and LoRA buffers, less what is kept in the CPU's memory."""
    extras = Extras(
        total_params=server.total_params,
        max_model_len=server.max_model_len or 0,
        max_num_batched_tokens=setting.load.tokens,
        lora_rank=server.max_lora_rank,
        max_loras=max(1, server.max_loras) if server.max_lora_rank else 0,
        lora_extra_vocab=256 if server.max_lora_rank and setting.version < (0, 12, 0, 0) else 0,
        lora_targets=server.lora_targets,
        version=setting.version,
        text_only=server.language_model_only,
    )
    found = weights.on_stage(model, setting.division, setting.scheme, setting.element, stage, extras)
    parts = dict(found.parts)
    if server.draft_model is not None and stage == setting.division.pipeline - 1:
        draft = weights.on_stage(
            server.draft_model, Division(setting.division.tensor), quantization.choose(None, server.draft_model),
            setting.element, 0, replace(extras, total_params=None, lora_rank=0, text_only=True),
        )  # fmt: skip
        parts["draft"] = draft.total
    elif _uses_mtp(server) and stage == setting.division.pipeline - 1:
        parts["draft"] = _mtp(model, setting)
    total = sum(parts.values())
    off = int(min(server.cpu_offload_gb * GIB, total))
    # Half a percent is what buffers and the allocator left unexplained over 27 public logs, in the mean.
    spread = 0.004 * total + found.uncertain + 0.02 * (setting.scheme.bits < 16) * total + 0.01 * GIB
    return Figure(
        (total - off) / GIB, (total - off - spread) / GIB, (total - off + spread) / GIB, setting.scheme.name
    ), parts


def _uses_mtp(server: Server) -> bool:
    return bool(server.num_speculative_tokens) and (server.speculative_method or "").lower().endswith("mtp")


def _mtp(model: Model, setting: _Setting) -> int:
    """One more decoder layer and the matrix that joins it to the model (deepseek_mtp.py, qwen3_next_mtp.py)."""
    from tools.memory import shapes

    last = model.layers - 1
    cut = setting.division.cut()
    layer = sum(sum(setting.scheme.sizes(t, setting.element)) for t in shapes.layer(model, last, cut))
    return max(1, model.mtp_layers) * (layer + 2 * model.hidden**2 * setting.element)


def _stage(model: Model, server: Server, setting: _Setting, stage: int) -> _Stage:
    held, parts = weights_on(model, server, setting, stage)
    peak = runtime.activations(model, setting.division, setting.load, stage)
    other = runtime.non_torch(setting.division, setting.load)
    graphs = runtime.graphs(model, setting.division, setting.load)
    counted = graphs if releases.counts_graphs(setting.version) else Figure.exact(0.0)
    available = None
    if setting.total is not None:
        used = held + peak + other + counted
        share, total = setting.utilization, setting.total
        off = _UNFORESEEN * ((used.high - used.value) ** 2 + (share * (total.value - total.low)) ** 2) ** 0.5
        up = _UNFORESEEN * ((used.value - used.low) ** 2 + (share * (total.high - total.value)) ** 2) ** 0.5
        off, up = off + _FLOOR * total.value, up + _FLOOR * total.value
        value = total.value * share - used.value
        available = Figure(value, value - off, value + up)
    return _Stage(held, parts, peak, other, graphs, counted, available)


def lay_out(model: Model, server: Server, setting: _Setting, stage: int = 0) -> Layout:
    """The KV cache's layout on a stage."""
    drafts = 0
    if server.num_speculative_tokens and server.draft_model is None:
        drafts = (
            max(1, model.mtp_layers)
            if _uses_mtp(server)
            else 1
            if (server.speculative_method or "").lower().startswith("eagle")
            else 0
        )
    asked = Asked(
        kv_cache_dtype=server.kv_cache_dtype,
        block_size=server.block_size,
        max_model_len=setting.length,
        max_num_batched_tokens=setting.load.tokens,
        decode_context=server.decode_context_parallel_size,
        prefix_caching=server.enable_prefix_caching,
        hybrid_manager=not server.disable_hybrid_kv_cache_manager,
        speculative_tokens=server.num_speculative_tokens,
        draft_layers=drafts,
        draft_model=server.draft_model,
        element=setting.element,
        async_batches=max(server.pipeline_parallel_size, 2),
        capability=setting.load.capability,
    )
    return kv_cache.lay_out(model, setting.division, asked, setting.version, stage)


def settle(model: Model, server: Server) -> _Setting:
    """The arguments with this version's defaults filled in. Raises :class:`ConfigError`."""
    _refuse(model, server)
    return _settle(model, server)


def _room(stage: _Stage, layout: Layout) -> float:
    if not layout.block_bytes:
        return float("inf")
    if stage.available is None:
        return -stage.weights.value
    return stage.available.value / layout.block_bytes


def _judge(available: Figure, needed: float, stage: _Stage, setting: _Setting) -> Verdict:
    """Fits only if it fits at the pessimistic end; does not fit only if it does not at the optimistic end."""
    outside = 0.0
    if not releases.counts_graphs(setting.version) and setting.total is not None:
        # Graphs are captured out of what the utilization leaves free.
        outside = max(0.0, stage.graphs.value - setting.total.value * (1 - setting.utilization) + 0.1)
    if available.low - outside > 0 and available.low - outside >= needed:
        return "fits"
    if available.high <= 0 or available.high < needed:
        return "does-not-fit"
    return "unsure"


def _notes(model: Model, server: Server, setting: _Setting) -> tuple[str, ...]:
    """Keys of sentences (knowledge/sentences.yaml, ``memory-note-*``) that the reader must know."""
    notes = []
    if not model.known:
        notes.append("unknown-architecture")
    if not server.vllm_version:
        notes.append("newest-version")
    if setting.division.tensor > max(1, model.kv_heads) and not model.is_mla:
        notes.append("replicated-heads")
    if model.is_mla and setting.division.tensor > 1 and server.decode_context_parallel_size == 1:
        notes.append("mla-replicated")
    if model.is_multimodal and not model.vision and not server.total_params and not server.language_model_only:
        notes.append("tower-guessed")
    if setting.load.v0:
        notes.append("old-engine")
    if not releases.counts_graphs(setting.version) and not server.enforce_eager:
        notes.append("graphs-outside")
    return tuple(notes)
