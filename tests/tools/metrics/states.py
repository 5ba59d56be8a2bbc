"""States of servers, each with the verdicts that are right for it: a cause's id, "healthy" or "unknown"."""

from __future__ import annotations

from dataclasses import replace

from tests.tools.metrics.pages import EngineState, State

WORKING = EngineState(running=8, kv=0.4, prompt=2000, generation=800, finished={"stop": 4}, queries=2000, hits=1200)
IDLE = EngineState()
FROZEN = EngineState(running=6, waiting=2, kv=0.2)
QUEUED = replace(WORKING, running=16, waiting=60, kv=0.15, queue=9.0, first_token=9.4, finished={"stop": 3})
SATURATED = replace(WORKING, running=30, waiting=14, kv=0.985, queue=4.0, first_token=4.5)


def one(engine: EngineState, **more: object) -> State:
    return State(engines=(engine,), **more)  # type: ignore[arg-type]


def _sure(*verdicts: str) -> tuple[str, ...]:
    return verdicts


STATES: dict[str, tuple[State, tuple[str, ...]]] = {
    # Nothing wrong
    "healthy": (one(WORKING), _sure("healthy")),
    "healthy-0.6": (one(WORKING, generation="0.6"), _sure("healthy")),
    "healthy-0.8": (one(WORKING, generation="0.8"), _sure("healthy")),
    "healthy-both-names": (one(WORKING, generation="0.10"), _sure("healthy")),
    "healthy-ray": (one(WORKING, generation="ray"), _sure("healthy")),
    "healthy-two-engines": (State((WORKING, WORKING)), _sure("healthy")),
    "idle": (one(IDLE), _sure("healthy")),
    "idle-with-a-past": (one(replace(IDLE, past_preemptions=900, past_first_token=30.0)), _sure("healthy")),
    "slow-once-quick-now": (one(replace(WORKING, past_first_token=40.0, past_preemptions=50)), _sure("healthy")),
    "burst": (one(replace(WORKING, waiting=(0, 0, 22, 0, 0, 0))), _sure("healthy")),
    "busy-and-quick": (
        one(replace(WORKING, running=180, waiting=12, kv=0.7, finished={"stop": 60}, queue=0.2, first_token=0.5)),
        _sure("healthy"),
    ),
    "no-prefix-caching": (one(replace(WORKING, queries=0, hits=0)), _sure("healthy")),
    "short-prompts-never-hit": (
        one(replace(WORKING, prompt=300, queries=300, hits=0, prompt_length=40.0)),
        _sure("healthy"),
    ),
    "good-drafts": (one(replace(WORKING, drafted=900, accepted=620)), _sure("healthy")),
    "adapters-fit": (
        one(WORKING, lora={"max_lora": "4", "running_lora_adapters": "a,b", "waiting_lora_adapters": ""}),
        _sure("healthy"),
    ),
    "uneven-but-nobody-waits": (State((replace(WORKING, running=40), IDLE)), _sure("healthy")),
    "long-chunked-prefill": (
        one(EngineState(running=1, kv=(0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.34, 0.38, 0.42, 0.46, 0.5))),
        _sure("healthy", "unknown"),
    ),
    # A cause
    "queue": (one(QUEUED), _sure("performance/queue-buildup")),
    "queue-0.6": (one(QUEUED, generation="0.6"), _sure("performance/queue-buildup")),
    "queue-0.8": (one(QUEUED, generation="0.8"), _sure("performance/queue-buildup")),
    "queue-before-anything-ends": (
        one(replace(QUEUED, finished={}, queue=0.01)),
        _sure("performance/queue-buildup"),
    ),
    "queue-of-one-engine": (State((WORKING, QUEUED, WORKING, WORKING)), _sure("performance/queue-buildup")),
    "small-queue-long-wait": (
        one(replace(WORKING, waiting=4, queue=6.0, first_token=6.5, finished={"stop": 1})),
        _sure("performance/queue-buildup"),
    ),
    "turned-away": (one(replace(WORKING, kv=0.6), turned_away=2.0), _sure("performance/queue-buildup")),
    "cache-full": (one(SATURATED), _sure("performance/kv-cache-saturated")),
    "cache-full-0.6": (one(SATURATED, generation="0.6"), _sure("performance/kv-cache-saturated")),
    "cache-full-of-one-engine": (State((IDLE, SATURATED)), _sure("performance/kv-cache-saturated")),
    "preempting": (one(replace(SATURATED, preemptions=2.0)), _sure("memory/kv-cache-preemption")),
    "preempting-without-a-queue": (
        one(replace(WORKING, kv=0.93, preemptions=1.0)),
        _sure("memory/kv-cache-preemption"),
    ),
    "swapping-0.6": (
        one(replace(SATURATED, swapped=7), generation="0.6"),
        _sure("memory/kv-cache-preemption", "performance/kv-cache-saturated"),
    ),
    "stalled": (one(FROZEN), _sure("engine/stalled")),
    "stalled-0.6": (one(FROZEN, generation="0.6"), _sure("engine/stalled")),
    "stalled-and-requests-arrive": (
        one(replace(FROZEN, waiting=(2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7))),
        _sure("engine/stalled"),
    ),
    "stalled-one-of-two": (State((WORKING, FROZEN)), _sure("engine/stalled")),
    "stalled-one-of-two-models": (
        State((WORKING, FROZEN), models=("org/a", "org/b")),
        _sure("engine/stalled"),
    ),
    "stalled-with-a-full-cache": (one(replace(FROZEN, kv=0.99, waiting=30)), _sure("engine/stalled")),
    "waiting-and-none-runs": (one(replace(FROZEN, running=0, waiting=5)), _sure("engine/stalled")),
    "slow-first-token": (
        one(replace(WORKING, running=3, first_token=7.0, prefill=6.8, prompt=40_000, finished={"stop": 1})),
        _sure("performance/slow-first-token"),
    ),
    "slow-first-token-0.6": (
        one(replace(WORKING, first_token=7.0, prefill=6.8, finished={"stop": 1}), generation="0.6"),
        _sure("performance/slow-first-token"),
    ),
    "slow-decode": (one(replace(WORKING, token=0.4, generation=30)), _sure("performance/slow-decode")),
    "slow-decode-0.8": (
        one(replace(WORKING, token=0.4, generation=30), generation="0.8"),
        _sure("performance/slow-decode"),
    ),
    "prefix-cold": (one(replace(WORKING, queries=4000, hits=60)), _sure("engine/prefix-cache")),
    "prefix-cold-0.8": (one(replace(WORKING, queries=4000, hits=60), generation="0.8"), _sure("engine/prefix-cache")),
    "poor-drafts": (one(replace(WORKING, drafted=900, accepted=90)), _sure("engine/speculative-decoding")),
    "adapters-wait": (
        one(
            replace(WORKING, waiting=3, queue=0.5),
            lora={"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": "c,d"},
        ),
        _sure("engine/lora"),
    ),
    "transfers-fail": (one(replace(WORKING, failed_transfers=0.6)), _sure("distributed/kv-transfer")),
    "corrupted": (one(replace(WORKING, corrupted=0.8)), _sure("quality/garbage-output")),
    "wrong-route": (
        one(WORKING, http={("none", "4xx"): 5.0, ("/v1/completions", "2xx"): 3.0}),
        _sure("serving/wrong-route"),
    ),
    "first-request-never-ends": (
        one(EngineState(running=1, kv=0.01, total_generated=0), age=7200.0),
        _sure("engine/stalled"),
    ),
    # Not to be told from metrics
    "refused-requests": (
        one(WORKING, http={("/v1/chat/completions", "4xx"): 5.0, ("/v1/chat/completions", "2xx"): 3.0}),
        _sure("unknown"),
    ),
    "server-errors": (
        one(WORKING, http={("/v1/completions", "5xx"): 1.0, ("/v1/completions", "2xx"): 3.0}),
        _sure("unknown"),
    ),
    "failing-requests": (one(replace(WORKING, finished={"stop": 3, "error": 1})), _sure("unknown")),
    "clients-give-up": (one(replace(WORKING, finished={"stop": 1, "abort": 3})), _sure("unknown")),
    "first-request-compiles": (
        one(
            EngineState(running=1, kv=0.01, total_generated=0),
            age=60.0,
        ),
        _sure("unknown"),
    ),
    "asleep-with-a-request": (one(replace(FROZEN, asleep=True)), _sure("unknown")),
    "usage-is-no-number": (one(replace(FROZEN, kv="NaN")), _sure("unknown")),
    "running-is-infinite": (one(replace(WORKING, running="+Inf")), _sure("unknown")),  # type: ignore[arg-type]
    "restarts-meanwhile": (one(WORKING, restart_at=2.0), _sure("unknown")),
    "health-fails": (one(IDLE, health=503), _sure("unknown")),
}
