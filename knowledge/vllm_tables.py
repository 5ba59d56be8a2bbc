"""What vLLM has in which version: reading the tables below ``knowledge/vllm``.

A version that was not examined (a build from source, a fork) is read as the newest examined one that is not newer;
``None`` and everything newer than the table as the newest. ``vllm-diagnose sync`` adds versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from knowledge.history import entry_at, ranges
from knowledge.sources import ROOT
from knowledge.templates import fixed_text
from knowledge.versions import parse, release

Range = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument of ``vllm serve`` in one version.

    ``kind``: ``bool`` (a switch; ``no_form`` is its negation where there is one), ``int``, ``float``, ``str``,
    ``json``, ``choice`` (one of ``choices``, with ``open_choices`` others too), ``list`` (several words after the
    flag) or ``optional-value`` (with or without a value). ``element`` is the type of a list's words. ``accepts_human``
    says that ``1k`` and ``25.6M`` are numbers. ``default`` is ``None`` for "unset or decided at start";
    ``default_from`` is the source text of a default that is computed. ``config`` is the class whose fields can be
    given as JSON or, with ``dotted``, as ``--flag.field value``.
    """

    name: str
    python: str
    kind: str
    aliases: tuple[str, ...] = ()
    choices: tuple[Any, ...] | None = None
    open_choices: bool = False
    element: str | None = None
    default: Any = None
    default_from: str | None = None
    no_form: str | None = None
    deprecated: bool = False
    accepts_human: bool = False
    takes_literal_bool: bool = False  # --flag=True and --flag False are accepted by this switch
    config: str | None = None
    dotted: bool = False

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name by which the argument can be given, the documented one first."""
        return (self.name, *self.aliases, *((self.no_form,) if self.no_form else ()))


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable that vLLM reads in one version; ``default`` is the source's text for "unset"."""

    name: str
    default: Any = None
    default_from: str | None = None
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family as ``/metrics`` names it (a counter with its ``_total``), in one version.

    ``engines``: which generations of the engine export it (``V0``, ``V1``) or ``server``. ``hidden``: only with
    ``--show-hidden-metrics-for-version``.
    """

    name: str
    kind: str  # counter | gauge | histogram | info
    labels: tuple[str, ...] = ()
    meaning: str = ""
    engines: tuple[str, ...] = ()
    hidden: bool = False


@lru_cache(maxsize=16)
def _file(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / "vllm" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def versions(root: Path = ROOT) -> list[str]:
    """The versions that were examined, oldest first."""
    return list(_file(root, "flags.json")["_meta"]["versions"])


def examined(version: str | None, root: Path = ROOT) -> str:
    """The examined version that stands for ``version``."""
    known = versions(root)
    wanted = parse(version)
    if wanted is None:
        return known[-1]
    older = [v for v in known if release(v) <= wanted]
    return older[-1] if older else known[0]


@lru_cache(maxsize=256)
def _at(root: Path, name: str, section: str, version: str) -> dict[str, dict[str, Any]]:
    table = _file(root, name)[section]
    found = {key: entry_at(history, version) for key, history in table.items()}
    return {key: entry for key, entry in found.items() if entry is not None}


def _flag(name: str, entry: Mapping[str, Any]) -> Flag:
    choices = entry.get("choices")
    return Flag(
        name=name,
        python=entry.get("python", name.lstrip("-").replace("-", "_")),
        kind=entry["kind"],
        aliases=tuple(entry.get("aliases", ())),
        choices=None if choices is None else tuple(choices),
        open_choices=entry.get("open_choices", False),
        element=entry.get("element"),
        default=entry.get("default"),
        default_from=entry.get("default_from"),
        no_form=entry.get("no_form"),
        deprecated=entry.get("deprecated", False),
        accepts_human=entry.get("accepts_human", False),
        takes_literal_bool=entry.get("takes_literal_bool", False),
        config=entry.get("config"),
        dotted=entry.get("dotted", False),
    )


@lru_cache(maxsize=128)
def _flags(version: str, root: Path) -> dict[str, Flag]:
    return {name: _flag(name, entry) for name, entry in _at(root, "flags.json", "flags", version).items()}


def flags(version: str | None, root: Path = ROOT) -> Mapping[str, Flag]:
    """Every argument of ``vllm serve`` in ``version``, by its documented name."""
    return _flags(examined(version, root), root)


@lru_cache(maxsize=128)
def _spellings(version: str, root: Path) -> dict[str, Flag]:
    found = _flags(version, root)
    every = {spelling: flag for flag in found.values() for spelling in reversed(flag.spellings)}
    every.update({flag.python: flag for flag in found.values()})
    return every


def flag(version: str | None, name: str, root: Path = ROOT) -> Flag | None:
    """The argument that ``name`` means in ``version``, or ``None``.

    ``name`` may be the flag, an alias (``-tp``), the ``--no-`` form, the flag with underscores, a field of a JSON
    argument (``--compilation-config.mode``, where the version takes those), or the Python name.
    """
    known = _spellings(examined(version, root), root)
    plain = name.split("=", 1)[0]
    head, dot, rest = plain.partition(".")
    found = known.get(head) or (known.get(head.replace("_", "-")) if head.startswith("--") else None)
    if found is None or (dot and not found.dotted):
        return None
    if dot and found.config is not None:
        fields = config_fields(version, found.config, root)
        return found if not fields or rest.split(".", 1)[0].replace("-", "_") in fields else None
    return found


def config_fields(version: str | None, config: str, root: Path = ROOT) -> tuple[str, ...]:
    """The keys of the JSON of a configuration class (``CompilationConfig``) in ``version``; empty where unknown."""
    entry = _at(root, "fields.json", "classes", examined(version, root)).get(config)
    return tuple(entry["fields"]) if entry else ()


def variables(version: str | None, root: Path = ROOT) -> Mapping[str, Variable]:
    """Every environment variable that vLLM itself reads in ``version``."""
    found = _at(root, "environment.json", "env_vars", examined(version, root))
    return {
        name: Variable(
            name,
            entry.get("default"),
            entry.get("default_from"),
            tuple(entry["choices"]) if "choices" in entry else None,
        )
        for name, entry in found.items()
    }


def metrics(version: str | None, root: Path = ROOT) -> Mapping[str, Metric]:
    """Every metric family of ``version`` by its exposed name (``vllm:num_requests_running``)."""
    found = _at(root, "metrics.json", "metrics", examined(version, root))
    return {
        name: Metric(
            name,
            entry["kind"],
            tuple(entry.get("labels", ())),
            entry.get("meaning", ""),
            tuple(entry.get("engines", ())),
            entry.get("hidden", False),
        )
        for name, entry in found.items()
    }


@dataclass(frozen=True, slots=True)
class Rename:
    """What says the same in newer versions. ``since`` is the first examined version that knows ``new``; ``until`` the
    first that no longer knows ``old``, or ``None`` while it still does; ``note`` says what a name alone cannot."""

    kind: str  # flag | variable | metric
    old: str
    new: str
    since: str | None
    until: str | None
    note: str = ""


def renames(root: Path = ROOT) -> list[Rename]:
    """Every name that has a successor; a variable's may be a flag."""
    known, rows = versions(root), []
    range_of: Mapping[str, Callable[[str, Path], Range | None]] = {
        "flag": flag_range,
        "variable": variable_range,
        "metric": metric_range,
    }
    for row in _file(root, "renames.json")["renames"]:
        old = range_of[row["kind"]](row["old"], root)
        new = flag_range(row["new"], root) if row["new"].startswith("--") else range_of[row["kind"]](row["new"], root)
        later = known[known.index(old[1]) + 1 :] if old else []
        since, until = new[0] if new else None, later[0] if later else None
        rows.append(Rename(row["kind"], row["old"], row["new"], since, until, row.get("note", "")))
    return rows


def telling(root: Path = ROOT) -> dict[str, list[tuple[list[str], list[tuple[str, str | None]]]]]:
    """Message -> for each spelling that not every release has: its fixed parts, and the (since, until) that have it.

    The parts are as :func:`knowledge.templates.fixed_text` gives them; a printed line of that spelling holds them all.
    """
    found: dict[str, list[tuple[list[str], list[tuple[str, str | None]]]]] = {}
    first = versions(root)[0]
    for name, history in _file(root, "messages.json")["messages"].items():
        spelled: dict[str, dict[str, dict[str, Any] | None]] = {}
        said: list[str] = []
        for version, change in history.items():
            now = [] if change is None else (change.get("says") if "says" in change else said) or []
            for text in now:
                if text not in said:
                    spelled.setdefault(text, {})[version] = {}
            for text in said:
                if text not in now:
                    spelled[text][version] = None
            said = list(now)
        for text, presence in spelled.items():
            spans = ranges(presence)
            parts = fixed_text(text)
            if parts and spans != [(first, None)]:
                found.setdefault(name, []).append((parts, spans))
    return found


def _first_and_last(history: Mapping[str, Any], root: Path) -> Range:
    spans = ranges(history)
    until = spans[-1][1]
    known = versions(root)
    last = known[-1] if until is None else known[max(0, known.index(until) - 1)]
    return spans[0][0], last


@lru_cache(maxsize=4096)
def flag_range(flag: str, root: Path = ROOT) -> Range | None:
    """First and last examined version whose ``vllm serve`` knows ``flag`` (or its alias, or its ``--no-`` form)."""
    parent = flag.split(".", 1)[0]
    table = _file(root, "flags.json")["flags"]
    if parent in table:
        return _first_and_last(table[parent], root)
    having = [
        version
        for version in versions(root)
        if (found := _spellings(version, root).get(parent)) is not None and parent != found.python
    ]
    return (having[0], having[-1]) if having else None


def variable_range(name: str, root: Path = ROOT) -> Range | None:
    """First and last examined version that reads a variable."""
    history = _file(root, "environment.json")["env_vars"].get(name)
    return _first_and_last(history, root) if history else None


def metric_range(name: str, root: Path = ROOT) -> Range | None:
    """First and last examined version that exports the metric family ``name``."""
    history = _file(root, "metrics.json")["metrics"].get(name)
    return _first_and_last(history, root) if history else None
