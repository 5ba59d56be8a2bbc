"""The walk through the tree, with every step kept, and what would bring the answer further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from assistant.diagnosis.model import Language, NextStep, Step
from assistant.diagnosis.score import Candidate
from assistant.diagnosis.truth import Facts, judge
from knowledge.catalog import Catalog
from knowledge.shapes import Condition

#: What it costs to learn an observable, by who can supply it; the cheapest supplier counts.
COST = {"read_text": 0.0, "read_logs": 0.0, "read_responses": 0.0, "person": 3.0}
OTHER_TOOL = 1.0
#: A tree longer than this has a circle.
_MOST_STEPS = 40


def walk(facts: Facts, catalog: Catalog, language: Language) -> tuple[Step, ...]:
    """Follows the tree from its start: each node is answered by evidence, or goes its ``unknown`` way."""
    steps: list[Step] = []
    name = catalog.tree.start
    for _ in range(_MOST_STEPS):
        if name == "decide":
            break
        node = catalog.tree.nodes[name]
        item = facts.values.get(node.observe)
        if item is not None and item.state == "present":
            value = str(item.value)
            person = item.origin.source == "person"
            steps.append(
                Step(
                    name,
                    node.question[language],
                    _label(catalog, node.observe, value, language),
                    "person" if person else "evidence",
                )
            )
            name = node.next.get(value) or node.next.get("any") or node.next.get("unknown", "decide")
        else:
            if not _needs_a_target(catalog, node.observe):  # a question nobody could have answered is no step
                steps.append(Step(name, node.question[language], catalog.word("answer-unknown", language), "default"))
            name = node.next.get("unknown") or node.next.get("any", "decide")
    return tuple(steps)


def _needs_a_target(catalog: Catalog, observable: str) -> bool:
    """Whether only a look at the target's own surroundings can tell."""
    declared = catalog.observable(observable)
    return declared is not None and declared.suppliers == ("look_at_target",)


def _label(catalog: Catalog, observable: str, value: str, language: Language) -> str:
    declared = catalog.observable(observable)
    choice = declared.choices.get(value) if declared is not None else None
    return choice[language] if choice else value


def observables_in(condition: Condition) -> Iterator[str]:
    """The observables that a condition asks for."""
    for key, test in condition.items():
        if key in ("all", "any", "after"):
            for part in test:
                yield from observables_in(part)
        elif key == "not":
            yield from observables_in(test)
        elif key not in ("message", "said"):
            yield key


def open_questions(
    ranked: Sequence[Candidate], facts: Facts, catalog: Catalog, language: Language, at_most: int = 2
) -> Iterator[NextStep]:
    """Questions to the person that split the leading candidates best for their cost, best first.

    A question splits when some leaders hold a condition on its observable that is unknown now and others do not.
    """
    leaders = [c for c in ranked if c.excluded_by is None][:5]
    worth: dict[str, float] = {}
    for position, candidate in enumerate(leaders):
        conditions = [s.when for s in candidate.cause.signals if s.when is not None]
        conditions += [e.when for e in candidate.cause.ruled_out]
        asked = {
            name
            for condition in conditions
            if judge(condition, facts).truth is None
            for name in observables_in(condition)
        }
        for name in asked:
            worth[name] = worth.get(name, 0.0) + 1.0 / (1 + position)
    for step in _tree_questions(facts, catalog):
        worth[step] = worth.get(step, 0.0) + 0.3
    ranked_names = sorted(worth, key=lambda n: (-worth[n] / (1 + _cost(catalog, n)), n))
    given = 0
    for name in ranked_names:
        declared = catalog.observable(name)
        if given >= at_most or declared is None or declared.ask is None or name in facts.values:
            continue
        given += 1
        choices = tuple((value, words[language]) for value, words in declared.choices.items())
        yield NextStep(
            id=name,
            action="ask",
            text=declared.ask[language],
            choices=(*choices, ("unknown", catalog.word("choice-unknown", language))),
        )


def _tree_questions(facts: Facts, catalog: Catalog) -> Iterator[str]:
    """Observables that the walk met and did not know, in its order."""
    name = catalog.tree.start
    for _ in range(_MOST_STEPS):
        if name == "decide":
            return
        node = catalog.tree.nodes[name]
        value = facts.value(node.observe)
        if value is None:
            yield node.observe
            name = node.next.get("unknown") or node.next.get("any", "decide")
        else:
            name = node.next.get(str(value)) or node.next.get("any") or node.next.get("unknown", "decide")


def _cost(catalog: Catalog, name: str) -> float:
    declared = catalog.observable(name)
    if declared is None:
        return COST["person"]
    return min((COST.get(s, OTHER_TOOL) for s in declared.suppliers if s != "read_logs"), default=OTHER_TOOL)
