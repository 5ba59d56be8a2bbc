"""The action ``estimate_memory``: the estimate for MCP, HTTP and the command line, as one typed answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tools.memory import architecture, changes, sources
from tools.memory.config import ConfigError, Model
from tools.memory.estimate import Estimate, Server, divisors, estimate
from tools.memory.runtime import Figure
from tools.registry import ActionError, action

_Size = Annotated[int, Field(ge=1)]


class Arguments(BaseModel):
    """The less usual arguments of a server, by vLLM's names."""

    model_config = ConfigDict(extra="forbid")

    pipeline_parallel_size: _Size = 1
    data_parallel_size: _Size = 1
    enable_expert_parallel: bool = False
    decode_context_parallel_size: _Size = 1
    max_num_batched_tokens: _Size | None = None
    max_num_seqs: _Size | None = None
    dtype: str | None = Field(None, max_length=20)
    block_size: _Size | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    disable_hybrid_kv_cache_manager: bool = False
    num_gpu_blocks_override: _Size | None = None
    kv_cache_memory_bytes: _Size | None = None
    cpu_offload_gb: float = Field(0.0, ge=0)
    max_loras: int = Field(0, ge=0)
    max_lora_rank: int = Field(0, ge=0)
    lora_target_modules: list[str] = Field(default_factory=list, max_length=64)
    num_speculative_tokens: int = Field(0, ge=0)
    speculative_method: str | None = Field(None, max_length=40)
    speculative_model: str | None = Field(None, max_length=200)
    language_model_only: bool = False
    offline: bool = False
    total_params: _Size | None = None


class MemoryInput(BaseModel):
    """A model, a GPU and the server's arguments, spelled as vLLM spells them."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=200, description="name, such as Qwen/Qwen3-8B")
    config: dict[str, Any] | None = Field(None, description="fields of config.json, instead of model")
    gpu: str | None = Field(None, max_length=80)
    gpu_total_gib: float | None = Field(None, gt=0)
    vllm_version: str | None = Field(None, max_length=40)
    tensor_parallel_size: _Size = 1
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    max_model_len: _Size | None = None
    quantization: str | None = Field(None, max_length=60)
    kv_cache_dtype: str = Field("auto", max_length=40)
    arguments: dict[str, Any] = Field(default_factory=dict, description="other vLLM arguments, such as max_num_seqs")
    ask_hub: bool = Field(False, description="ask the hub for a model not known here")


class Range(BaseModel):
    """A figure with the range it may lie in."""

    value: float
    low: float
    high: float


class Component(BaseModel):
    """GiB on the fullest GPU, and where the figure comes from. ``counted``: taken off the KV cache by this version."""

    name: Literal["weights", "activations", "non_torch", "cuda_graphs", "kv_cache", "left_free"]
    gib: Range
    counted: bool = True
    source: str


class Alternative(BaseModel):
    """One change that makes it fit."""

    kind: str
    flags: str
    arguments: dict[str, Any]
    longest_context: int | None
    concurrency: float | None


class TensorParallel(BaseModel):
    tensor_parallel_size: int
    verdict: str
    kv_cache_tokens: int | None


class SmallestGpu(BaseModel):
    gpus: int
    name: str
    total_gib: float


class MemoryEstimate(BaseModel):
    """Sizes in GiB (2**30 bytes) per GPU. ``verdict`` is judged at the pessimistic end: ``fits`` is a promise."""

    verdict: Literal["fits", "does-not-fit", "unsure", "unknown"]
    model: str
    architecture: str
    parameters: int
    vllm_version: str
    gpu: str | None
    gpu_total_gib: float | None
    gpu_memory_utilization: float
    requested_gib: float | None
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    weights_gib: float
    available_kv_gib: Range | None
    needed_kv_gib: float
    kv_bytes_per_token: float
    kv_cache_tokens: Range | None
    max_concurrency: Range | None
    longest_context: int | None
    longest_context_likely: int | None
    block_size: int
    kv_cache_groups: int
    components: list[Component]
    weight_parts_gib: dict[str, float]
    alternatives: list[Alternative]
    tensor_parallel_sizes: list[TensorParallel]
    smallest_gpus: list[SmallestGpu]
    notes: list[str]


#: Where each component's figure comes from, as the result says it.
_SOURCES = {
    "weights": "tensors of the architecture, cut and stored as vLLM does, with PyTorch's allocator",
    "activations": "tensors alive at the peak of the profiling run",
    "non_torch": "measured on public start-up logs",
    "cuda_graphs": "measured on public start-up logs",
    "kv_cache": "what the budget leaves",
    "left_free": "outside --gpu-memory-utilization",
}


@action(name="estimate_memory", title="Estimate GPU memory of a model", effect="reads", deadline_s=60)
async def estimate_memory(given: MemoryInput) -> MemoryEstimate:
    """Will a model fit on a GPU with these vLLM arguments: weights, KV cache tokens, concurrency, longest context,
    the smallest changes that make it fit. Needs no GPU and no network unless ask_hub is set."""
    return await asyncio.to_thread(report, given)


def report(given: MemoryInput, *, paths: bool = False) -> MemoryEstimate:
    """The estimate as an answer; ``paths`` lets ``model`` be a local file. Raises :class:`ActionError`."""
    try:
        arguments = _arguments(given.arguments)
        found = _model(given, arguments, paths=paths)
        server = server_of(given, arguments, found, paths=paths)
        return answer(found, server, estimate(found.model, server))
    except ConfigError as error:
        raise ActionError(str(error)) from error
    except OSError as error:
        raise ActionError(f"{given.model}: {error.strerror or error}.") from error


def _arguments(plain: dict[str, Any]) -> Arguments:
    try:
        return Arguments.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        name, message = str(first["loc"][0])[:60], str(first["msg"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Arguments.model_fields)
            raise ConfigError(f"{name} is no argument that this estimate reads; these are: {known}.") from None
        raise ConfigError(f"{name} is {str(first.get('input'))[:60]}: {message[:1].lower()}{message[1:]}.") from None


def _model(given: MemoryInput, arguments: Arguments, *, paths: bool) -> sources.Found:
    if given.config is not None:
        return sources.Found(architecture.read(given.config), given.model or "config", "file", arguments.total_params)
    if not given.model:
        raise ConfigError("Neither 'model' nor 'config' was given; name a model or give the fields of its config.json.")
    return sources.find(given.model, may_ask_hub=given.ask_hub, paths=paths)


def server_of(given: MemoryInput, arguments: Arguments, found: sources.Found, *, paths: bool = False) -> Server:
    """The arguments for the estimate, with the draft model looked up."""
    usual = given.model_dump(exclude={"model", "config", "ask_hub", "arguments", "quantization"})
    others = arguments.model_dump(exclude={"lora_target_modules", "speculative_model", "total_params"})
    draft: Model | None = None
    if arguments.speculative_model:
        draft = sources.find(arguments.speculative_model, may_ask_hub=given.ask_hub, paths=paths).model
    return Server(
        **usual,
        **others,
        lora_targets=tuple(arguments.lora_target_modules),
        draft_model=draft,
        total_params=arguments.total_params or found.total_params,
        quantization=given.quantization or found.quantization,
    )


def _range(figure: Figure | None, digits: int = 3) -> Range | None:
    if figure is None:
        return None
    return Range(value=round(figure.value, digits), low=round(figure.low, digits), high=round(figure.high, digits))


def _ranged(figure: Figure) -> Range:
    return Range(value=round(figure.value, 3), low=round(max(0.0, figure.low), 3), high=round(figure.high, 3))


def answer(found: sources.Found, server: Server, result: Estimate) -> MemoryEstimate:
    """The answer with what would make it fit."""
    parts = [("weights", result.weights, True), ("activations", result.activations, True), ("non_torch", result.non_torch, True),
             ("cuda_graphs", result.graphs, result.counted_graphs.value > 0)]  # fmt: skip
    if result.available is not None and result.total_gib is not None:
        parts.append(("kv_cache", result.available, True))
        parts.append(("left_free", Figure.exact(result.total_gib - (result.requested_gib or 0)), False))
    model = found.model
    fits = changes.tensor_parallel_sizes(model, server) if result.available is not None else []
    smallest = changes.smallest_gpus(model, replace(server, gpu_memory_utilization=server.gpu_memory_utilization))
    from tools.memory.shapes import count

    return MemoryEstimate(
        verdict=result.verdict,
        model=found.name,
        architecture=model.architecture,
        parameters=server.total_params or count(model),
        vllm_version=result.vllm_version,
        gpu=server.gpu,
        gpu_total_gib=result.total_gib,
        gpu_memory_utilization=result.gpu_memory_utilization,
        requested_gib=round(result.requested_gib, 3) if result.requested_gib else None,
        max_model_len=result.max_model_len,
        max_num_batched_tokens=result.max_num_batched_tokens,
        max_num_seqs=result.max_num_seqs,
        weights_gib=round(result.weights.value, 3),
        available_kv_gib=_range(result.available),
        needed_kv_gib=round(result.needed_gib, 3),
        kv_bytes_per_token=round(result.kv_bytes_per_token, 2),
        kv_cache_tokens=_range(result.tokens, 0),
        max_concurrency=_range(result.concurrency, 2),
        longest_context=result.longest_context,
        longest_context_likely=result.longest_context_likely,
        block_size=result.block_size,
        kv_cache_groups=result.groups,
        components=[
            Component(name=name, gib=_ranged(figure), counted=counted, source=_SOURCES[name])  # type: ignore[arg-type]
            for name, figure, counted in parts
        ],
        weight_parts_gib={name: round(size, 3) for name, size in result.weight_parts.items()},
        alternatives=[
            Alternative(
                kind=c.kind, flags=c.flags, arguments=c.arguments, longest_context=c.result.longest_context,
                concurrency=round(c.result.concurrency.low, 2) if c.result.concurrency else None,
            )
            for c in changes.suggest(model, server)
        ],
        tensor_parallel_sizes=[
            TensorParallel(tensor_parallel_size=f.tensor_parallel_size, verdict=f.verdict,
                           kv_cache_tokens=int(f.result.tokens.value) if f.result.tokens else None)
            for f in fits
        ] or [TensorParallel(tensor_parallel_size=n, verdict="unknown", kv_cache_tokens=None) for n in divisors(model, 16)],
        smallest_gpus=[SmallestGpu(gpus=n, name=card.name, total_gib=card.total_gib) for n, card, _ in smallest],
        notes=list(result.notes),
    )  # fmt: skip
