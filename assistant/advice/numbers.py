"""Named calculations for the values of fixes.

Each takes the facts and what the server was started with, and returns a :class:`Number`: the value to type, or
``None`` where an input is unknown (then no number is given), and what the arithmetic says about it as a key of
``sentences.yaml``. ``enough`` is false where the sum shows that this fix alone cannot do it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from assistant.advice.started import Started
from assistant.diagnosis.truth import Facts
from knowledge.versions import parse
from knowledge.vllm_tables import flag

#: A KV cache block of the CUDA platforms holds this many tokens (vllm/config/cache.py, CacheConfig.block_size).
BLOCK_TOKENS = 16
#: More of the card than this is never asked for: CUDA's context and fragmentation take the rest (own choice; vLLM's
#: default was 0.90 and is 0.92 since 0.20).
MOST_UTILIZATION = 0.97
#: What vLLM runs at once where nobody set it (vllm/engine/arg_utils.py: 256 for servers before the tables say None).
_SEQUENCES = 256
#: The V1 engine always splits prefills; it is the only engine of `vllm serve` since 0.9 for what it supports.
CHUNKED_SINCE = (0, 9, 0, 0)


@dataclass(frozen=True, slots=True)
class Number:
    """A value as it is typed, and the sentence that explains it with its places."""

    value: str | None = None
    says: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    enough: bool = True


UNKNOWN = Number()
Calculation = Callable[[Facts, Started], Number]


#: GiB in a log have two decimals.
_ROUNDED_GIB = 0.005


def _number(facts: Facts, name: str) -> float | None:
    value = facts.value(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        return None
    return float(value)


def current(facts: Facts, started: Started, python: str) -> float | None:
    """The number that the argument has: as given, else as stated elsewhere, else this version's default."""
    given = started.argument(python)
    text = given.values[0].literal if given is not None and given.values else None
    known = flag(started.version or None, python)
    for value in (text, facts.value(f"argument.{python}"), known.default if known is not None else None):
        if value is None or isinstance(value, bool):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number) and abs(number) < 1e12:
            return number
    return None


def _gib(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _total(facts: Facts, started: Started) -> float | None:
    """GiB of one GPU: as stated, or from what was requested at a known share."""
    total = _number(facts, "memory.total_gib")
    requested, share = _number(facts, "memory.requested_gib"), _share(facts, started)
    if total is None and requested and share:
        total = requested / share
    return total if total and total > 0 else None


def _share(facts: Facts, started: Started) -> float | None:
    share = _number(facts, "memory.utilization") or current(facts, started, "gpu_memory_utilization")
    return share if share and 0 < share <= 1 else None


def _cache(facts: Facts) -> tuple[float, float] | None:
    """GiB that one longest request needs, and GiB that are there."""
    needed, available = _number(facts, "memory.needed_kv_gib"), _number(facts, "memory.available_kv_gib")
    return (needed, available) if needed and needed > 0 and available is not None else None


def _fitting_tokens(facts: Facts) -> float | None:
    stated = _number(facts, "memory.longest_context") or _number(facts, "engine.kv_cache_tokens")
    if stated is not None:
        return stated
    cache, longest = _cache(facts), _number(facts, "engine.max_model_len")
    if not cache or not longest or not 0 < cache[1] < cache[0]:
        return None
    # Layers with a window make the need grow slower than the length: in proportion is the safe side. So is the worse end
    # of what two printed decimals can mean.
    return longest * (cache[1] - _ROUNDED_GIB) / (cache[0] + _ROUNDED_GIB)


def longest_context_that_fits(facts: Facts, started: Started) -> Number:
    """Tokens: what the log states as the longest that fits, or what its own figures allow, in whole blocks."""
    longest = _fitting_tokens(facts)
    if longest is None or longest < BLOCK_TOKENS:
        return UNKNOWN
    tokens = int(longest) // BLOCK_TOKENS * BLOCK_TOKENS
    return Number(str(tokens), "number-context", {"tokens": f"{tokens:,}"})


def utilization_that_fits(facts: Facts, started: Started) -> Number:
    """The share of the GPU at which one longest request fits, or a little more than now where the need is unknown."""
    share, total, cache = _share(facts, started), _total(facts, started), _cache(facts)
    free = _number(facts, "memory.free_gib")
    most = min(MOST_UTILIZATION, math.floor(free / total * 100 - 1e-9) / 100) if free and total else MOST_UTILIZATION
    if share is None:
        return Number("0.95")
    if cache is None or total is None:
        wanted = min(most, math.ceil(share * 100 + 4.999) / 100)
        return Number(f"{wanted:.2f}") if wanted > share + 0.005 else Number(enough=False)
    needed, available = cache
    wanted = math.ceil((share + (needed - available) / total) * 100 + 0.5 - 1e-9) / 100
    gained = _gib(max(0.0, (min(wanted, most) - share) * total))
    places = {"gained": gained, "needed": _gib(needed), "available": _gib(available), "most": f"{most:.2f}"}
    if wanted > most:
        return Number(None, "number-utilization-short", places, enough=False)
    return Number(f"{max(wanted, share + 0.01):.2f}", "number-utilization", places)


def utilization_that_leaves_room(facts: Facts, started: Started) -> Number:
    """The share of the GPU that the memory free at start allows, rounded down to a hundredth."""
    free, total = _number(facts, "memory.free_gib"), _number(facts, "memory.total_gib")
    if free is None or total is None or total <= 0 or free <= 0:
        return _a_little_less(facts, started)
    share = math.floor(min(free / total, 0.98) * 100 - 1e-9) / 100
    if share < 0.05:
        return Number(None, "number-free-nothing", {"free": _gib(free), "total": _gib(total)}, enough=False)
    return Number(f"{share:.2f}", "number-free", {"free": _gib(free), "total": _gib(total)})


def _a_little_less(facts: Facts, started: Started) -> Number:
    """A twentieth of the card less than now: room for what was not foreseen."""
    share = _share(facts, started)
    if share is None or share < 0.15:
        return UNKNOWN
    lower = f"{math.floor(share * 100 - 5 + 1e-6) / 100:.2f}"
    total = _total(facts, started)
    if total is None:
        return Number(lower)
    return Number(lower, "number-left-free", {"gib": _gib(total * (share - float(lower)))})


def fp8_cache(facts: Facts, started: Started) -> Number:
    """``fp8``, and whether half the bytes per token are few enough."""
    cache = _cache(facts)
    if cache is None:
        return Number("fp8")
    needed, available = cache
    places = {"half": _gib(needed / 2), "needed": _gib(needed), "available": _gib(available)}
    return Number("fp8", "number-fp8" if needed / 2 <= available else "number-fp8-short", places)


def one_more_doubling(facts: Facts, started: Started) -> Number:
    """Twice the GPUs, and whether the cache then fits even if every GPU still held all KV heads."""
    size = int(current(facts, started, "tensor_parallel_size") or 1)
    size = 2 * size if 1 <= size <= 512 else 2
    cache, weights, count = _cache(facts), _number(facts, "memory.weights_gib"), _number(facts, "gpu.count")
    if count and count < size:
        return Number(None, "number-gpus-short", {"gpus": str(size), "count": f"{count:.0f}"}, enough=False)
    if cache is None or weights is None:
        return Number(str(size))
    needed, available = cache
    room = available + weights / 2
    places = {"gpus": str(size), "room": _gib(room), "needed": _gib(needed), "half": _gib(needed / 2)}
    key = "number-gpus" if room >= needed else "number-gpus-heads" if room >= needed / 2 else "number-gpus-not"
    return Number(str(size), key, places)


def pipeline_doubling(facts: Facts, started: Started) -> Number:
    """Twice the pipeline stages."""
    size = int(current(facts, started, "pipeline_parallel_size") or 1)
    return Number(str(2 * size)) if 1 <= size <= 64 else UNKNOWN


def available_gpus(facts: Facts, started: Started) -> Number:
    """As many ranks as there are GPUs, where the log states their number."""
    count, size = _number(facts, "gpu.count"), current(facts, started, "tensor_parallel_size")
    if size is not None and size <= 1:
        return Number(enough=False)  # nothing is left to lower
    if count is None or count < 1 or (size is not None and count >= size):
        return UNKNOWN
    return Number(str(int(count)))


_HEADS = re.compile(r"attention heads \((\d{1,5})\)")


def dividing_parallelism(facts: Facts, started: Started) -> Number:
    """The largest size below the present one that divides the attention heads, which the error states."""
    size = current(facts, started, "tensor_parallel_size")
    quotes = (item.quote for rows in facts.messages.values() for item in rows)
    heads = next((int(found.group(1)) for quote in quotes if (found := _HEADS.search(quote))), None)
    if heads is None or size is None or not 2 <= size <= 1024:
        return UNKNOWN
    best = next(n for n in range(int(size) - 1, 0, -1) if heads % n == 0)
    return Number(str(best), "number-divides", {"heads": str(heads), "size": str(best)})


def fewer_sequences(facts: Facts, started: Started) -> Number:
    """What the cache held at its fullest less a tenth, else half of the present number."""
    running, usage = _number(facts, "stats.running_max"), _number(facts, "stats.kv_usage_max_percent")
    now = int(current(facts, started, "max_num_seqs") or _SEQUENCES)
    if running and usage and usage >= 50 and running >= 2:
        fits = max(1, int(running * 90 / usage))
        if fits < now:
            return Number(str(fits), "number-sequences", {"running": f"{running:.0f}", "usage": f"{usage:.0f}", "fits": str(fits)})  # fmt: skip
    return Number(str(now // 2), "number-half", {"now": str(now)}) if now >= 2 else UNKNOWN


def more_sequences(facts: Facts, started: Started) -> Number:
    """Twice the present number."""
    now = int(current(facts, started, "max_num_seqs") or _SEQUENCES)
    return Number(str(2 * now), "number-double", {"now": str(now)}) if 1 <= now <= 65_536 else UNKNOWN


def smaller_step(facts: Facts, started: Started) -> Number:
    """Half of the tokens of a step, never below what one step of all sequences needs; 1024 where it is unknown."""
    now = current(facts, started, "max_num_batched_tokens")
    if now is None:
        # Without chunked prefill one step must hold the longest prompt: no number without knowing that.
        chunked = started.argument("enable_chunked_prefill") is not None
        chunked = chunked or (parse(started.version) or CHUNKED_SINCE) >= CHUNKED_SINCE
        return Number("1024") if chunked else UNKNOWN
    least = current(facts, started, "max_num_seqs") or _SEQUENCES
    half = int(max(now // 2, least))
    return Number(str(half), "number-half", {"now": f"{now:.0f}"}) if half < now else Number(enough=False)


def larger_step(facts: Facts, started: Started) -> Number:
    """Twice the tokens of a step; 16384 where it is unknown."""
    now = current(facts, started, "max_num_batched_tokens")
    return Number(str(int(2 * now)), "number-double", {"now": f"{now:.0f}"}) if now and now > 0 else Number("16384")


_DERIVED = re.compile(r"derived max_model_len \([\w.]{1,60}=(\d{1,9})\b")


def derived_max_model_len(facts: Facts, started: Started) -> Number:
    """Tokens: the longest context that the model's own config allows, as the refusal states it."""
    for rows in facts.messages.values():
        for item in rows:
            found = _DERIVED.search(item.quote)
            if found and int(found.group(1)) > 0:
                return Number(found.group(1), "number-derived", {"tokens": f"{int(found.group(1)):,}"})
    return UNKNOWN


def tensor_as_pipeline(facts: Facts, started: Started) -> Number:
    """As many pipeline stages as there were tensor parallel ranks: the same GPUs, without dividing heads."""
    size = current(facts, started, "tensor_parallel_size")
    return Number(str(int(size))) if size and 2 <= size <= 64 else UNKNOWN


def offloaded_weights(facts: Facts, started: Started) -> Number:
    """GiB of the weights that do not fit beside two GiB of room, where the log states both sides."""
    weights, total, share = _number(facts, "memory.weights_gib"), _total(facts, started), _share(facts, started)
    if weights is None or total is None or share is None:
        return UNKNOWN
    excess = weights + 2 - total * share
    return Number(str(math.ceil(excess))) if 0 < excess < weights else UNKNOWN


_ASKED = re.compile(r"[Tt]he model [`'\"]([^`'\"\s]{1,200})[`'\"] does not exist")


def asked_model_name(facts: Facts, started: Started) -> Number:
    """The name that clients ask for, as the refusal repeats it."""
    for rows in facts.messages.values():
        for item in rows:
            found = _ASKED.search(item.quote)
            if found:
                return Number(found.group(1))
    return UNKNOWN


#: Parsers by model family (docs/features/tool_calling.md of vLLM 0.11 to 0.32); the first that matches counts.
_PARSERS = (
    (r"qwen3[._-]?coder|qwen3\.5", "qwen3_coder"),
    (r"qwen|qwq|hermes", "hermes"),
    (r"llama-?4", "llama4_pythonic"),
    (r"llama-?3", "llama3_json"),
    (r"mistral|ministral|devstral", "mistral"),
    (r"deepseek-?v3", "deepseek_v3"),
    (r"granite-?3", "granite"),
    (r"internlm", "internlm"),
    (r"gpt-?oss", "openai"),
    (r"kimi-?k2", "kimi_k2"),
    (r"glm-?4\.5", "glm45"),
)


def tool_parser_of_model(facts: Facts, started: Started) -> Number:
    """The parser of the model's family, where its name tells the family."""
    name = (started.model.written if started.model is not None else str(facts.value("server.model") or "")).lower()
    for pattern, parser in _PARSERS:
        if re.search(pattern, name[:500]):
            return Number(parser)
    return UNKNOWN


def sequences_for_the_queue(facts: Facts, started: Started) -> Number:
    """Requests: everything on a live server that runs or waits now, as far as the KV cache holds it."""
    from assistant.diagnosis import measured

    if not measured.is_measured(facts):
        return more_sequences(facts, started)
    wanted = measured.sequences_for_the_queue(facts)
    return Number(str(wanted)) if wanted is not None else UNKNOWN


def sequences_without_preemption(facts: Facts, started: Started) -> Number:
    """Requests that the KV cache of a live server holds at once, with a tenth of it to spare."""
    from assistant.diagnosis import measured

    fit = measured.sequences_that_fit(facts) if measured.is_measured(facts) else None
    return Number(str(fit)) if fit is not None else fewer_sequences(facts, started)


#: How much longer than the start that was measured the probe should wait: the next one may find colder caches.
START_MARGIN = 1.5
#: A start that was cut off is taken to need at least this many times the seconds it was given.
CUT_OFF_MARGIN = 2.0


def _start_needs(facts: Facts) -> float | None:
    """Seconds that a start should be given: from one that was measured, else from how far one came that was ended."""
    measured = [_number(facts, name) for name in ("container.startup_s", "log.startup_seconds")]
    known = [seconds for seconds in measured if seconds is not None]
    if known:
        return max(known) * START_MARGIN
    lived = _number(facts, "container.lived_s") or _number(facts, "probe.window_s")
    if lived is None:
        return None
    return max(lived * CUT_OFF_MARGIN, (lived + (_number(facts, "log.seconds_left") or 0.0)) * START_MARGIN)


def startup_failure_threshold(facts: Facts, started: Started) -> Number:
    """``failureThreshold`` for a probe whose window, initialDelaySeconds + failureThreshold x periodSeconds, fits."""
    needs, period = _start_needs(facts), _number(facts, "probe.period_s")
    if needs is None or period is None or period <= 0:
        return UNKNOWN
    fits = math.ceil((needs - (_number(facts, "probe.initial_delay_s") or 0.0)) / period)
    return Number(str(max(fits, int(_number(facts, "probe.failure_threshold") or 0) + 1)))


def startup_failure_threshold_every_10_s(facts: Facts, started: Started) -> Number:
    """The same for a new probe that asks every 10 s (the API's default) without an initial delay."""
    needs = _start_needs(facts)
    return Number(str(math.ceil(needs / 10.0))) if needs is not None else UNKNOWN


NUMBERS: dict[str, Calculation] = {
    "longest_context_that_fits": longest_context_that_fits,
    "utilization_that_fits": utilization_that_fits,
    "utilization_that_leaves_room": utilization_that_leaves_room,
    "fp8_cache": fp8_cache,
    "one_more_doubling": one_more_doubling,
    "pipeline_doubling": pipeline_doubling,
    "available_gpus": available_gpus,
    "dividing_parallelism": dividing_parallelism,
    "fewer_sequences": fewer_sequences,
    "more_sequences": more_sequences,
    "smaller_step": smaller_step,
    "larger_step": larger_step,
    "derived_max_model_len": derived_max_model_len,
    "tensor_as_pipeline": tensor_as_pipeline,
    "offloaded_weights": offloaded_weights,
    "asked_model_name": asked_model_name,
    "tool_parser_of_model": tool_parser_of_model,
    "sequences_for_the_queue": sequences_for_the_queue,
    "sequences_without_preemption": sequences_without_preemption,
    "startup_failure_threshold": startup_failure_threshold,
    "startup_failure_threshold_every_10_s": startup_failure_threshold_every_10_s,
}
