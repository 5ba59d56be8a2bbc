"""What is said about figures of a live server: summaries, notes with computed advice, and what to look at next.

Only arithmetic and the choice of sentences happens here; the sentences stand in ``knowledge/sentences.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from assistant.diagnosis.model import Language, NextStep, Verdict
from assistant.diagnosis.truth import Facts
from knowledge.catalog import Catalog

#: Of the KV cache, this share is planned with: the rest is room for answers that grow longer than the mean.
PLANNED_SHARE = 0.9
#: A window that told nothing is asked for again with at least this many seconds.
LONGER_WINDOW_S = 10
#: Above this use of the cache a healthy answer says how little is left.
NEARLY_FULL_PERCENT = 90.0


def is_measured(facts: Facts) -> bool:
    """Whether a live server was looked at."""
    return "metrics.page" in facts.values


def summary(verdict: Verdict, facts: Facts, catalog: Catalog, language: Language) -> str | None:
    """The sentence for a healthy or undecided live server; None where the figures have nothing to add."""
    if not is_measured(facts) or verdict == "cause":
        return None
    if verdict == "healthy":
        return _healthy(facts, catalog, language)
    for key, places in _undecided(facts):
        return catalog.word(key, language, **places)
    return None


def _healthy(facts: Facts, catalog: Catalog, language: Language) -> str:
    if facts.value("metrics.activity") == "idle":
        return catalog.word("live-idle", language)
    return catalog.word(
        "live-healthy",
        language,
        seconds=_short(facts.value("metrics.seconds")),
        running=_short(facts.value("metrics.running")),
        waiting=_short(facts.value("metrics.waiting")),
        rate=_short(facts.value("metrics.generation_tokens_per_second")),
    )


def _undecided(facts: Facts) -> Iterator[tuple[str, dict[str, str]]]:
    """The reasons for not deciding, the plainest first."""
    page = str(facts.value("metrics.page"))
    quote = facts.values["metrics.page"].quote
    if page != "vllm":
        yield f"live-page-{page}", {"detail": quote}
    if facts.value("metrics.window") == "none":
        yield "live-page-too-late", {"detail": quote}
    health = facts.values.get("metrics.health")
    if health is not None and health.value == "failing":
        yield "live-health-failing", {"detail": health.quote}
    if facts.value("metrics.asleep") == "yes":
        yield "live-asleep", {}
    if facts.value("metrics.window") == "one-look":
        yield "live-one-look", {}
    unreadable = [
        item for item in facts.values.values() if item.name.startswith("metrics.") and item.state == "unknown"
    ]
    if unreadable:
        yield "live-unreadable", {"detail": unreadable[0].why_unknown}
    if facts.value("metrics.restarted") == "yes":
        yield "live-restarted", {}
    if facts.value("metrics.activity") == "still":
        yield "live-still", {"seconds": _short(facts.value("metrics.seconds"))}
    if health is not None and health.value == "silent":
        yield "live-health-silent", {"detail": health.quote}
    for name, limit, key in (
        ("metrics.failed_share", 0.02, "live-failing-requests"),
        ("metrics.server_error_share", 0.02, "live-server-errors"),
        ("metrics.client_error_share", 0.2, "live-client-errors"),
        ("metrics.aborted_share", 0.5, "live-aborted-requests"),
    ):
        share = facts.value(name)
        if isinstance(share, float) and share >= limit:
            yield key, {"percent": _short(round(share * 100, 1))}
    if facts.value("metrics.cut") == "yes":
        yield "live-cut", {}


def notes(verdict: Verdict, facts: Facts, catalog: Catalog, language: Language) -> tuple[str, ...]:
    """Figures that belong beside the verdict: uneven engines, capacity, how full the cache is."""
    if not is_measured(facts):
        return ()
    found = []
    if facts.value("metrics.balance") == "uneven":
        found.append(catalog.word("live-uneven", language, loads=facts.values["metrics.balance"].quote))
    if facts.value("metrics.health") == "failing" and verdict == "cause":
        found.append(catalog.word("live-health-failing", language, detail=facts.values["metrics.health"].quote))
    usage = facts.value("metrics.kv_percent")
    if verdict == "healthy" and isinstance(usage, float) and usage >= NEARLY_FULL_PERCENT:
        found.append(catalog.word("live-nearly-full", language, percent=_short(usage)))
    if (facts.value("metrics.waiting") or 0) > 0 and facts.value("metrics.activity") == "moving":
        found.extend(_capacity(facts, catalog, language))
    return tuple(found)


def sequences_that_fit(facts: Facts) -> int | None:
    """Requests that the KV cache holds at once: from how full it is with those that run, or from their mean length."""
    running, usage = _number(facts, "metrics.running"), _number(facts, "metrics.kv_percent")
    if running and usage and usage >= 1.0:
        return max(1, math.floor(running / (usage / 100.0) * PLANNED_SHARE))
    tokens, length = _number(facts, "engine.kv_cache_tokens"), request_tokens(facts)
    if tokens and length:
        return max(1, math.floor(tokens * PLANNED_SHARE / length))
    return None


def sequences_for_the_queue(facts: Facts) -> int | None:
    """A ``max_num_seqs`` that lets everybody run who runs or waits now, where the cache has room for it.

    Up to the next multiple of 8, as the sizes of captured graphs go. None where the cache is the limit already.
    """
    running, waiting = _number(facts, "metrics.running"), _number(facts, "metrics.waiting")
    usage, fit = _number(facts, "metrics.kv_percent"), sequences_that_fit(facts)
    if not running or not waiting or fit is None or usage is None or usage >= 80 or fit <= running:
        return None
    up = math.ceil((running + waiting) / 8) * 8
    return up if up <= fit else fit


def request_tokens(facts: Facts) -> float | None:
    """Tokens of a mean request, prompt and answer together, at its end."""
    prompt, answer = _number(facts, "metrics.prompt_length"), _number(facts, "metrics.answer_length")
    if answer is None:
        per_second, finished = (
            _number(facts, "metrics.generation_tokens_per_second"),
            _number(facts, "metrics.requests_per_second"),
        )
        answer = per_second / finished if per_second is not None and finished else None
    return prompt + answer if prompt is not None and answer is not None else None


def replicas_needed(facts: Facts) -> int | None:
    """Servers of this kind that would run everything that runs or waits now, at this server's concurrency."""
    running, waiting = _number(facts, "metrics.running"), _number(facts, "metrics.waiting")
    if not running or waiting is None:
        return None
    usage, fit = _number(facts, "metrics.kv_percent"), sequences_that_fit(facts)
    at_once = max(running, fit) if fit is not None and usage is not None and usage >= 80 else running
    return math.ceil((running + waiting) / at_once)


def _capacity(facts: Facts, catalog: Catalog, language: Language) -> Iterator[str]:
    running, waiting = _number(facts, "metrics.running"), _number(facts, "metrics.waiting")
    tokens, length = _number(facts, "engine.kv_cache_tokens"), request_tokens(facts)
    if tokens and length:
        yield catalog.word(
            "live-cache-holds",
            language,
            tokens=_short(round(tokens)),
            length=_short(round(length)),
            requests=_short(max(1, math.floor(tokens / length))),
        )
    fit, usage = sequences_that_fit(facts), _number(facts, "metrics.kv_percent")
    wanted = sequences_for_the_queue(facts)
    if wanted is not None:
        yield catalog.word(
            "live-more-sequences",
            language,
            running=_short(round(running or 0)),
            percent=_short(usage),
            fit=_short(fit),
            wanted=wanted,
        )
    replicas = replicas_needed(facts)
    if replicas is not None and replicas > 1 and (wanted is None or wanted < (running or 0) + (waiting or 0)):
        yield catalog.word(
            "live-replicas",
            language,
            running=_short(round(running or 0)),
            waiting=_short(round(waiting or 0)),
            replicas=replicas,
        )


def next_steps(
    verdict: Verdict, facts: Facts, catalog: Catalog, language: Language, target: str | None
) -> tuple[NextStep, ...]:
    """What a further look would tell, for an undecided live server."""
    if verdict != "unknown" or not is_measured(facts) or target is None:
        return ()
    steps = []
    short = facts.value("metrics.window") == "one-look" or facts.value("metrics.activity") == "still"
    late = facts.value("metrics.page") in ("too-late", "unanswered")  # a burst, or a server that has just gone on
    if short or late:
        steps.append(
            NextStep(
                "look-longer",
                "run_tool",
                catalog.word("live-look-longer", language, seconds=LONGER_WINDOW_S),
                "fetch_metrics",
                {"target": target, "window_s": LONGER_WINDOW_S},
                "reads",
            )
        )
    if facts.value("metrics.activity") == "still":
        steps.append(
            NextStep(
                "probe", "run_tool", catalog.word("live-probe", language), "probe_server", {"target": target}, "loads"
            )
        )
    return tuple(steps)


def _number(facts: Facts, name: str) -> float | None:
    value = facts.value(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".") if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else "?"
