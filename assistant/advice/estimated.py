"""Values of fixes that the memory estimate gives where the log alone does not: the one place where advice asks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from assistant.diagnosis.truth import Facts

if TYPE_CHECKING:
    from tools.memory.advise import Advised

#: The observables that the estimate reads; others change nothing.
_READ = ("memory.", "engine.", "server.", "parallel.", "argument.", "gpu.name")


def estimated(facts: Facts) -> Advised | None:
    """What the estimate advises for these facts; ``None`` where model or GPU are not known to it."""
    stated = tuple(
        sorted(
            (name, found.value)
            for name, found in facts.values.items()
            if found.state == "present" and found.value is not None and name.startswith(_READ)
        )
    )
    names = {name for name, _ in stated}
    if "server.model" not in names or not names & {"memory.total_gib", "gpu.name"}:
        return None  # before anything is imported: most logs end here
    return _advised(stated)


@lru_cache(maxsize=16)
def _advised(stated: tuple[tuple[str, str | int | float | bool], ...]) -> Advised | None:
    from tools.memory.advise import advise

    return advise(dict(stated))


#: For each named calculation, what the estimate says to it.
_VALUES: dict[str, Callable[[Advised], str | None]] = {
    "longest_context_that_fits": lambda a: str(a.longest_context) if a.longest_context else None,
    "utilization_that_fits": lambda a: f"{a.utilization:.2f}" if a.utilization else None,
    "smaller_step": lambda a: str(a.max_num_batched_tokens) if a.max_num_batched_tokens else None,
    "one_more_doubling": lambda a: str(a.tensor_parallel_size) if a.tensor_parallel_size else None,
    "offloaded_weights": lambda a: f"{a.cpu_offload_gb:g}" if a.cpu_offload_gb else None,
}


def value_of(calculation: str, facts: Facts) -> str | None:
    """The value of a named calculation as it is typed; ``None`` where the estimate has none."""
    take = _VALUES.get(calculation)
    advised = estimated(facts) if take is not None else None
    return take(advised) if take is not None and advised is not None else None
