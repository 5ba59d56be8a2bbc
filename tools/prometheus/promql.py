"""The vocabulary as PromQL: which series a server keeps of it, and expressions over a window.

Names are asked for first, so that expressions hold only what exists: old and new spellings of one quantity are joined
with ``or`` and told apart by the label :data:`TAG`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tools.metrics.vocabulary import PREFIXES, SAMPLES, Quantity

#: The label that says which sample name a part of an expression came from (functions drop the name).
TAG = "vllm_diagnose_name"
#: ``name="value"`` and its relatives, separated by commas: what a target's ``query`` may hold.
_MATCHER = re.compile(r"""\s*[A-Za-z_][A-Za-z0-9_]*\s*(?:=~|!~|!=|=)\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*""")
_PREFIXED = "(?:" + "|".join(re.escape(prefix).replace("\\", "\\\\") for prefix in PREFIXES) + ").+"
_UNPREFIXED = "http_requests_total|process_start_time_seconds"


def matchers(query: str) -> str:
    """The label matchers of ``query`` in one canonical text; braces around them may be given or not.

    Raises :class:`ValueError` for anything else, so that no configured text becomes another expression.
    """
    inner = query.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    found, at = [], 0
    while inner[at:].strip(" ,"):
        match = _MATCHER.match(inner, at)
        if match is None or (match.end() < len(inner) and inner[match.end()] != ","):
            raise ValueError(
                f'{query!r:.200} are no label matchers; write job="vllm" or namespace="x", pod=~"vllm-.*".'
            )
        found.append(match.group().strip())
        at = match.end() + 1
    return ",".join(found)


def names_expression(matching: str) -> str:
    """How many series there are of each name that may be vLLM's."""
    return f'count by (__name__) ({{__name__=~"{_PREFIXED}|{_UNPREFIXED}"{_and(matching)}}})'


def known(names: Iterable[str]) -> dict[str, tuple[Quantity, int, str]]:
    """The names that the vocabulary has, with their quantity, spelling and suffix."""
    return {name: SAMPLES[name] for name in sorted(names) if name in SAMPLES}


def chosen(names: dict[str, tuple[Quantity, int, str]], kind: str) -> list[str]:
    """The names of the quantities of one kind."""
    return [name for name, (quantity, _, _) in names.items() if quantity.kind == kind]


def plain(names: Iterable[str], matching: str) -> str:
    """All series of these names."""
    alternatives = "|".join(sorted(names))
    return f'{{__name__=~"{alternatives}"{_and(matching)}}}'


def over(function: str, names: Iterable[str], matching: str, window_s: float) -> str:
    """``function`` over the window for every name, joined with ``or``: ``increase``, ``resets``, ``changes``."""
    parts = (
        f'label_replace({function}({{__name__="{name}"{_and(matching)}}}[{duration(window_s)}]), "{TAG}", "{name}", "", "")'
        for name in names
    )
    return " or ".join(parts)


def batches(names: list[str], size: int = 12) -> Iterator[list[str]]:
    """The names in parts that a server evaluates within its limits."""
    for at in range(0, len(names), size):
        yield names[at : at + size]


def duration(seconds: float) -> str:
    """Seconds as PromQL writes a duration, exact to the millisecond."""
    return f"{max(1, round(seconds * 1000))}ms"


def _and(matching: str) -> str:
    return f",{matching}" if matching else ""
