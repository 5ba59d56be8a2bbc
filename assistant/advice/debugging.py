"""Debug settings that a server was started with: they cost speed or memory and are forgotten easily."""

from __future__ import annotations

from assistant.advice.started import Started
from assistant.diagnosis.truth import Facts
from knowledge.catalog import Catalog

#: The intents whose ``removes`` are such settings.
_INTENTS = ("remove-debug-variables", "use-graphs-again")
_OFF = frozenset({"", "0", "false", "off", "none", "no", "warn", "warning", "error", "critical", "version"})


def debug_settings(facts: Facts, started: Started, catalog: Catalog) -> tuple[str, ...]:
    """Names of the debug variables and arguments that are on, as the user would spell them."""
    found: list[str] = []
    given = dict(started.variables)
    for intent in _INTENTS:
        for name in catalog.intents[intent].removes if intent in catalog.intents else ():
            if name.isupper():
                value = given[name].literal if name in given else facts.value(f"environment.{name}")
                text = "" if value is None else str(value).strip().lower()
                if text not in _OFF and not (text == "info" and not name.startswith("NCCL")) and text.isprintable():
                    found.append(f"{name}={str(value)[:40]}")
            else:
                argument = started.argument(name)
                stated = facts.value(f"argument.{name}")
                if (argument is not None and not argument.name.startswith("--no-")) or (argument is None and stated is True):  # fmt: skip
                    found.append(argument.name if argument is not None else "--" + name.replace("_", "-"))
    return tuple(found)
