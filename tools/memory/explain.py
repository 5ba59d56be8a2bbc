"""Where the memory of a real start went, by its own log, and what a change would do to it.

What the log states counts; what it leaves open is what its figures leave between them; only then is anything
estimated. A change is predicted by the difference of two estimates on top of what the log states, so that whatever the
estimate gets wrong about this machine cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from knowledge.shapes import Message
from tools.memory import releases, sources
from tools.memory.config import ConfigError
from tools.memory.estimate import Estimate, Server, estimate
from tools.memory.stated import Stated, server_of
from tools.memory.weights import GIB

Origin = Literal["stated", "derived", "estimated"]


class Part(BaseModel):
    """GiB on one GPU. ``inside``: part of the whole card; ``estimate_gib``: what an estimate without the log says."""

    name: str
    gib: float
    origin: Origin
    inside: bool = True
    estimate_gib: float | None = None


class Predicted(BaseModel):
    """What the KV cache would be with other arguments."""

    flags: str
    available_gib: float
    tokens: int | None = None
    concurrency: float | None = None
    length: int | None = None


class Explained(BaseModel):
    """Where the memory went. Sizes are GiB of one GPU; ``None`` is not known."""

    model: str | None = None
    vllm_version: str | None = None
    total_gib: float | None = None
    requested_gib: float | None = None
    available_gib: float | None = None
    needed_gib: float | None = None
    missing_gib: float | None = None
    kv_cache_tokens: int | None = None
    max_model_len: int | None = None
    kv_bytes_per_token: float | None = None
    unexplained_percent: float | None = None
    parts: list[Part] = []
    changes: list[Predicted] = []
    not_known: list[str] = []


def explain_log(
    path: Path,
    messages: Sequence[Message],
    *,
    model: str | None = None,
    gpu: str | None = None,
    vllm_version: str | None = None,
) -> Explained:
    """Reads a log (``-`` is standard input) and explains it. Raises ``SourceError``, ``OSError``, :class:`ConfigError`."""
    from tools.logs import expand, read_logs

    reading = read_logs(expand([path]), messages)
    values: dict[str, Any] = {}
    for fact in reading.reading.evidence:
        if fact.state == "present" and "." in fact.name and not fact.name.startswith(("message:", "stats.")):
            values.setdefault(fact.name, fact.value)
    return explain(values, model=model, gpu=gpu, vllm_version=vllm_version)


def explain(
    values: Mapping[str, Any], *, model: str | None = None, gpu: str | None = None, vllm_version: str | None = None
) -> Explained:
    """Explains observables (knowledge/observables.yaml) of one start, by name.

    ``model`` counts before the log's; where it cannot be found, the log's figures alone are used, unless it was given
    by name: then :class:`ConfigError` is raised.
    """
    given = Stated(values)
    name = model or given.text("server.model")
    version = vllm_version or given.text("server.version")
    base, found, server = None, None, None
    not_known: list[str] = []
    if name:
        try:
            found = sources.find(name, may_ask_hub=False, paths=model is not None)
        except ConfigError as error:
            if model is not None:
                raise
            not_known.append(str(error))
    if found is not None:
        server = server_of(given, found, gpu, version)
        try:
            base = estimate(found.model, server)
        except ConfigError as error:
            not_known.append(str(error))
    result = _measured(given, base, name, version)
    result.not_known = not_known
    if result.available_gib is not None and result.total_gib is not None:
        result.changes = list(_changes(given, result, found, server, base))
    return result


def _measured(given: Stated, base: Estimate | None, name: str | None, version: str | None) -> Explained:
    total, share = (
        given.number("memory.total_gib"),
        given.number("memory.utilization", "argument.gpu_memory_utilization"),
    )
    requested = given.number("memory.requested_gib")
    if total is None and base is not None:
        total = base.total_gib
    if share is None and (base is not None or version):
        share = (
            base.gpu_memory_utilization if base is not None else releases.default_utilization(releases.read(version))
        )
    if requested is None and total is not None and share is not None:
        requested = total * share
    weights, peak, other = (given.number(f"memory.{n}_gib") for n in ("weights", "activation", "non_torch"))
    graphs, available = given.number("memory.graphs_gib"), given.number("memory.available_kv_gib")
    tokens, length = (
        given.whole("engine.kv_cache_tokens"),
        given.whole("engine.max_model_len", "argument.max_model_len"),
    )
    needed = given.number("memory.needed_kv_gib")
    parts: list[Part] = []

    def add(kind: str, value: float | None, estimated: float | None, *, inside: bool = True) -> None:
        if value is not None:
            parts.append(
                Part(name=kind, gib=round(value, 3), origin="stated", inside=inside, estimate_gib=_round(estimated))
            )

    add("weights", weights, base.weights.value if base else None)
    add("activations", peak, base.activations.value if base else None)
    add("non_torch", other, base.non_torch.value if base else None)
    counted = releases.counts_graphs(releases.read(version))
    add("cuda_graphs", graphs, base.graphs.value if base else None, inside=counted)
    if requested is not None and available is not None and weights is not None and (peak is None or other is None):
        rest = requested - available - weights - sum(p or 0.0 for p in (peak, other)) - (graphs or 0.0) * counted
        if rest > 0.005:
            estimated = (
                base.activations.value + base.non_torch.value if base and peak is None and other is None else None
            )
            parts.append(Part(name="other", gib=round(rest, 3), origin="derived", estimate_gib=_round(estimated)))
    add(
        "kv_cache",
        max(0.0, available) if available is not None else None,
        base.available.value if base and base.available else None,
    )
    if total is not None and requested is not None and parts:
        parts.append(Part(name="unused", gib=round(max(0.0, total - requested), 3), origin="derived"))
    per_token = available * GIB / tokens if available and tokens else None
    unexplained = None
    if base is not None and base.layout is not None and available and tokens:
        expected = base.layout.printed_tokens(base.layout.blocks_in(int(available * GIB)), length or base.max_model_len)
        unexplained = round(100 * (tokens - expected) / expected, 2) if expected else None
    short = needed is not None and available is not None and needed > available
    return Explained(
        model=name, vllm_version=version, total_gib=total, requested_gib=_round(requested), available_gib=available, needed_gib=needed,
        missing_gib=round(needed - available, 3) if short and needed is not None and available is not None else None,
        kv_cache_tokens=tokens, max_model_len=length, kv_bytes_per_token=per_token, unexplained_percent=unexplained, parts=parts,
    )  # fmt: skip


def _round(value: float | None) -> float | None:
    return round(value, 3) if value is not None else None


def _changes(
    given: Stated, result: Explained, found: sources.Found | None, server: Server | None, base: Estimate | None
) -> Iterator[Predicted]:
    """The usual changes, each alone."""
    available, total = result.available_gib or 0.0, result.total_gib or 0.0
    share = (result.requested_gib or 0.0) / total if total else 0.0
    version = releases.read(result.vllm_version)
    if 0 < share < 0.95:
        # The fraction is of the whole card and nothing else changes with it.
        yield _predicted("--gpu-memory-utilization 0.95", available + (0.95 - share) * total, result, given, base)
    graphs = given.number("memory.graphs_gib") or 0.0
    if graphs > 0 and not given.flag("argument.enforce_eager") and releases.counts_graphs(version):
        yield _predicted("--enforce-eager", available + graphs, result, given, base)
    if found is None or server is None or base is None or base.available is None:
        if result.kv_bytes_per_token and given.text("argument.kv_cache_dtype") in (None, "auto"):
            tokens = int(available * GIB / result.kv_bytes_per_token * 2)
            length = result.max_model_len
            yield Predicted(flags="--kv-cache-dtype fp8", available_gib=round(available, 2), tokens=tokens,
                            concurrency=round(tokens / length, 2) if length else None, length=length)  # fmt: skip
        return
    asked: list[dict[str, Any]] = []
    if server.kv_cache_dtype == "auto":
        asked.append({"kv_cache_dtype": "fp8"})
    if base.max_num_batched_tokens > 2048:
        asked.append({"max_num_batched_tokens": 2048})
    if base.max_num_seqs > 128:
        asked.append({"max_num_seqs": 128})
    asked.append({"tensor_parallel_size": server.tensor_parallel_size * 2})
    if base.max_model_len > 8192:
        asked.append({"max_model_len": base.max_model_len // 2})
    for changes in asked:
        try:
            other = estimate(found.model, replace(server, **changes))
        except ConfigError:
            continue
        if other.available is None:
            continue
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        room = available + other.available.value - base.available.value
        yield _predicted(flags, room, result, given, other, length=changes.get("max_model_len"))


def _predicted(
    flags: str, room: float, result: Explained, given: Stated, layout_of: Estimate | None, length: int | None = None
) -> Predicted:
    room = max(0.0, room)
    length = length or result.max_model_len or (layout_of.max_model_len if layout_of else None)
    if layout_of is not None and layout_of.layout is not None and length:
        blocks = layout_of.layout.blocks_in(int(room * GIB))
        return Predicted(flags=flags, available_gib=round(room, 2), tokens=layout_of.layout.printed_tokens(blocks, length),
                         concurrency=round(layout_of.layout.concurrency(blocks, length), 2), length=length)  # fmt: skip
    if result.kv_bytes_per_token:
        tokens = int(room * GIB / result.kv_bytes_per_token)
        return Predicted(flags=flags, available_gib=round(room, 2), tokens=tokens,
                         concurrency=round(tokens / length, 2) if length else None, length=length)  # fmt: skip
    return Predicted(flags=flags, available_gib=round(room, 2))
