"""What a GPU needs beside weights and KV cache: activations of the profiling run, other libraries' buffers, CUDA graphs.

The activation peak is computed from the tensors that live at the same time in the dummy run (``profile_run`` of
``vllm/v1/worker/gpu_model_runner.py`` and ``vllm/worker/model_runner.py``); it is the larger of the forward pass over
all tokens of a step and of the sampler over all sequences. What no source states (buffers of cuBLAS, kernels that
are loaded when first used, NCCL) was measured; each figure says from how many public logs, and its band is wide.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.memory.config import Model
from tools.memory.releases import Version, counts_graphs
from tools.memory.shapes import cdiv
from tools.memory.weights import GIB, MIB, Division


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of GiB with the range it may lie in, and where it comes from."""

    value: float
    low: float
    high: float
    source: str = ""

    @staticmethod
    def exact(value: float, source: str = "") -> Figure:
        return Figure(value, value, value, source)

    def __add__(self, other: Figure) -> Figure:
        """Uncertainties are taken as independent: their halves add in squares."""
        value = self.value + other.value
        low = ((self.value - self.low) ** 2 + (other.value - other.low) ** 2) ** 0.5
        high = ((self.high - self.value) ** 2 + (other.high - other.value) ** 2) ** 0.5
        return Figure(value, value - low, value + high)


@dataclass(frozen=True, slots=True)
class Load:
    """What a step may hold at most, and how it is run."""

    tokens: int
    sequences: int
    max_model_len: int
    version: Version
    v0: bool
    eager: bool
    element: int = 2
    capability: float = 9.0
    link: str = "nvlink"
    images: bool = True


def sampler_bytes(version: Version, v0: bool) -> tuple[float, float, float]:
    """Bytes that the sampler's dummy run holds for every sequence and entry of the vocabulary: value, low, high.

    Logits in 16 and in 32 bit are 6. Sorting for top-k and top-p (``apply_top_k_top_p``) adds sorted values (4), 64 bit
    positions (8), the sort's own double buffers (12), probabilities and their sums (8): 38 to 40 in the old engine and
    the first ones of the new, which sorted out of place. From 0.10 the positions of the last steps are freed before
    the probabilities are taken: 18. From 0.17 a Triton kernel needs no sort: logits (6), probabilities (4) and the
    exponential noise they are divided by (4) are 14.
    """
    if v0 or version < (0, 10, 0, 0):
        return 40, 37, 41
    if version < (0, 17, 0, 0):
        return 18, 14, 30
    return 14, 13, 17


def activations(model: Model, division: Division, load: Load, stage: int = 0) -> Figure:
    """GiB of the profiling run's peak above the weights, on one GPU of a stage."""
    tp, element, hidden = division.tensor, load.element, model.hidden
    width = cdiv(model.intermediate, tp) if not model.is_moe or any(model.dense) else 0
    matrices = 3 if model.gated else 2
    # hidden, residual and the block's output; gate and up in one tensor, and their product
    per_token = 3 * hidden + matrices * width
    heads = cdiv(model.heads, tp) if model.heads else 0
    attention = (
        3 * hidden
        + heads * model.head_dim * (2 if not model.is_mla else 5)
        + 2 * max(1, model.kv_heads // tp) * model.head_dim
    )
    per_token = max(per_token, attention)
    experts = 0
    if model.is_moe:
        # fused_moe keeps three caches for the chosen experts of a chunk of at most 32,768 tokens
        # (VLLM_FUSED_MOE_CHUNK_SIZE): 2 I and I, and the outputs before they are added up; the first and last share memory.
        chosen, slice_ = max(1, model.experts_per_token), cdiv(model.expert_intermediate, division.cut().experts_slice)
        cache = max(2 * slice_, hidden) + slice_
        experts = min(load.tokens, 32768) * chosen * cache + load.tokens * 4 * hidden
        per_token = max(per_token, 3 * hidden + 3 * cdiv(model.shared_intermediate, tp))
    recurrent = 0
    if model.mamba is not None:
        channels = 2 * model.mamba.inner + 2 * model.mamba.key_heads * model.mamba.state
        recurrent = load.tokens * (3 * hidden + 3 * cdiv(channels, tp))
    forward = max(load.tokens * per_token, experts, recurrent) * element
    is_last = stage == division.pipeline - 1
    rows = min(load.sequences, load.tokens)
    value, low, high = sampler_bytes(load.version, load.v0)
    vocabulary = model.vocab * rows
    kept = load.tokens * hidden * element
    gathered = vocabulary * element * (2 if tp > 1 else 0)
    sampled = [vocabulary * k + kept + gathered for k in (value, low, high)] if is_last else [0.0, 0.0, 0.0]
    tower = _tower_peak(model, load)
    peak = max(forward, sampled[0], tower) / GIB
    # Compiled graphs reuse what eager code keeps; kernels and a tower's choice of attention add on top.
    least = max(forward * 0.8, sampled[1], tower * 0.4) / GIB
    most = max(forward * 1.2 + (experts > 0) * forward * 0.3, sampled[2], tower * 2.0) / GIB
    which = "sampler" if sampled[0] >= max(forward, tower) else "tower" if tower > forward else "forward"
    return Figure(peak, least - 0.02, most + 0.05, which)


def _tower_peak(model: Model, load: Load) -> float:
    """Bytes for the largest image the profiling run encodes: patches of a tower times its width."""
    if not model.is_multimodal or not load.images:
        return 0.0
    width = model.vision.get("embed_dim") or model.vision.get("hidden_size") or 1280
    inner = model.vision.get("intermediate_size") or 4 * width
    # An image takes at most the tokens of a step (the encoder's budget), each merged from 4 patches.
    patches = 4 * min(load.tokens, 16384)
    return float(patches * (3 * width + 3 * inner) * load.element)


def non_torch(division: Division, load: Load) -> Figure:
    """GiB on the GPU that PyTorch's allocator does not hold and that vLLM counts.

    Measured: one GPU, old engine with context counted (before 0.6.5) 0.35; old engine 0.01 to 0.26 (8 logs of 0.6.5 to
    0.9.0); new engine 0.09 (one 24 GB card) and 0.36 to 0.41 (three H100 logs of 0.19: what budget, weights, sampler
    and printed cache leave). Several GPUs: NCCL's channels over NVLink take about 0.6, and the all-reduce that is fused
    with the normalisation keeps five buffers of 64 MiB times the GPUs on Hopper and later with two GPUs
    (FI_ALLREDUCE_FUSION_MAX_SIZE_MB; vllm/compilation/passes/fusion/allreduce_rms_fusion.py; 0.12 on).
    """
    hopper, several = load.capability >= 9 and load.capability < 12, division.tensor * division.pipeline > 1
    if load.version < (0, 6, 5, 0):
        base = Figure(0.35, 0.15, 0.6)
    elif load.v0:
        base = Figure(0.22, 0.05, 0.4) if load.capability >= 8 and load.link == "nvlink" else Figure(0.1, 0.0, 0.35)
    elif hopper:
        base = Figure(0.37, 0.15, 0.6)
    else:
        base = Figure(0.12, 0.03, 0.4)
    if not several:
        return base
    if load.link != "nvlink":
        return base + Figure(0.1, 0.0, 0.6)
    collectives = Figure(0.6, 0.1, 1.6)
    if load.version < (0, 9, 1, 0):
        collectives = Figure(0.9, 0.1, 2.8)
    if hopper and load.version >= (0, 12, 0, 0) and division.tensor == 2 and not load.eager:
        collectives = collectives + Figure(5 * 64 * 2 / 1024, 0.0, 1.4)
    return base + collectives


def graphs(model: Model, division: Division, load: Load) -> Figure:
    """GiB of captured CUDA graphs on one GPU, whether or not the version counts them.

    Measured: 0.13 to 0.28 for 24 to 28 layers of the old engine (35 sizes), 0.27 to 1.44 for 28 to 32 layers of the
    new one (up to 67 sizes): about 0.016 a layer, in proportion to the sizes captured. Eager mode captures none.
    """
    if load.eager:
        return Figure.exact(0.0)
    layers = cdiv(model.layers, division.pipeline)
    each = 0.008 if load.v0 else 0.016
    sizes = min(1.0, max(0.15, min(2 * load.sequences, 512) / 512))
    value = each * layers * sizes
    return Figure(value, 0.4 * value, 2.2 * value + 0.1)


def counted_graphs(model: Model, division: Division, load: Load) -> Figure:
    """The part of :func:`graphs` that the version takes off the KV cache."""
    return graphs(model, division, load) if counts_graphs(load.version) else Figure.exact(0.0)


__all__ = ["MIB", "Figure", "Load", "activations", "counted_graphs", "graphs", "non_torch", "sampler_bytes"]
