"""Conditions as data: what they need, and how particular a combination of ideas is to its cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from knowledge.shapes import Condition

#: Added to a cause's own share of sentences, so that few sentences do not decide alone.
SMOOTHING = 0.1
#: A declared neighbour describes itself in similar words; its sentences count this much.
NEAR_SHARE = 0.4


def needs(condition: Condition) -> frozenset[str]:
    """Names without which a condition cannot be true: a quick way past the thousands that do not apply.

    Messages and concepts are prefixed with ``message:`` and ``said:``; observables stand by their name.
    """
    ((key, test),) = condition.items()
    if key in ("all", "after"):
        return frozenset().union(*(needs(part) for part in test))
    if key == "any":
        return frozenset.intersection(*(needs(part) for part in test))
    if key == "not":
        return frozenset()
    if key in ("message", "said"):
        return frozenset({f"{key}:{test}"})
    return frozenset() if "absent" in test else frozenset({key})


def particular(
    wanted: Iterable[str], own: str, near: Sequence[str], said_by: Mapping[str, Sequence[frozenset[str]]]
) -> float:
    """How much hearing all of ``wanted`` points to ``own`` rather than to any other cause, from 0 to 1.

    ``said_by`` holds, for every cause, the ideas of each sentence that describes it. Computed from the knowledge itself:
    ideas that half of all causes share say little, however their author weighed them.
    """
    ideas = frozenset(wanted)

    def share(cause: str) -> float:
        sentences = said_by[cause]
        return sum(ideas <= sentence for sentence in sentences) / len(sentences) if sentences else 0.0

    others = sum(share(cause) * (NEAR_SHARE if cause in near else 1.0) for cause in said_by if cause != own)
    mine = (share(own) if own in said_by else 0.0) + SMOOTHING
    return round(mine / (mine + others), 3)


def is_pure_talk(signal: Mapping[str, Any]) -> bool:
    """Whether a compiled signal rests on the person's words alone."""
    return str(signal.get("key", "")).startswith("said:")
