"""Values that a log states, one per (name, process): the newest wins, the first is where it is quoted from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from knowledge.templates import as_gib, as_number
from tools.evidence import QUOTE_LIMIT, Evidence, Origin, Value

#: Observables whose value is text; everything else that a message captures is a number.
_TEXT = frozenset({
    "server.version", "server.model", "server.architecture", "server.engine", "server.command",
    "server.arguments", "server.launch", "gpu.name", "gpu.driver", "process.signal", "log.exception", "log.unrecognised",
})  # fmt: skip
#: Kept whole, because commands are made from them; every other text is cut.
_LONG = frozenset({"server.command", "server.arguments"})
_TEXT_FAMILIES = ("argument.", "environment.")
#: More processes than this share one entry, so that a log that invents processes does not grow memory.
_MOST_ENTRIES = 4000


def typed(name: str, value: Value) -> Value:
    """``value`` in the type of observable ``name``: sizes in GiB, plain numbers, or text. ``None`` if it is none."""
    if not isinstance(value, str):
        return value
    if name in _TEXT or name.startswith(_TEXT_FAMILIES):
        return value if name in _LONG else value[:2000]
    return as_gib(value) if name.endswith("_gib") else as_number(value)


@dataclass(slots=True)
class _Fact:
    value: Value
    origin: Origin
    quote: str
    count: int = 1


class Facts:
    """Collects observations of one run."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], _Fact] = {}

    def state(
        self, name: str, value: Value, origin: Origin, quote: str | Callable[[], str] = "", keep: bool = False
    ) -> None:
        """Observe ``name``; with ``keep`` an earlier value of the same process stays.

        ``quote`` may be given as a function, which is called only where the observation is kept.
        """
        value = typed(name, value)
        if value is None:
            return
        key = (name, origin.process)
        known = self._known.get(key)
        if known is None:
            if len(self._known) < _MOST_ENTRIES:
                self._known[key] = _Fact(value, origin, quote if isinstance(quote, str) else quote())
            return
        known.count += 1
        if not keep and known.value != value:
            known.value, known.origin = value, origin
            known.quote = quote if isinstance(quote, str) else quote()

    def value(self, name: str) -> Value:
        """The newest value of any process."""
        found = [fact for (known, _), fact in self._known.items() if known == name]
        return max(found, key=lambda fact: fact.origin.order).value if found else None

    def __contains__(self, name: str) -> bool:
        return any(known == name for known, _ in self._known)

    def names(self) -> set[str]:
        return {name for name, _ in self._known}

    def evidence(self) -> Iterator[Evidence]:
        for (name, _), fact in self._known.items():
            yield Evidence(name, "present", fact.value, fact.origin, fact.quote[:QUOTE_LIMIT], "", fact.count)
