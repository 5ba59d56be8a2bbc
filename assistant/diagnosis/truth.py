"""Three-valued truth over evidence: ``True``, ``False`` and ``None`` for "not known".

A condition that cannot be decided is ``None`` and stays ``None`` under ``not``; only ``all`` with a false part and
``any`` with a true part are decided in spite of it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from assistant.diagnosis.model import Case
from knowledge.catalog import Catalog
from knowledge.shapes import Condition
from tools.evidence import Evidence, Origin

Truth = bool | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The truth of a condition and the evidence that made it true."""

    truth: Truth
    support: tuple[Evidence, ...] = ()


_FALSE, _UNKNOWN = Judgement(False), Judgement(None)
_COMPARISONS = {"at_most": operator.le, "at_least": operator.ge, "above": operator.gt, "below": operator.lt}


@dataclass(slots=True)
class Facts:
    """The evidence of one case, arranged for questions.

    ``exhaustive`` says that a message not seen was not printed, at least by the run that was read from its start;
    ``asked`` that a person wrote or pasted something, rather than handing over log files only.
    """

    messages: dict[str, list[Evidence]] = field(default_factory=dict)
    values: dict[str, Evidence] = field(default_factory=dict)
    said: Mapping[str, Evidence] = field(default_factory=dict)
    exhaustive: bool = False
    has_text: bool = False
    asked: bool = False

    def names(self) -> frozenset[str]:
        """Everything that is there, in the spelling of :func:`knowledge.conditions.needs`."""
        return frozenset(
            {f"message:{name}" for name in self.messages} | {f"said:{name}" for name in self.said} | set(self.values)
        )

    def value(self, name: str) -> Any:
        """The value of an observable, or ``None`` where it is unknown or absent."""
        found = self.values.get(name)
        return found.value if found is not None and found.state == "present" else None


def _rank(origin: Origin) -> int:
    """Whose word counts more when two sources disagree: a tool's, then metrics', then a log's, then a person's."""
    source = origin.source
    if source in ("person", "text"):
        return 0
    if source.startswith("GET "):
        return 2
    return 3 if source.startswith(("check_", "run_")) else 1


def gather_facts(case: Case, catalog: Catalog, concepts: frozenset[str]) -> Facts:
    """Arranges a case: what was read, what the person said (and what saying it states), what the person answered."""
    facts = Facts(has_text=bool(case.text.strip()))
    facts.exhaustive = bool(case.reading.coverage) and all(c.would_show for c in case.reading.coverage)
    facts.asked = facts.has_text or any(c.pasted for c in case.reading.coverage)
    text_origin = Origin("text")
    facts.said = {
        name: Evidence(f"said:{name}", "present", True, text_origin, case.text[:200]) for name in sorted(concepts)
    }
    words = "given" if facts.has_text else "none"
    facts.values["incident.words"] = Evidence("incident.words", "present", words, text_origin)
    log = "given" if case.reading.coverage else "none"
    facts.values["incident.log"] = Evidence("incident.log", "present", log, text_origin)
    stated: dict[str, set[str]] = {}
    for concept in sorted(concepts):
        for name, value in catalog.meanings.get(concept, {}).items():
            stated.setdefault(name, set()).add(str(value))
    for name, values in stated.items():
        if len(values) == 1:  # a person who says two contrary things has not said which holds
            facts.values[name] = Evidence(name, "present", values.pop(), text_origin, case.text[:200])
    for item in case.reading.evidence:
        if item.name.startswith("message:"):
            if item.state == "present":
                facts.messages.setdefault(item.name[8:], []).append(item)
            continue
        known = facts.values.get(item.name)
        key = (item.state == "present", _rank(item.origin), item.origin.order)
        if known is None or key >= (known.state == "present", _rank(known.origin), known.origin.order):
            facts.values[item.name] = item
    for name, value in case.answers.items():
        if value != "unknown":
            facts.values[name] = Evidence(name, "present", value, Origin("person"), value)
        elif name not in facts.values:  # asked and not known: asking again would bring nothing
            why = "the person who was asked does not know"
            facts.values[name] = Evidence(name, "unknown", None, Origin("person"), why_unknown=why)
    _derive_phase(case, facts)
    for found in facts.messages.values():
        found.sort(key=lambda e: e.origin.order)
    return facts


def _derive_phase(case: Case, facts: Facts) -> None:
    """A log read from its start settles whether the server had come up; the person's word only counts without it.

    A log that begins later settles nothing: traffic may be followed by a restart whose banner was cut away.
    """
    if case.answers.get("incident.phase", "unknown") != "unknown":
        return
    for coverage in case.reading.coverage:
        if not coverage.from_start:
            continue
        if coverage.ready or coverage.ended == "failed":
            phase = "serving" if coverage.ready else "startup"
            facts.values["incident.phase"] = Evidence("incident.phase", "present", phase, Origin(coverage.source, 1))


def judge(condition: Condition, facts: Facts) -> Judgement:
    """Decides a condition. Unknown tests raise ``KeyError``: the checker refuses them before they get here."""
    ((key, test),) = condition.items()
    if key == "all":
        return _all(test, facts)
    if key == "any":
        parts = [judge(part, facts) for part in test]
        true = [p for p in parts if p.truth is True]
        if true:
            return Judgement(True, tuple(e for p in true for e in p.support))
        return Judgement(None if any(p.truth is None for p in parts) else False)
    if key == "not":
        inner = judge(test, facts).truth
        return Judgement(None if inner is None else not inner)
    if key == "after":
        return _after(*(judge(part, facts) for part in test))
    if key == "message":
        found = facts.messages.get(test)
        if found:
            return Judgement(True, tuple(found))
        return _FALSE if facts.exhaustive else _UNKNOWN
    if key == "said":
        said = facts.said.get(test)
        if said is not None:
            return Judgement(True, (said,))
        return _FALSE if facts.has_text else _UNKNOWN
    return _compare(key, test, facts)


def _all(conditions: Sequence[Condition], facts: Facts) -> Judgement:
    parts = []
    for condition in conditions:
        part = judge(condition, facts)
        if part.truth is False:
            return _FALSE
        parts.append(part)
    if any(p.truth is None for p in parts):
        return _UNKNOWN
    return Judgement(True, tuple(e for p in parts for e in p.support))


def _after(late: Judgement, early: Judgement) -> Judgement:
    """Whether what makes one condition true was seen later than the last of what makes the other true.

    Two things are before and after each other only inside one source; elsewhere the order is not known.
    """
    if late.truth is not True or early.truth is not True:
        return Judgement(False if False in (late.truth, early.truth) else None)
    sources = {item.origin.source for item in (*late.support, *early.support)}
    if len(sources) != 1:
        return _UNKNOWN
    begins = max(item.origin.order for item in late.support)
    if begins <= max(max(item.last, item.origin.order) for item in early.support):
        return _FALSE
    return Judgement(True, late.support + early.support)


def _compare(name: str, tests: Mapping[str, Any], facts: Facts) -> Judgement:
    item = facts.values.get(name)
    if "absent" in tests:
        if item is None:
            return Judgement(bool(tests["absent"]) if facts.exhaustive else None)
        if item.state == "unknown":
            return _UNKNOWN
        return Judgement((item.state == "absent") == bool(tests["absent"]), (item,))
    if item is None or item.state == "unknown":
        return _UNKNOWN
    if item.state == "absent":
        return _FALSE
    truth = all(_test(kind, item.value, wanted) for kind, wanted in tests.items())
    return Judgement(truth, (item,) if truth else ())


def _test(kind: str, value: Any, wanted: Any) -> bool:
    if kind == "is":
        return _same(value, wanted)
    if kind == "is_not":
        return not _same(value, wanted)
    if kind == "one_of":
        return any(_same(value, one) for one in wanted)
    if kind == "matches":
        return _pattern(str(wanted)).search(str(value)) is not None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return bool(_COMPARISONS[kind](number, float(wanted)))


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return str(value).lower() == str(wanted).lower()
    if isinstance(wanted, (int, float)):
        try:
            return float(value) == float(wanted)
        except (TypeError, ValueError):
            return False
    return str(value).lower() == str(wanted).lower()


@lru_cache(maxsize=512)
def _pattern(pattern: str) -> Any:
    """RE2: linear in the value, whatever a log put into it."""
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    return re2.compile(pattern, options)
