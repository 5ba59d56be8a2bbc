"""How far a start has come, for how long, and what its progress bar promises."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

#: Message id -> the stage that begins with it (ids of knowledge/vllm/messages.json and knowledge/messages/structure.yaml).
STAGE_OF_MESSAGE = {
    "api-server-version": "starting",
    "plat-nondefault-args": "starting",
    "engine-init-config": "starting",
    "load-weights-format": "downloading",
    "load-starting": "loading",
    "load-model-took": "profiling",
    "load-weights-took": "profiling",
    "stage-profiling": "profiling",
    "compile-cache-dir": "compiling",
    "compile-dynamo-time": "compiling",
    "compile-graph-takes": "compiling",
    "stage-compiling": "compiling",
    "compile-capturing-notice": "capturing",
    "stage-capturing": "capturing",
}
_ORDER = ("starting", "downloading", "loading", "profiling", "compiling", "capturing", "ready", "serving", "stopped")
_TITLES = (
    ("checkpoint shards", "loading"),
    ("loading pt", "loading"),
    ("capturing", "capturing"),
    ("compil", "compiling"),
    ("warmup", "compiling"),
    ("fetching", "downloading"),
    ("downloading", "downloading"),
    (".safetensors", "downloading"),
    (".bin", "downloading"),
    (".gguf", "downloading"),
    ("processed prompts", "serving"),
)
_PROGRESS = re.compile(
    r"(\d{1,3})%(?: Completed)? ?\|[^|\[]{0,200}\|? ?([\d.]+)([kMGT]?)B?/([\d.]+)([kMGT]?)B? "
    r"\[([\d:]+)<([\d:?]+), *([\d.?]+) ?([A-Za-z]+)/([A-Za-z]+)"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of a progress bar; ``seconds_left`` and ``seconds_each`` are ``None`` where the bar shows "?"."""

    stage: str
    title: str
    percent: float
    done: float
    total: float
    seconds_left: float | None
    seconds_each: float | None


def read_progress(text: str) -> Progress | None:
    """``Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:06<00:09,  3.10s/it]``"""
    found = _PROGRESS.search(text)
    if found is None:
        return None
    title = text[: found.start()].strip(" :").lower()[-120:]
    stage = next((name for word, name in _TITLES if word in title), "")
    rate = float(found.group(8)) if found.group(8).replace(".", "", 1).isdigit() else None
    per, unit = found.group(9), found.group(10)
    each: float | None = None
    if rate:
        each = rate if per == "s" and unit != "s" else 1.0 / rate if unit == "s" and per == "it" else None
    done, total = float(found.group(2).rstrip(".") or 0), float(found.group(4).rstrip(".") or 0)
    left = _seconds(found.group(7))
    if left is None and each is not None and total > done:
        left = (total - done) * each
    return Progress(stage, title, float(found.group(1)), done, total, left, each)


def _seconds(clock: str) -> float | None:
    if "?" in clock or not clock:
        return None
    total = 0
    for part in clock.split(":"):
        if not part.isdigit():
            return None
        total = total * 60 + int(part)
    return float(total)


@dataclass(slots=True)
class Stages:
    """The stage of one run; stages move forward, except that a second model (a draft) may load after the first."""

    stage: str = ""
    clock: str | None = None
    since: datetime | None = None
    line: int = 0
    progress: Progress | None = None

    def enter(self, stage: str, clock: str | None, line: int) -> None:
        if stage == self.stage or not stage:
            return
        if self.stage and _ORDER.index(stage) < _ORDER.index(self.stage):
            started = self.stage in ("ready", "serving", "stopped")
            if started or stage != "loading" or self.stage == "downloading":
                return
        self.stage, self.clock, self.line = stage, clock, line
        if self.progress and self.progress.stage != stage:
            self.progress = None

    def advance(self, progress: Progress, clock: str | None, line: int) -> None:
        if progress.stage and progress.stage != "serving":
            before = self.stage
            if progress.stage == "downloading" and before in ("loading", "profiling"):
                return
            self.enter(progress.stage, clock, line)
        if progress.stage == self.stage:
            self.progress = progress
