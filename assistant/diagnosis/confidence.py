"""One calibrated confidence for every answer: a logistic function of a few features, fitted over all causes at once.

No cause has a number of its own. ``make calibrate`` fits the coefficients (:mod:`assistant.diagnosis.calibrate`) and
writes ``knowledge/calibration.json`` with the digest of the knowledge that they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from assistant.diagnosis.score import POINTS, Candidate, printed
from assistant.diagnosis.truth import Facts

#: Order of the features everywhere.
FEATURES = ("support", "gap", "gap_near", "decisive", "unrecognised", "text_only", "likeness", "agree", "vague")
#: Used until a calibration exists: a decisive message alone is trusted, a likeness alone is not.
DEFAULT = {
    "intercept": -3.6,
    "support": 3.2,
    "gap": 2.2,
    "gap_near": 0.8,
    "decisive": 0.8,
    "unrecognised": -0.8,
    "text_only": 0.0,
    "likeness": 2.0,
    "agree": 0.5,
    "vague": -1.0,
    "threshold": 0.5,
}
_CAP = 8.0
#: Likeness to a cause's symptoms below which its words alone make a guess, and by how much that stays below an answer.
LEAST_ALIKE, _A_GUESS = 0.25, 0.04
_ASKS = "may-i-ignore"
_VAGUE = ("wish-or-howto", "vague")


def features(candidate: Candidate, ranked: Sequence[Candidate], facts: Facts) -> dict[str, float]:
    """The features of one candidate among all that were not ruled out.

    ``support`` and the gaps are in the points of :mod:`assistant.diagnosis.score`, capped; the others are 0 to 1.
    ``gap`` counts declared neighbours as one with the candidate, ``gap_near`` does not.
    """
    normal = candidate.cause.is_normal  # which of two harmless notices it is changes nothing
    others = [
        c
        for c in ranked
        if c.cause.id != candidate.cause.id and c.excluded_by is None and not (normal and c.cause.is_normal)
    ]
    near = set(candidate.cause.near)
    second = max((c.support for c in others), default=0.0)
    far = max(
        (c.support for c in others if c.cause.id not in near and candidate.cause.id not in c.cause.near), default=0.0
    )
    has_message = any(e.name.startswith("message:") for r in candidate.reasons for e in r.support)
    unknown_first = facts.values.get("log.unrecognised")
    leads = unknown_first is not None and unknown_first.state == "present"
    if leads and candidate.reasons:
        orders = [e.origin.order for r in candidate.reasons for e in r.support if e.name.startswith("message:")]
        leads = not orders or (unknown_first is not None and unknown_first.origin.order < min(orders))
    best_likeness = max((c.likeness for c in ranked), default=0.0)
    return {
        "support": min(candidate.support, _CAP) / POINTS["decisive"],
        "gap": max(-1.0, min(candidate.support - far, _CAP) / POINTS["decisive"]),
        "gap_near": max(-1.0, min(candidate.support - second, _CAP) / POINTS["decisive"]),
        "decisive": float(candidate.has_decisive),
        "unrecognised": float(leads),
        "text_only": float(not has_message),
        "likeness": min(candidate.likeness, 1.0),
        "agree": float(best_likeness > 0 and candidate.likeness >= best_likeness * 0.95),
        "vague": float(any(name in facts.said for name in _VAGUE)),
    }


def confidence(values: Mapping[str, float], calibration: Mapping[str, float]) -> float:
    """The logistic function of the features, from 0 to 1."""
    numbers = calibration or DEFAULT
    z = numbers["intercept"] + sum(numbers[name] * values[name] for name in FEATURES)
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, z))))


def doubted(value: float, candidate: Candidate, facts: Facts, calibration: Mapping[str, float]) -> float:
    """The confidence ``value`` of a candidate as it is stated.

    A cause that rests on a person's words alone and sounds like none of the sentences in which it is described is a guess,
    however telling the words are by themselves: of 415 incidents of strangers six were answered so, one of them right.
    Whether a notice may be ignored is asked in few words, so that these say nothing.
    """
    asked = candidate.cause.is_normal and _ASKS in facts.said
    if candidate.likeness < LEAST_ALIKE and not asked and not any(printed(reason) for reason in candidate.reasons):
        return min(value, threshold(calibration) - _A_GUESS)
    return value


def threshold(calibration: Mapping[str, float]) -> float:
    """From which confidence on a cause is answered."""
    return (calibration or DEFAULT)["threshold"]
