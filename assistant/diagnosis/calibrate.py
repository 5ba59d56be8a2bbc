"""Fits the one confidence function on labelled incidents and writes what came out.

    python -m assistant.diagnosis.calibrate INCIDENTS.jsonl [MORE.jsonl ...] [--write]

Each line: {"id", "text", "primary", "also"?}. Folds are grouped by cause, so that a fold's causes were not fitted on:
what is printed is what the function does on causes that it has not seen. Plain gradient descent with a small pull to
zero; ten numbers need no library.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.diagnosis.confidence import FEATURES, features
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from knowledge.catalog import load
from knowledge.sources import ROOT

FOLDS = 8
PULL = 0.003
STEPS = 4000
RATE = 0.5
#: A confident wrong answer costs as much as this many missed right ones when the threshold is chosen.
WRONG_COSTS = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The leading candidate of one labelled incident: its features, and whether naming it is right."""

    group: str
    values: tuple[float, ...]
    right: bool


def samples(rows: list[dict[str, Any]], engine: Engine) -> list[Sample]:
    """One sample per incident that has any candidate."""
    out = []
    for row in rows:
        case, _ = read_case(engine.catalog, text=row["text"], vllm_version=row.get("vllm_version"))
        facts, found = engine.consider(case)
        kept = [c for c in found if c.excluded_by is None]
        if not kept:
            continue
        values = features(kept[0], kept, facts)
        name = "fine" if kept[0].cause.is_normal else kept[0].cause.id
        right = name in {row["primary"], *row.get("also", ())}
        out.append(Sample(row["primary"], tuple(values[f] for f in FEATURES), right))
    return out


def fit(data: list[Sample]) -> tuple[float, list[float]]:
    """Logistic regression: (intercept, coefficients in the order of the features)."""
    intercept, weights = 0.0, [0.0] * len(FEATURES)
    n = max(1, len(data))
    for _ in range(STEPS):
        slope0, slopes = 0.0, [0.0] * len(weights)
        for sample in data:
            error = _logistic(intercept, weights, sample.values) - sample.right
            slope0 += error
            for i, x in enumerate(sample.values):
                slopes[i] += error * x
        intercept -= RATE * slope0 / n
        weights = [w - RATE * (s / n + PULL * w) for w, s in zip(weights, slopes, strict=True)]
    return intercept, weights


def _logistic(intercept: float, weights: list[float], values: tuple[float, ...]) -> float:
    z = intercept + sum(w * x for w, x in zip(weights, values, strict=True))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def out_of_fold(data: list[Sample]) -> list[tuple[float, bool]]:
    """(confidence, right) of every sample, by a function that was not fitted on its cause."""
    groups = sorted({s.group for s in data})
    pairs = []
    for fold in range(FOLDS):
        held = set(groups[fold::FOLDS])
        intercept, weights = fit([s for s in data if s.group not in held])
        pairs += [(_logistic(intercept, weights, s.values), s.right) for s in data if s.group in held]
    return pairs


def best_threshold(pairs: list[tuple[float, bool]]) -> float:
    """The threshold with the best balance of right answers and confident wrong ones, between 0.35 and 0.75."""

    def worth(limit: float) -> float:
        return sum((1.0 if right else -WRONG_COSTS) for sure, right in pairs if sure >= limit)

    return max((round(0.35 + 0.01 * i, 2) for i in range(41)), key=lambda t: (worth(t), t))


def curve(pairs: list[tuple[float, bool]]) -> list[dict[str, float]]:
    """Stated against observed, in ten steps of confidence."""
    rows = []
    for step in range(10):
        low, high = step / 10, (step + 1) / 10
        inside = [right for sure, right in pairs if low <= sure < high or (step == 9 and sure == 1.0)]
        if inside:
            rows.append({"from": low, "to": high, "n": len(inside), "right": round(sum(inside) / len(inside), 3)})
    return rows


def main(arguments: list[str]) -> int:
    """Prints the curve and, with ``--write``, stores coefficients and curve in ``knowledge/calibration.json``."""
    paths = [Path(a) for a in arguments if not a.startswith("--")]
    if not paths:
        print("usage: python -m assistant.diagnosis.calibrate INCIDENTS.jsonl [...] [--write]", file=sys.stderr)
        return 2
    rows = [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    engine = Engine(load())
    data = samples(rows, engine)
    pairs = out_of_fold(data)
    intercept, weights = fit(data)
    limit = best_threshold(pairs)
    result: dict[str, Any] = {
        "intercept": round(intercept, 4),
        **{name: round(w, 4) for name, w in zip(FEATURES, weights, strict=True)},
        "threshold": limit,
    }
    print(f"{len(data)} samples of {len(rows)} incidents, {sum(s.right for s in data)} with the right leader")
    for name, value in result.items():
        print(f"  {name:14} {value}")
    for row in curve(pairs):
        print(f"  stated {row['from']:.1f}-{row['to']:.1f}  n={row['n']:<4} right {row['right']}")
    sure = [right for confidence, right in pairs if confidence >= 0.9]
    if sure:
        print(f"  >= 0.9: {len(sure)} answers, right {sum(sure) / len(sure):.3f}")
    if "--write" in arguments:
        target = ROOT / "calibration.json"
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
