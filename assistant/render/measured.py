"""The figures of a diagnosis: which evidence has a name for people, by unit."""

from __future__ import annotations

from collections.abc import Iterable

from knowledge.catalog import Catalog
from tools.evidence import Evidence

#: Sentences whose key is this and the name of an observable are that observable's name for people.
_NAME = "figure-"


def named_figures(evidence: Iterable[Evidence], catalog: Catalog, lang: str) -> dict[str, list[tuple[str, float]]]:
    """Label and value of every figure that is known, by unit; of one that was stated several times, the largest."""
    found: dict[str, float] = {}
    for item in evidence:
        is_number = isinstance(item.value, (int, float)) and not isinstance(item.value, bool)
        if item.state == "present" and is_number and _NAME + item.name in catalog.sentences:
            found[item.name] = max(found.get(item.name, float("-inf")), float(item.value or 0))
    order = [key.removeprefix(_NAME) for key in catalog.sentences if key.startswith(_NAME)]
    units: dict[str, list[tuple[str, float]]] = {}
    for name in sorted(found, key=order.index):
        declared = catalog.observable(name)
        unit = declared.unit if declared is not None else ""
        units.setdefault(unit, []).append((catalog.word(_NAME + name, lang), found[name]))
    return units
