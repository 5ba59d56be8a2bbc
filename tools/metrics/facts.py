"""A server's window as evidence: one fact for each observable below ``metrics.`` and some that logs state as well.

Of several engines the one that is worst off speaks for the server, with its name as the fact's process; how uneven
they are is a fact of its own. A series that the version does not export, or that observed nothing in the window, is
``absent``; one that is exported without a number is ``unknown``. Nothing is ever made zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from tools.evidence import QUOTE_LIMIT, Evidence, LookedAt, Origin, Reading, Value
from tools.metrics.look import STILL_S, stands_still
from tools.metrics.vocabulary import BY_KEY
from tools.metrics.window import Distribution, EngineWindow, ServerWindow
from tools.redaction import clean, redact

#: A process that started this recently may compile or capture graphs for its first requests (vLLM's own limit for a
#: start, VLLM_ENGINE_READY_TIMEOUT_S, is 600 s; a first request after it takes part of that).
YOUNG_S = 600.0
#: Windows shorter than this cannot tell a standstill from one long step.
SHORT_S = STILL_S * 0.8
#: Engines of one server are uneven when one holds this many requests and another less than a quarter of them.
UNEVEN_FROM = 8
UNEVEN_SHARE = 0.25

#: Histograms and what their mean and 95th percentile are called.
_TIMES = (
    ("time_to_first_token", "metrics.first_token_seconds", "metrics.first_token_p95_seconds"),
    ("inter_token_latency", "metrics.token_seconds", "metrics.token_p95_seconds"),
    ("queue_time", "metrics.queue_seconds", "metrics.queue_p95_seconds"),
    ("prefill_time", "metrics.prefill_seconds", ""),
    ("e2e_latency", "metrics.request_seconds", "metrics.request_p95_seconds"),
    ("request_prompt_tokens", "metrics.prompt_length", ""),
    ("request_generation_tokens", "metrics.answer_length", ""),
)
_RATES = (
    ("generation_tokens", "metrics.generation_tokens_per_second"),
    ("prompt_tokens", "metrics.prompt_tokens_per_second"),
    ("preemptions", "metrics.preemptions_per_second"),
)
#: Stated as absent where a measured window has nothing of it: not exported by this version, or nothing observed.
_MAY_BE_ABSENT = (
    "metrics.preemptions_per_second", "metrics.first_token_seconds", "metrics.token_seconds", "metrics.queue_seconds",
    "metrics.prefill_seconds", "metrics.queue_share", "metrics.expected_wait_seconds", "metrics.failed_share",
    "metrics.aborted_share", "metrics.client_error_share", "metrics.server_error_share", "metrics.prefix_hit_percent",
)  # fmt: skip
#: Without these no verdict rests on metrics; every version since 0.4.0 exports them.
NEEDED = ("running", "waiting", "kv_usage", "generation_tokens")


def evidence_of(window: ServerWindow) -> Reading:
    """Everything that the window states."""
    return _Facts(window).read()


def worst(engines: Iterable[EngineWindow]) -> EngineWindow | None:
    """The engine that is worst off: at a standstill, then a full cache with a queue, the queue, the wait."""
    return max(engines, key=_pressure, default=None)


def _pressure(engine: EngineWindow) -> tuple[float, ...]:
    usage, waiting = engine.peak("kv_usage") or 0.0, engine.typical("waiting") or 0.0
    return (
        float(stands_still(engine)),
        float(usage >= 0.95 and waiting > 0),
        waiting,
        engine.mean("time_to_first_token") or 0.0,
        engine.mean("inter_token_latency") or 0.0,
        usage,
    )


class _Facts:
    def __init__(self, window: ServerWindow) -> None:
        self.window = window
        self.at = datetime.fromtimestamp(window.at, UTC) if window.at is not None else None
        self.items: list[Evidence] = []
        self.lacking: list[tuple[str, str]] = []
        self.engine = worst(window.engines)
        several = len(window.engines) > 1
        self.process = clean(str(self.engine.key)) if self.engine is not None and several else None

    def origin(self, *, of_engine: bool = False) -> Origin:
        return Origin(
            clean(self.window.source), process=self.process if of_engine else None, at=self.at, order=len(self.items)
        )

    def state(self, name: str, value: Value, quote: str = "", *, of_engine: bool = False) -> None:
        if isinstance(value, float):
            value = float(f"{value:.6g}")
        quote = redact(clean(quote))[:QUOTE_LIMIT]
        self.items.append(Evidence(name, "present", value, self.origin(of_engine=of_engine), quote))

    def unknown(self, name: str, why: str) -> None:
        self.items.append(Evidence(name, "unknown", None, self.origin(), why_unknown=why))

    def absent(self, name: str) -> None:
        self.items.append(Evidence(name, "absent", None, self.origin()))

    def read(self) -> Reading:
        window = self.window
        self._server()
        if self.engine is not None and window.answer == "vllm":
            self._levels(self.engine)
            self._activity(self.engine)
            self._shares(self.engine)
            self._growth(self.engine)
            self._uneven()
        first = None
        if self.at is not None:
            first = datetime.fromtimestamp((window.at or 0.0) - window.seconds, UTC)
        looked = LookedAt(clean(window.source), first, self.at, window.bytes_read)
        return Reading(tuple(self.items), (), (looked,) if window.answer != "not-asked" else (), tuple(self.lacking))

    def _server(self) -> None:
        window = self.window
        detail = window.detail
        if window.lost:
            detail = f"{window.detail} ({window.looks} looks before succeeded)"
        self.state("metrics.page", window.answer, detail or f"{window.source}: {window.answer}")
        measured = "none" if not window.looks or window.lost else "one-look" if window.looks == 1 else "measured"
        if window.answer != "vllm":
            measured = "none"
            # Words or a log may name a cause all the same; then this says that the server itself was not looked at.
            self.lacking.append((clean(window.source), redact(clean(detail or window.answer))[:QUOTE_LIMIT]))
        elif measured == "measured" and any(not _has(engine, key) for engine in window.engines for key in NEEDED):
            measured = "partly"
        self.state("metrics.window", measured)
        if window.answer == "vllm":
            self.state("incident.phase", "serving")  # the page exists once the server has come up
            self.state("metrics.seconds", round(window.seconds, 1))
            self.state("metrics.cut", "yes" if window.cut else "no")
            self.state("metrics.restarted", "yes" if any(e.restarted for e in window.engines) else "no")
            self.state("metrics.engines", len(window.engines))
        if window.health is not None:
            status = window.health
            word = "ok" if status == 200 else "failing" if status >= 500 else "missing"
            self.state("metrics.health", word, f"GET /health {status}")
        elif window.looks:  # a Prometheus server remembers pages and asks for nothing else
            self.state("metrics.health", "silent" if window.health_detail else "not-asked", window.health_detail)
        if window.version:
            self.state("server.version", window.version, f"GET /version {window.version}")
        if window.models:
            self.state("server.model", window.models[0], f"GET /v1/models {', '.join(window.models[:4])}")
        if window.max_model_len:
            self.state("engine.max_model_len", window.max_model_len)
        if window.started_at is not None and window.at is not None and window.at >= window.started_at:
            self.state("metrics.uptime_seconds", round(window.at - window.started_at))
        self._config()
        self._http()

    def _config(self) -> None:
        config = self.window.config
        blocks, size = _whole(config.get("num_gpu_blocks")), _whole(config.get("block_size"))
        tokens = _whole(config.get("kv_cache_size_tokens"))
        if blocks:
            self.state("engine.gpu_blocks", blocks, f"cache_config_info num_gpu_blocks {blocks}")
        if tokens or (blocks and size):
            self.state("engine.kv_cache_tokens", tokens or (blocks or 0) * (size or 0))
        try:
            share = float(config.get("gpu_memory_utilization", ""))
        except ValueError:
            return
        if 0 < share <= 1:
            self.state("memory.utilization", share, f"cache_config_info gpu_memory_utilization {share}")

    def _http(self) -> None:
        http = self.window.http
        total = sum(http.values())
        if total <= 0:
            return
        shown = "http_requests_total " + ", ".join(f"{status} +{count:g}" for status, count in sorted(http.items()))
        self.state("metrics.http_requests", round(total), shown)
        self.state("metrics.client_error_share", http.get("4xx", 0.0) / total, shown)
        self.state("metrics.server_error_share", http.get("5xx", 0.0) / total, shown)
        if self.window.http_unrouted is not None:
            self.state(
                "metrics.unrouted_share",
                self.window.http_unrouted / total,
                f'http_requests_total{{handler="none",status="4xx"}} +{self.window.http_unrouted:g}',
            )

    def _levels(self, engine: EngineWindow) -> None:
        for key, name, factor in (
            ("running", "metrics.running", 1.0),
            ("waiting", "metrics.waiting", 1.0),
            ("kv_usage", "metrics.kv_percent", 100.0),
            ("swapped", "metrics.swapped", 1.0),
        ):
            value, exported = _level(engine, key), BY_KEY[key].names()[0]
            if value is None and key in engine.unreadable:
                self.unknown(name, f"{exported} is no number")
                self.lacking.append((exported, "not-a-number"))
            elif value is None:
                self.absent(name) if key not in NEEDED else self.unknown(name, f"{exported} is not exported")
                if key in NEEDED:
                    self.lacking.append((exported, "not-exported"))
            else:
                level = value * factor
                self.state(name, round(level, 2) if factor != 1.0 else round(level), self._gauge(key), of_engine=True)
        for reason, count in engine.split.get("waiting_by_reason", {}).items():
            if reason == "deferred":
                self.state("metrics.waiting_deferred", round(count), of_engine=True)
        states = engine.split.get("sleep_state", {})
        if states:
            asleep = next((name for name, value in states.items() if name != "awake" and value > 0), None)
            self.state("metrics.asleep", "yes" if asleep else "no", f"engine_sleep_state {asleep or 'awake'}")
        lora = self.window.lora
        if lora:
            waiting = [n for n in lora.get("waiting_lora_adapters", "").split(",") if n.strip()]
            most = _whole(lora.get("max_lora"))
            shown = f"lora_requests_info max_lora {most} running {lora.get('running_lora_adapters', '')!r} waiting {lora.get('waiting_lora_adapters', '')!r}"
            self.state("metrics.lora_waiting", len(waiting), shown)

    def _gauge(self, key: str) -> str:
        engine = self.engine
        values = engine.gauges.get(key, ()) if engine is not None else ()
        spelled = BY_KEY[key].names()[0]
        row = " ".join(f"{value:.6g}" for value in values[-8:])
        return f"{spelled}: {row}" + (f"  ({self.window.seconds:.1f} s)" if len(values) > 1 else "")

    def _growth(self, engine: EngineWindow) -> None:
        seconds = self.window.seconds
        if seconds <= 0:
            return
        for key, name in _RATES:
            grown = engine.increases.get(key)
            if grown is None:
                if key in NEEDED or key in engine.unreadable:
                    self.unknown(name, f"{BY_KEY[key].names()[0]} is not readable")
                continue
            quote = f"{BY_KEY[key].names()[0]} +{grown:g} in {seconds:.1f} s"
            self.state(name, grown / seconds, quote, of_engine=True)
        for key, mean, p95 in _TIMES:
            self._time(key, mean, p95, engine.distributions.get(key), key in engine.unreadable)
        self._derived(engine, seconds)
        stated = {item.name for item in self.items}
        for name in _MAY_BE_ABSENT:
            if name not in stated:
                self.absent(name)

    def _derived(self, engine: EngineWindow, seconds: float) -> None:
        """What follows from two figures: shares of time, the wait that a queue means, the length of prompts."""
        first, queue = engine.mean("time_to_first_token"), engine.mean("queue_time")
        if first and queue is not None:
            self.state("metrics.queue_share", min(1.0, queue / first), of_engine=True)
        finished, waiting = engine.increases.get("finished"), engine.typical("waiting")
        if finished is None:
            return
        self.state("metrics.requests_per_second", finished / seconds, of_engine=True)
        if finished > 0 and waiting is not None:
            wait = waiting * seconds / finished  # Little's law: W = L / lambda
            quote = f"{waiting:g} waiting, {finished / seconds:.3g} finished/s: {wait:.3g} s"
            self.state("metrics.expected_wait_seconds", wait, quote, of_engine=True)
        prompts = engine.increases.get("prompt_tokens")
        if finished > 0 and prompts and engine.mean("request_prompt_tokens") is None:
            self.state("metrics.prompt_length", prompts / finished, of_engine=True)

    def _time(self, key: str, mean: str, p95: str, found: Distribution | None, unreadable: bool) -> None:
        spelled = BY_KEY[key].names()[0]
        if unreadable:
            self.unknown(mean, f"{spelled} is no number")
            return
        middle = found.mean if found is not None else None
        if found is None or middle is None:
            return
        high = found.quantile(0.95)
        unit = " s" if BY_KEY[key].unit == "s" else ""
        tail = f", p95 {high:.4g}{unit}" if high is not None else ""
        self.state(
            mean, middle, f"{spelled}: mean {middle:.4g}{unit}{tail}  ({found.count:g} observed)", of_engine=True
        )
        if p95 and high is not None:
            self.state(p95, high, of_engine=True)

    def _activity(self, engine: EngineWindow) -> None:
        running, waiting = engine.gauges.get("running"), engine.gauges.get("waiting")
        if running is None or waiting is None:
            self.unknown("metrics.activity", "the number of requests is not readable")
            return
        if running[-1] == 0 and waiting[-1] == 0 and not engine.increases.get("generation_tokens"):
            self.state("metrics.activity", "idle", self._gauge("running"))
            self.state("stats.progress", "idle")
            return
        produced = engine.increases.get("generation_tokens")
        if produced is None:
            self.unknown("metrics.activity", "a single look at the page cannot tell whether tokens come out")
            return
        names = "generation_tokens_total +0, num_requests_running " + " ".join(f"{v:g}" for v in running[-8:])
        quote = f"vllm:{names}  ({self.window.seconds:.1f} s)"
        if not stands_still(engine):
            self.state("metrics.activity", "moving", f"vllm:generation_tokens_total +{produced:g}", of_engine=True)
            self.state("stats.progress", "moving", of_engine=True)
        elif self._is_certain(engine):
            self.state("metrics.activity", "frozen", quote, of_engine=True)
            self.state("stats.progress", "frozen", quote, of_engine=True)
        else:
            self.state("metrics.activity", "still", quote, of_engine=True)

    def _is_certain(self, engine: EngineWindow) -> bool:
        """Whether a standstill can be nothing else: long enough, of readable gauges, awake, and not a first start."""
        if self.window.seconds < SHORT_S or engine.unreadable & {"running", "waiting", "kv_usage"}:
            return False
        states = engine.split.get("sleep_state", {})
        if any(value > 0 for name, value in states.items() if name != "awake"):
            return False
        age = (
            self.window.at - self.window.started_at
            if self.window.at is not None and self.window.started_at is not None
            else None
        )
        never = engine.totals.get("generation_tokens", 0.0) == 0.0
        return not (never and (age is None or age < YOUNG_S))

    def _shares(self, engine: EngineWindow) -> None:
        grown, window = engine.increases, self.window
        queries, hits = grown.get("prefix_queries"), grown.get("prefix_hits")
        if queries and hits is not None:
            quote = f"vllm:prefix_cache_hits_total +{hits:g}, vllm:prefix_cache_queries_total +{queries:g}"
            self.state("metrics.prefix_queries", round(queries), quote, of_engine=True)
            self.state("metrics.prefix_hit_percent", round(100.0 * min(1.0, hits / queries), 2), quote, of_engine=True)
        drafted, accepted = grown.get("draft_tokens"), grown.get("accepted_tokens")
        if drafted and accepted is not None:
            quote = f"vllm:spec_decode_num_accepted_tokens_total +{accepted:g}, vllm:spec_decode_num_draft_tokens_total +{drafted:g}"
            self.state("metrics.draft_tokens", round(drafted), quote, of_engine=True)
            self.state(
                "metrics.acceptance_percent", round(100.0 * min(1.0, accepted / drafted), 2), quote, of_engine=True
            )
        finished = engine.split.get("finished", {}) if window.looks > 1 else {}
        total = sum(finished.values())
        if total > 0 and "finished" in grown:
            quote = "vllm:request_success_total " + ", ".join(f"{k} +{v:g}" for k, v in sorted(finished.items()) if v)
            self.state("metrics.finished", round(total), quote, of_engine=True)
            self.state("metrics.failed_share", finished.get("error", 0.0) / total, quote, of_engine=True)
            self.state("metrics.aborted_share", finished.get("abort", 0.0) / total, quote, of_engine=True)
        for key, name in (("corrupted", "metrics.corrupted"), ("transfer_failures", "metrics.transfer_failures")):
            if key in grown:
                self.state(name, round(grown[key]), f"{BY_KEY[key].names()[0]} +{grown[key]:g}", of_engine=True)
        if window.refused:
            turned = sum(window.refused.values())
            self.state("metrics.turned_away", round(turned), f"vllm:admission_rejections_total +{turned:g}")

    def _uneven(self) -> None:
        loads = [
            (engine, (engine.typical("running") or 0.0) + (engine.typical("waiting") or 0.0))
            for engine in self.window.engines
            if engine.typical("running") is not None
        ]
        if len(loads) < 2:
            return
        most, least = max(load for _, load in loads), min(load for _, load in loads)
        uneven = most >= UNEVEN_FROM and least < most * UNEVEN_SHARE
        shown = ", ".join(f"{engine.key}: {load:g}" for engine, load in loads[:16])
        self.state("metrics.balance", "uneven" if uneven else "even", f"running + waiting: {shown}")


def _level(engine: EngineWindow, key: str) -> float | None:
    """What stands for a gauge over the window: of the cache its peak, since usage falls with every request that ends
    or is preempted; of running requests the mean; of those that wait what holds for most of the time."""
    if key == "kv_usage":
        return engine.peak(key)
    return engine.average(key) if key == "running" else engine.typical(key)


def _has(engine: EngineWindow, key: str) -> bool:
    return key in engine.gauges or key in engine.increases


def _whole(text: str | None) -> int | None:
    """A positive whole number from a label, or None."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and 0 < len(text) < 13 else None
