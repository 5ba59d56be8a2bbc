"""What only shows when servers are compared: one that differs from its like."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from assistant.fleet.looking import Looked
from tools.metrics.vocabulary import BY_KEY

#: Fewer servers of one model say nothing about what is usual.
LEAST_ALIKE = 4
#: How far from the median of its like a server must be: this many times, and beyond a floor that is felt.
TIMES = 3.0
_FLOORS = {"waiting": 5.0, "time_to_first_token": 0.5, "inter_token_latency": 0.03, "kv_usage": 0.3}


def figures(one: Looked) -> dict[str, float]:
    """The compared figures of one server: levels at the last look, means over the window."""
    found: dict[str, float] = {}
    engines = one.window.engines
    for key in ("waiting", "kv_usage"):
        values = [value for engine in engines if (value := engine.last(key)) is not None]
        if values:
            found[key] = sum(values) if key == "waiting" else max(values)
    for key in ("time_to_first_token", "inter_token_latency"):
        means = [mean for engine in engines if (mean := engine.mean(key)) is not None]
        if means:
            found[key] = max(means)
    return found


def outliers(found: Sequence[Looked]) -> dict[str, list[str]]:
    """For each server that differs from those of the same model: which figure, its value and the others' median."""
    by_model: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for one in found:
        if one.window.engines:
            model = one.window.engines[0].key.model
            by_model.setdefault(model, []).append((one.target.name, figures(one)))
    odd: dict[str, list[str]] = {}
    for alike in by_model.values():
        for key, floor in _FLOORS.items():
            values = [numbers[key] for _, numbers in alike if key in numbers]
            if len(values) < LEAST_ALIKE:
                continue
            middle = statistics.median(values)
            for name, numbers in alike:
                value = numbers.get(key)
                if value is not None and value > middle * TIMES and value - middle >= floor:
                    exported = BY_KEY[key].names()[0]
                    odd.setdefault(name, []).append(f"{exported} {value:.3g} / {middle:.3g}")
    return odd
