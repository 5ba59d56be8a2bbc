"""What differs between a good log and a bad one: version, arguments, GPU, driver, memory, durations."""

from __future__ import annotations

from assistant.diagnosis.model import Case
from knowledge.catalog import Catalog
from tools.evidence import Evidence, Origin

#: Facts worth comparing, besides all arguments and environment variables.
_COMPARED = (
    "server.version", "server.model", "server.architecture", "server.engine", "gpu.name", "gpu.count", "gpu.driver",
    "parallel.world_size", "memory.total_gib", "memory.free_gib", "memory.weights_gib", "memory.activation_gib",
    "memory.non_torch_gib", "memory.graphs_gib", "memory.available_kv_gib", "engine.kv_cache_tokens", "engine.max_model_len",
    "engine.max_concurrency", "loading.seconds", "log.stage", "log.stage_seconds", "log.seconds_per_shard", "log.failures",
)  # fmt: skip
_FAMILIES = ("argument.", "environment.")
#: Durations and sizes that differ by less than this share are the same.
_SAME_SHARE = 0.1
_MOST_NOTES = 30


def _values(case: Case) -> dict[str, Evidence]:
    values: dict[str, Evidence] = {}
    for item in case.reading.evidence:
        if item.state == "present" and (item.name in _COMPARED or item.name.startswith(_FAMILIES)):
            values[item.name] = item
    return values


def _differ(good: Evidence | None, bad: Evidence | None) -> bool:
    if good is None or bad is None:
        # A fact that one log does not state is no difference, unless it was given on the command line.
        present = good or bad
        return present is not None and present.name.startswith(_FAMILIES)
    a, b = good.value, bad.value
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return abs(a - b) > _SAME_SHARE * max(abs(a), abs(b))
    return str(a) != str(b)


def compare_logs(good: Case, bad: Case, catalog: Catalog) -> tuple[tuple[str, ...], tuple[Evidence, ...]]:
    """Sentences on what differs, and the differences as evidence (``incident.changed``) where they are of one kind."""
    lang = bad.language
    ours, theirs = _values(bad), _values(good)
    notes: list[str] = []
    kinds: set[str] = set()
    for name in sorted(set(ours) | set(theirs)):
        before, now = theirs.get(name), ours.get(name)
        if not _differ(before, now):
            continue
        missing = "-"
        notes.append(
            catalog.word(
                "compare-was",
                lang,
                name=name.removeprefix("argument.").removeprefix("environment."),
                good=before.value if before else missing,
                bad=now.value if now else missing,
            )
        )
        if name == "server.version":
            kinds.add("vllm")
        elif name.startswith(_FAMILIES):
            kinds.add("arguments")
        elif name in ("server.model", "server.architecture"):
            kinds.add("model")
        elif name.startswith("gpu."):
            kinds.add("host")
    heading = catalog.word("heading-compare", lang)
    if not notes:
        return (catalog.word("compare-nothing", lang),), ()
    evidence = ()  # type: tuple[Evidence, ...]
    if len(kinds) == 1:
        source = good.reading.looked_at[0].source if good.reading.looked_at else "good log"
        evidence = (Evidence("incident.changed", "present", kinds.pop(), Origin(source)),)
    return tuple(f"{heading}: {note}" for note in notes[:_MOST_NOTES]), evidence
