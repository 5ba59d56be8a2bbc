"""Which tool of the node would decide between the leading causes, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from assistant.diagnosis.model import Language, NextStep
from assistant.diagnosis.score import Candidate
from assistant.diagnosis.truth import Facts, judge
from assistant.diagnosis.walk import observables_in
from knowledge.catalog import Catalog

#: What asking a tool costs and what it does to the machine; a sentence ``step-NAME`` says how to call it.
TOOLS = {
    "check_gpu": (1.0, "reads"),
    "check_host": (1.0, "reads"),
    "check_network": (1.0, "reads"),
    "capture": (10.0, "runs"),
    "run_nccl_test": (10.0, "loads"),
    "run_compile_test": (10.0, "loads"),
    "measure_loading": (10.0, "loads"),
}


def tool_steps(ranked: Sequence[Candidate], facts: Facts, catalog: Catalog, language: Language, at_most: int = 2) -> Iterator[NextStep]:  # fmt: skip
    """Tools that supply what the leading causes ask for and nobody knows yet, by their worth for their cost."""
    worth: dict[str, float] = {}
    leaders = [candidate for candidate in ranked if candidate.excluded_by is None][:3]
    for position, candidate in enumerate(leaders):
        wanted = {
            name
            for signal in candidate.cause.signals
            if signal.when is not None and judge(signal.when, facts).truth is None
            for name in observables_in(signal.when)
            if name not in facts.values
        }
        for name in wanted:
            declared = catalog.observable(name)
            tools = [t for t in declared.suppliers if t in TOOLS] if declared is not None else []
            if tools and not {"read_logs", "read_text"} & set(declared.suppliers if declared else ()):
                worth[tools[0]] = worth.get(tools[0], 0.0) + 1.0 / (1 + position)
    for tool in sorted(worth, key=lambda t: (-worth[t] / TOOLS[t][0], t))[:at_most]:
        yield NextStep(
            id=f"tool-{tool}", action="run_tool", text=catalog.word(f"step-{tool}", language), tool=tool, effect=TOOLS[tool][1]
        )  # fmt: skip
