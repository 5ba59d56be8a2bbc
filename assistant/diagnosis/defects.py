"""Known defects of versions: what they add to the weighing, and what is told of them.

A defect with a matching symptom in an affected version is one strong signal for its cause; it never decides alone, and
never without the symptom. Everything else that is known of the version is one note.
"""

from __future__ import annotations

from collections.abc import Iterator

from assistant.diagnosis.truth import Facts, judge
from knowledge.catalog import Catalog
from knowledge.shapes import Defect, Signal
from knowledge.versions import is_between, parse, release

#: Defects named in the note about a version; the others are counted.
MOST_TITLES = 2
#: What a person on call wants to hear of first.
_ORDER = ("engine", "startup", "wrong-output", "security")


def of_version(version: str | None, catalog: Catalog) -> list[Defect]:
    """The defects of a version that somebody named; none where it is not known."""
    if parse(version) is None:
        return []
    found = [d for d in catalog.defects if is_between(version, d.since, d.fixed)]
    return sorted(found, key=lambda d: (_ORDER.index(d.kind), [-part for part in release(d.since)], d.id))


def raised(version: str | None, catalog: Catalog) -> dict[str, list[Signal]]:
    """Cause -> the signals that the version's known defects add."""
    signals: dict[str, list[Signal]] = {}
    for defect in of_version(version, catalog):
        if defect.cause is not None and defect.when is not None:
            signal = Signal(f"defect:{defect.id}", "strong", defect.when, None, "known-defect", defect.needs)
            signals.setdefault(defect.cause, []).append(signal)
    return signals


def defect_notes(version: str | None, facts: Facts, catalog: Catalog, lang: str) -> Iterator[str]:
    """Sentences: each defect whose symptom is there, then one about the others."""
    found = of_version(version, catalog)
    matched = [d for d in found if d.when is not None and judge(d.when, facts).truth is True]
    for defect in matched:
        yield catalog.word(
            "defect-matched",
            lang,
            version=version,
            title=defect.title[lang],
            fixed=defect.fixed,
            work_around=defect.work_around[lang],
            source=defect.sources[0].title or defect.sources[0].url or "",
        )
    rest = [d for d in found if d not in matched]
    if len(rest) == 1:
        only = rest[0]
        source = only.sources[0].title or only.sources[0].url or ""
        yield catalog.word("defect-one", lang, version=version, fixed=only.fixed, title=only.title[lang], source=source)
    elif rest:
        newest = max((d.fixed for d in catalog.defects), key=release)  # not one that brings others
        titles = ("；" if lang == "zh" else "; ").join(d.title[lang] for d in rest[:MOST_TITLES])
        yield catalog.word("defects-many", lang, version=version, n=len(rest), fixed=newest, titles=titles)
