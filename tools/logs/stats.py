"""The statistics that an engine prints every few seconds, over time."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

_ENGINE = re.compile(r"Engine (\d{1,5}):")
_FIELDS = {
    "prompt": re.compile(r"Avg prompt throughput: ([\d.]+)"),
    "generation": re.compile(r"Avg generation throughput: ([\d.]+)"),
    "running": re.compile(r"Running: (\d+)"),
    "waiting": re.compile(r"(?:Waiting|Pending): (\d+)"),
    "swapped": re.compile(r"Swapped: (\d+)"),
    "usage": re.compile(r"\b(?:GPU|CPU|[A-Z]{2,6}) KV cache usage: ([\d.]+)%"),
    "hit": re.compile(r"(?<!MM )(?<!External )[Pp]refix cache hit rate: (?:GPU: )?([\d.]+)%"),
    "preemptions": re.compile(r"Preemptions: (\d+)"),
}
_ACCEPTANCE = re.compile(r"[Dd]raft acceptance rate: ([\d.]+)")
_PERCENT = re.compile(r"[Dd]raft acceptance rate: [\d.]+%")
_LENGTH = re.compile(r"[Mm]ean acceptance length: ([\d.]+)")


#: Statistics that tell how things stand now: four minutes of one engine's lines.
_RECENT = 24
#: Tokens flow again when so many samples in a row show it.
_FLOWING = 3
#: Generation below this rate with requests running and no prompt being read is no speed at all, tokens/s.
_SLOW = 2.0


@dataclass(frozen=True, slots=True)
class _Sample:
    place: int
    running: float
    waiting: float
    prompt: float
    generation: float

    @property
    def is_slow(self) -> bool:
        """Requests run, nothing is read, and next to nothing is written: the whole window went into few tokens."""
        return self.running > 0 and self.prompt < 1 and 0 < self.generation < _SLOW

    @property
    def moves(self) -> bool:
        return self.prompt + self.generation > 0


@dataclass(slots=True)
class _Engine:
    samples: int = 0
    last: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    still: int = 0  # samples in a row with requests running and nothing produced
    place: int = -1


@dataclass(slots=True)
class Stats:
    """Samples of all engines of one run.

    ``Engine 000: Avg prompt throughput: 44.1 tokens/s, Avg generation throughput: 1193.9 tokens/s, Running: 2 reqs,
    Waiting: 46 reqs, GPU KV cache usage: 87.2%, Prefix cache hit rate: 0.0%`` and the lines of engine V0 without
    "Engine".
    """

    engines: dict[str, _Engine] = field(default_factory=dict)
    recent: deque[_Sample] = field(default_factory=lambda: deque(maxlen=_RECENT))
    preemptions: int = 0
    acceptance_percent: float | None = None
    acceptance_length: float | None = None

    def read(self, text: str, place: int) -> bool:
        """Take one line; ``place`` (its order) keeps a line from being taken twice. False if it states nothing."""
        if "SpecDecoding metrics" in text or "Speculative metrics" in text:
            rate, length = _ACCEPTANCE.search(text), _LENGTH.search(text)
            if rate:
                number = float(rate.group(1).rstrip("."))
                self.acceptance_percent = number if _PERCENT.search(text) else number * 100
            if length:
                self.acceptance_length = float(length.group(1).rstrip("."))
            return bool(rate or length)
        named = _ENGINE.search(text)
        name = named.group(1) if named else ""
        if name not in self.engines and len(self.engines) >= 512:
            return False
        values = {
            key: float(found.group(1).rstrip(".")) for key, rule in _FIELDS.items() if (found := rule.search(text))
        }
        if "generation" not in values:
            return False
        engine = self.engines.setdefault(name, _Engine())
        if place <= engine.place:
            return False
        engine.place = place
        engine.samples += 1
        engine.last = values
        get = values.get
        self.recent.append(_Sample(place, get("running", 0), get("waiting", 0), get("prompt", 0), values["generation"]))
        self.preemptions += int(values.get("preemptions", 0))
        for key, value in values.items():
            engine.most[key] = max(value, engine.most.get(key, value))
        stuck = values.get("running", 0) > 0 and not values.get("prompt") and not values["generation"]
        engine.still = engine.still + 1 if stuck else 0
        return True

    def begin_end(self) -> None:
        """The last lines of a sampled log follow, all of them: what stood still before does not count."""
        self.recent.clear()
        for engine in self.engines.values():
            engine.still, engine.place = 0, -1

    @property
    def slow_samples(self) -> int:
        """How many of the recent samples show requests running at next to no speed."""
        return sum(sample.is_slow for sample in self.recent)

    @property
    def recent_waiting_max(self) -> int:
        return int(max((sample.waiting for sample in self.recent), default=0))

    @property
    def flowing_since(self) -> int | None:
        """From which line on tokens are produced for certain (the third last sample, when it and all later ones move)."""
        last = list(self.recent)[-_FLOWING:]
        return last[0].place if len(last) == _FLOWING and all(sample.moves for sample in last) else None

    def after(self, line: int) -> int:
        """How many of the recent samples stand below ``line``."""
        return sum(sample.place > line for sample in self.recent)

    @property
    def samples(self) -> int:
        return sum(engine.samples for engine in self.engines.values())

    def total(self, key: str, most: bool = False) -> float | None:
        """The sum over engines of the last (or largest) value; usage and hit rate take the largest engine instead."""
        values = [
            chosen[key] for engine in self.engines.values() if key in (chosen := engine.most if most else engine.last)
        ]
        if not values:
            return None
        return max(values) if key in ("usage", "hit") else sum(values)

    @property
    def progress(self) -> str | None:
        """ "frozen" when an engine holds requests and produced nothing in its last two samples or more.

        After one such sample nobody can tell a stall from a long prefill: None, as without any sample.
        """
        if not self.engines:
            return None
        if any(engine.still >= 2 for engine in self.engines.values()):
            return "frozen"
        if any(engine.still == 1 for engine in self.engines.values()):
            return None
        if any(engine.last.get("running") or engine.last.get("generation") for engine in self.engines.values()):
            return "moving"
        return "idle"
