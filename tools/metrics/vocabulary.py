"""One vocabulary for the numbers of every vLLM version.

A :class:`Quantity` is what a diagnosis speaks of ("how full is the KV cache"); a :class:`Spelling` is how some
versions export it. Whoever reads numbers, from a page or through PromQL, translates them with this table and hands
quantities on, so that nothing behind it knows a version's names.

The names and their ranges come from vLLM's sources (vllm/engine/metrics.py for engine V0, vllm/v1/metrics/loggers.py
and vllm/v1/spec_decode/metrics.py for V1, and the connectors below vllm/distributed/kv_transfer), releases 0.4.0 to
0.33.0. They are written without the prefix ``vllm:`` and without the suffixes that the exposition format adds to
counters (``_total``) and histograms (``_bucket``, ``_sum``, ``_count``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "histogram", "info"]
Combine = Literal["newest", "sum"]

#: vLLM's own prefix first; then what Ray makes of it (RayPrometheusStatLogger, vllm/v1/metrics/ray_wrappers.py: Ray
#: forbids colons and puts its own name in front) and what collectors without colons make of it.
PREFIXES: Final = ("vllm:", "ray_vllm_", "ray_vllm:", "vllm_")


@dataclass(frozen=True, slots=True)
class Spelling:
    """One exported name. ``since`` and ``until`` are the first and last release that exports it (None: still)."""

    name: str
    since: str
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that is measured.

    ``spellings`` has the newest name first; where a page exports two, the first one counts, unless ``combine`` says
    that they are parts of one sum. ``label`` is the label that splits it ("finished_reason"). ``prefixed`` is False
    for what the web server or the Python runtime exports under a name of its own. ``unit`` is "1" for shares.
    """

    key: str
    kind: Kind
    unit: str
    spellings: tuple[Spelling, ...]
    label: str | None = None
    combine: Combine = "newest"
    prefixed: bool = True

    def exposed(self, spelling: Spelling, prefix: str = "vllm:") -> str:
        """The name as a metrics page has it: ``vllm:num_preemptions_total``; of a histogram the name of its family."""
        name = (prefix if self.prefixed else "") + spelling.name
        return f"{name}_total" if self.kind == "counter" else name

    def names(self, prefix: str = "vllm:") -> tuple[str, ...]:
        """Every exposed name, the newest first."""
        return tuple(self.exposed(spelling, prefix) for spelling in self.spellings)


def _gauge(key: str, unit: str, *spellings: Spelling, label: str | None = None) -> Quantity:
    return Quantity(key, "gauge", unit, spellings, label)


def _counter(
    key: str, unit: str, *spellings: Spelling, label: str | None = None, combine: Combine = "newest"
) -> Quantity:
    return Quantity(key, "counter", unit, spellings, label, combine)


def _histogram(key: str, unit: str, *spellings: Spelling) -> Quantity:
    return Quantity(key, "histogram", unit, spellings)


QUANTITIES: Final[tuple[Quantity, ...]] = (
    # Load
    _gauge("running", "requests", Spelling("num_requests_running", "0.4.0")),
    _gauge("waiting", "requests", Spelling("num_requests_waiting", "0.4.0")),
    _gauge("waiting_by_reason", "requests", Spelling("num_requests_waiting_by_reason", "0.20.0"), label="reason"),
    _gauge("swapped", "requests", Spelling("num_requests_swapped", "0.4.0", "0.9.0.1")),
    _gauge(
        "kv_usage",
        "1",
        Spelling("kv_cache_usage_perc", "0.9.2"),
        Spelling("gpu_cache_usage_perc", "0.4.0", "0.11.2"),
    ),
    _counter("preemptions", "requests", Spelling("num_preemptions", "0.4.3")),
    _counter("prompt_tokens", "tokens", Spelling("prompt_tokens", "0.4.0")),
    _counter("generation_tokens", "tokens", Spelling("generation_tokens", "0.4.0")),
    _counter("finished", "requests", Spelling("request_success", "0.4.2"), label="finished_reason"),
    _counter("refused", "requests", Spelling("admission_rejections", "0.32.0"), label="reason"),
    # Time, per request unless said otherwise
    _histogram("time_to_first_token", "s", Spelling("time_to_first_token_seconds", "0.4.0")),
    _histogram(  # per token
        "inter_token_latency",
        "s",
        Spelling("inter_token_latency_seconds", "0.10.2"),
        Spelling("time_per_output_token_seconds", "0.4.0", "0.14.1"),
    ),
    _histogram("e2e_latency", "s", Spelling("e2e_request_latency_seconds", "0.4.0")),
    _histogram(
        "queue_time",
        "s",
        Spelling("request_queue_time_seconds", "0.6.4"),
        Spelling("time_in_queue_requests", "0.6.4", "0.9.0.1"),
    ),
    _histogram("prefill_time", "s", Spelling("request_prefill_time_seconds", "0.6.4")),
    _histogram("decode_time", "s", Spelling("request_decode_time_seconds", "0.6.4")),
    # Size
    _histogram("request_prompt_tokens", "tokens", Spelling("request_prompt_tokens", "0.4.2")),
    _histogram("request_generation_tokens", "tokens", Spelling("request_generation_tokens", "0.4.2")),
    _histogram("iteration_tokens", "tokens", Spelling("iteration_tokens_total", "0.6.4")),
    # Caches: tokens in engine V1 (blocks in its first releases); both counters of a pair count the same
    _counter(
        "prefix_queries",
        "tokens",
        Spelling("prefix_cache_queries", "0.9.2"),
        Spelling("gpu_prefix_cache_queries", "0.7.3", "0.11.2"),
    ),
    _counter(
        "prefix_hits",
        "tokens",
        Spelling("prefix_cache_hits", "0.9.2"),
        Spelling("gpu_prefix_cache_hits", "0.7.3", "0.11.2"),
    ),
    _counter("external_prefix_queries", "tokens", Spelling("external_prefix_cache_queries", "0.11.1")),
    _counter("external_prefix_hits", "tokens", Spelling("external_prefix_cache_hits", "0.11.1")),
    _counter("mm_cache_queries", "items", Spelling("mm_cache_queries", "0.11.1")),
    _counter("mm_cache_hits", "items", Spelling("mm_cache_hits", "0.11.1")),
    # Speculative decoding; the counters have these names in both engines
    _counter("draft_tokens", "tokens", Spelling("spec_decode_num_draft_tokens", "0.5.3")),
    _counter("accepted_tokens", "tokens", Spelling("spec_decode_num_accepted_tokens", "0.5.3")),
    _counter("drafts", "drafts", Spelling("spec_decode_num_drafts", "0.8.5")),
    # Trouble that has a counter of its own
    _counter("corrupted", "requests", Spelling("corrupted_requests", "0.11.1")),
    _counter(
        "transfer_failures",
        "transfers",
        Spelling("nixl_num_failed_transfers", "0.11.1"),
        Spelling("nixl_num_failed_notifications", "0.11.1"),
        Spelling("nixl_num_kv_expired_reqs", "0.15.0"),
        Spelling("mooncake_num_failed_transfers", "0.33.0"),
        Spelling("mooncake_num_failed_recvs", "0.33.0"),
        Spelling("mooncake_num_kv_expired_reqs", "0.33.0"),
        Spelling("hf3fs_num_failed_load", "0.20.0"),
        Spelling("hf3fs_num_failed_save", "0.20.0"),
        Spelling("umbp_transfer_failed", "0.33.0"),
        combine="sum",
    ),
    # What the server says of itself
    _gauge("sleep_state", "1", Spelling("engine_sleep_state", "0.11.1"), label="sleep_state"),
    Quantity("lora", "info", "1", (Spelling("lora_requests_info", "0.6.4"),)),
    Quantity("cache_config", "info", "1", (Spelling("cache_config_info", "0.4.0"),)),
    # Not vLLM's own: prometheus-fastapi-instrumentator and prometheus_client. Both vanish with several API servers.
    Quantity("http_requests", "counter", "requests", (Spelling("http_requests", "0.4.0"),), "status", prefixed=False),
    Quantity("started", "gauge", "s", (Spelling("process_start_time_seconds", "0.4.0"),), prefixed=False),
)

BY_KEY: Final[Mapping[str, Quantity]] = {quantity.key: quantity for quantity in QUANTITIES}

#: Labels that tell engines of one page apart. Everything else that is not a quantity's own label is summed over.
ENGINE_LABELS: Final = ("model_name", "engine", "ReplicaId")

_SUFFIXES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "gauge": ("",),
    "info": ("",),
    # Without the suffix for gateways that drop it; prometheus_client always adds it.
    "counter": ("_total", ""),
    "histogram": ("_bucket", "_sum", "_count"),
}


def _sample_names() -> Iterator[tuple[str, tuple[Quantity, int, str]]]:
    for quantity in QUANTITIES:
        prefixes = PREFIXES if quantity.prefixed else ("",)
        for place, spelling in enumerate(quantity.spellings):
            for suffix in _SUFFIXES[quantity.kind]:
                for prefix in prefixes:
                    yield f"{prefix}{spelling.name}{suffix}", (quantity, place, suffix)


#: Every sample name that a page may have -> its quantity, which of the quantity's spellings it is, and the suffix.
SAMPLES: Final[Mapping[str, tuple[Quantity, int, str]]] = dict(_sample_names())
