"""What was collected of a run, as evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from tools.evidence import QUOTE_LIMIT, Evidence, Origin, Value
from tools.logs.prefix import read_clock, seconds_between
from tools.logs.runs import Run


class Reporter:
    """Turns runs of one source into evidence; ``silence_seconds`` is the age of a live log's last line, if known.

    ``broken_off`` says that reading ended before the source did: how its last run ends is not known then.
    """

    def __init__(self, year: int, runs: int, silence_seconds: float | None, *, broken_off: bool = False) -> None:
        self._year = year
        self._runs = runs
        self._silence = silence_seconds
        self._broken_off = broken_off

    def _at(self, clock: str | None) -> datetime | None:
        return read_clock(clock, self._year) if clock else None

    def evidence(self, run: Run) -> Iterator[Evidence]:
        yield from self._messages(run)
        yield from run.facts.evidence()
        yield from self._log(run)
        yield from self._stage(run)
        yield from self._requests(run)
        yield from self._stats(run)

    def _messages(self, run: Run) -> Iterator[Evidence]:
        for (identity, process), seen in run.occurrences.items():
            origin = Origin(run.source, seen.line, process, seen.at, seen.line)
            yield Evidence(
                f"message:{identity}", "present", True, origin, seen.quote[:QUOTE_LIMIT], "", seen.count, seen.last_line
            )

    def _log(self, run: Run) -> Iterator[Evidence]:
        end = Origin(run.source, run.last_line or None, None, run.last_at, run.last_line)
        yield _fact("log.coverage", run.coverage_word, end)
        first = Origin(run.source, run.first_failure_line or run.last_line or None, None, None, run.first_failure_line)
        failures = run.failures - run.warned if run.ready else run.failures
        yield _fact("log.failures", failures, first, run.first_failure)
        if self._broken_off and run.number == self._runs and run.ended == "open":
            why = "reading broke off before the end of the log"
            yield Evidence("log.ended", "unknown", None, end, why_unknown=why)
        else:
            yield _fact("log.ended", run.ended, end)
        yield _fact("log.runs", self._runs, end)
        if run.of_vllm:
            yield _fact("log.writer", "vllm", end)
        shown: set[tuple[str | None, str]] = set()
        for line, clock, process, text in sorted(run.unrecognised, key=lambda entry: entry[0]):
            if (process, text) not in shown and len(shown) < 5:
                shown.add((process, text))
                origin = Origin(run.source, line, process, self._at(clock), line)
                yield Evidence("log.unrecognised", "present", text, origin, text, "", run.unrecognised_count)
        raised: set[str | None] = set()
        for line, clock, process, kind, text in sorted(run.exceptions, key=lambda entry: entry[0]):
            if process not in raised and len(raised) < 16:
                raised.add(process)
                origin = Origin(run.source, line, process, self._at(clock), line)
                yield _fact("log.exception", kind, origin, text)
        if self._silence is not None and run.ended == "open":
            yield _fact("log.silence_seconds", round(self._silence, 1), end)

    def _stage(self, run: Run) -> Iterator[Evidence]:
        if not run.stage:
            return
        stages = run.stages
        if run.ready and stages.stage == "ready":
            took = seconds_between(run.first_at, self._at(stages.clock))
            if took is not None and took >= 0:
                ready = Origin(run.source, run.ready_line or None, None, self._at(stages.clock), run.ready_line)
                yield _fact("log.startup_seconds", round(took, 1), ready)
        origin = Origin(run.source, stages.line or run.last_line or None, None, self._at(stages.clock), stages.line)
        yield _fact("log.stage", run.stage, origin)
        if run.stage == stages.stage:
            spent = seconds_between(self._at(stages.clock), run.last_at)
            if spent is not None and spent >= 0:
                yield _fact("log.stage_seconds", spent, origin)
            progress = stages.progress
            if progress is not None and progress.stage == run.stage:
                yield _fact("log.progress_percent", progress.percent, origin)
                if progress.seconds_left is not None:
                    yield _fact("log.seconds_left", round(progress.seconds_left, 1), origin)
        progress = stages.progress
        if progress is not None and progress.stage == "loading" and progress.seconds_each is not None:
            yield _fact("log.seconds_per_shard", round(progress.seconds_each, 3), origin)

    def _requests(self, run: Run) -> Iterator[Evidence]:
        access = run.access
        end = Origin(run.source, run.last_line or None, None, run.last_at, run.last_line)
        total = max(access.answered, access.refused + access.failed)
        if not total:
            if run.stats.samples:  # an idle server: nobody asked, so nobody was refused
                yield _fact("requests.refused", 0, end)
                yield _fact("requests.failed", 0, end)
            return
        yield _fact("requests.total", total, end)
        line, text = access.first_refused or (run.last_line, "")
        refused = Origin(run.source, line or None, None, None, line)
        yield _fact("requests.refused", access.refused, refused, text)
        yield _fact("requests.refused_share", round(access.refused / total, 4), refused, text)
        line, text = access.first_failed or (run.last_line, "")
        yield _fact("requests.failed", access.failed, Origin(run.source, line or None, None, None, line), text)

    def _stats(self, run: Run) -> Iterator[Evidence]:
        stats = run.stats
        place = max((engine.place for engine in stats.engines.values()), default=run.last_line)
        origin = Origin(run.source, place or None, None, run.last_at, place)
        yield _fact("stats.samples", stats.samples, origin)
        if stats.engines:
            if stats.progress is not None:
                yield _fact("stats.progress", stats.progress, origin)
            else:
                why = "the last statistics line shows requests but no tokens, and a second one would have to confirm it"
                yield Evidence("stats.progress", "unknown", None, origin, why_unknown=why)
        for name, key, most in (
            ("stats.running", "running", False),
            ("stats.running_max", "running", True),
            ("stats.waiting", "waiting", False),
            ("stats.waiting_max", "waiting", True),
            ("stats.kv_usage_percent", "usage", False),
            ("stats.kv_usage_max_percent", "usage", True),
            ("stats.generation_tokens_per_second", "generation", False),
            ("stats.prompt_tokens_per_second", "prompt", False),
            ("stats.prefix_hit_percent", "hit", False),
        ):
            value = stats.total(key, most)
            if value is not None:
                yield _fact(name, int(value) if key in ("running", "waiting") else round(value, 3), origin)
        if stats.recent:
            yield _fact("stats.slow_samples", stats.slow_samples, origin)
            yield _fact("stats.recent_waiting_max", stats.recent_waiting_max, origin)
        if stats.flowing_since is not None:
            flowing = Origin(run.source, stats.flowing_since or None, None, None, stats.flowing_since)
            yield _fact("stats.flowing", True, flowing)
        if stats.preemptions:
            yield _fact("stats.preemptions", stats.preemptions, origin)
        if stats.acceptance_percent is not None:
            yield _fact("stats.acceptance_percent", stats.acceptance_percent, origin)
        if stats.acceptance_length is not None:
            yield _fact("stats.acceptance_length", stats.acceptance_length, origin)


def _fact(name: str, value: Value, origin: Origin, quote: str = "") -> Evidence:
    return Evidence(name, "present", value, origin, quote[:QUOTE_LIMIT])


def redactor() -> Callable[[str], str]:
    """What every text passes before it leaves the reader: control and bidirectional characters go, then secrets."""
    from tools.redaction import clean, redact

    return lambda text: redact(clean(text))
