"""Which vLLM version this is: what log, server, metrics and person say, or what the style of the lines tells.

The word of a server counts more than a log's, a log's more than a person's (the order of :mod:`assistant.diagnosis.truth`).
Where nobody names a version, every line with a known message narrows it: a message, and each of its spellings, exists
in some releases only, and so does the look of a line. That gives an interval, never a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from assistant.diagnosis.model import Case
from knowledge.catalog import Catalog
from knowledge.versions import Number, describe, is_between, parse, release
from tools.evidence import Evidence

Source = Literal["server", "log", "person", "style", "none"]

#: So many lines that tell releases apart are needed before a style is believed, unless they leave few releases.
FEWEST_WITNESSES = 2
#: An interval over more than this share of the releases says nothing worth saying.
MOST_OF_ALL = 0.8
_MOST_LINES = 4_000


@dataclass(frozen=True, slots=True)
class Said:
    """One source and the version it names."""

    source: Source
    version: str
    where: str  # "server.log", "GET http://.../version", "--vllm-version"
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """The version of an incident.

    ``version`` is the text that the best source gives, ``None`` where only an interval or nothing is known. ``low`` and
    ``high`` are the first and last release that fit (both ``None`` for nothing known, which means the newest).
    ``assumed`` is the version to write commands for. ``others`` are sources that contradict ``source``.
    """

    version: str | None
    source: Source
    assumed: str
    low: str | None = None
    high: str | None = None
    build: str = "release"
    said: Said | None = None
    others: tuple[Said, ...] = ()
    witnesses: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the JSON answer."""
        return {
            "from": self.source,
            "since": self.low,
            "until": self.high,
            "build": self.build,
            "assumed": self.assumed,
            "contradicted_by": [{"from": o.source, "version": o.version, "where": o.where} for o in self.others],
        }


def resolve(case: Case, catalog: Catalog) -> Resolved:
    """The version of a case; pure, and cheap where somebody names one."""
    styles = _styles(catalog.styles_json)
    newest = styles.versions[-1]
    found = sorted(_said(case), key=lambda s: _ORDER.index(s.source))
    named = [s for s in found if parse(s.version) is not None]
    if named:
        best = named[0]
        others = tuple(_distinct(s for s in named[1:] if parse(s.version) != parse(best.version)))
        at = _examined(best.version, styles.versions)
        return Resolved(best.version, best.source, best.version, at, at, describe(best.version).build, best, others)
    unnamed = found[0] if found else None  # "dev", "0.1.dev1+g...": somebody's build without a number
    low, high, witnesses = _by_style(case.reading.evidence, styles)
    if low is None or high is None:
        return Resolved(None, "none", newest, build="unnamed" if unnamed else "release", said=unnamed)
    version = low if low == high else None
    return Resolved(
        None, "style", version or high, low, high, "unnamed" if unnamed else "release", unnamed, (), witnesses
    )


_ORDER: tuple[Source, ...] = ("server", "log", "person", "style", "none")


def _said(case: Case) -> Iterator[Said]:
    """Everybody who names a version. The last run's banner is what the reader hands over."""
    if case.vllm_version and case.vllm_version.strip():
        yield Said("person", case.vllm_version.strip()[:80], "--vllm-version")
    answered = case.answers.get("server.version")
    if answered:
        yield Said("person", str(answered)[:80], "--answer")
    rows = [e for e in case.reading.evidence if e.name == "server.version" and e.state == "present"]
    for item in sorted(rows, key=lambda e: -e.origin.order):
        yield Said(_source_of(item), str(item.value)[:80], item.origin.source, item.origin.line)


def _source_of(item: Evidence) -> Source:
    source = item.origin.source
    if source.startswith(("GET ", "check_", "fetch_")):
        return "server"
    return "person" if source == "person" else "log"


def _distinct(rows: Iterable[Said]) -> Iterator[Said]:
    seen: set[tuple[str, Number | None]] = set()
    for row in rows:
        key = (row.source, parse(row.version))
        if key not in seen:
            seen.add(key)
            yield row


def _examined(version: str, versions: Sequence[str]) -> str:
    wanted = release(version)
    older = [known for known in versions if release(known) <= wanted]
    return older[-1] if older else versions[0]


# -- style --------------------------------------------------------------------------------------------------------


#: The first release that prints something and the first that does not any more; None where it still does.
_Range = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class _Styles:
    versions: tuple[str, ...]
    lines: tuple[tuple[Any, str, str | None], ...]  # pattern for the head of a line, since, until
    processes: tuple[tuple[Any, str, str | None], ...]
    messages: Mapping[str, Sequence[tuple[Sequence[str], Sequence[tuple[str, str | None]]]]]


@lru_cache(maxsize=4)
def _styles(text: str) -> _Styles:
    import re2

    raw = json.loads(text)
    lines = tuple((re2.compile(r["line"]), r["since"], r.get("until")) for r in raw["lines"] if "line" in r)
    labels = tuple(
        (re2.compile(r["process"] + " pid"), r["since"], r.get("until")) for r in raw["lines"] if "process" in r
    )
    return _Styles(tuple(raw["versions"]), lines, labels, raw["messages"])


def _by_style(evidence: Sequence[Evidence], styles: _Styles) -> tuple[str | None, str | None, int]:
    """The first and last release in which lines look and read like these, and how many lines tell."""
    telling = dict(_ranges([item for item in evidence[:_MOST_LINES] if item.state == "present"], styles))
    witnesses = [_within(ranges, styles.versions) for ranges in telling.values()]
    witnesses = [w for w in witnesses if len(w) < len(styles.versions)]
    if not witnesses:
        return None, None, 0
    agree = {v: sum(v in w for w in witnesses) for v in styles.versions}
    # One line may be quoted from elsewhere: of five and more witnesses, one may be wrong.
    needed = len(witnesses) - (1 if len(witnesses) >= 5 else 0)
    needed = len(witnesses) if any(n == len(witnesses) for n in agree.values()) else needed
    fitting = [v for v in styles.versions if agree[v] >= needed]
    too_wide = len(fitting) > MOST_OF_ALL * len(styles.versions)
    if not fitting or too_wide or (len(witnesses) < FEWEST_WITNESSES and len(fitting) > len(styles.versions) // 2):
        return None, None, 0
    return _base(fitting[0]), fitting[-1], len(witnesses)


def _base(version: str) -> str:
    """The release that a post release mends: what the one prints, the other printed too as far as is known."""
    major, minor, patch, post = release(version)
    return f"{major}.{minor}.{patch}" if post else version


def _ranges(evidence: Sequence[Evidence], styles: _Styles) -> Iterator[tuple[str, tuple[_Range, ...]]]:
    """What tells something of the version, by name, and the releases that it fits."""
    for process in {item.origin.process for item in evidence if item.origin.process}:
        for pattern, since, until in styles.processes:
            if pattern.match(process):
                yield f"process {since}", ((since, until),)
    # No style goes beyond its line, so all heads are looked at as one text.
    heads = "\n".join(item.quote[:200] for item in evidence if item.quote)
    for pattern, since, until in styles.lines:
        if pattern.search(heads):
            yield f"line {since}", ((since, until),)
    for item in reversed(evidence):  # the first of several counts
        if item.name.startswith("message:") and item.quote:
            spelled = styles.messages.get(item.name[8:], ())
            fitting = [ranges for parts, ranges in spelled if all(part in item.quote for part in parts)]
            if fitting:
                yield item.name, tuple((since, until) for ranges in fitting for since, until in ranges)


@lru_cache(maxsize=4_096)
def _within(ranges: tuple[_Range, ...], versions: tuple[str, ...]) -> frozenset[str]:
    return frozenset(v for v in versions if any(is_between(v, since, until) for since, until in ranges))


# -- as said to people --------------------------------------------------------------------------------------------


def label(found: Resolved, catalog: Catalog, lang: str) -> str:
    """The version as one short phrase: ``vLLM 0.10.2``, ``between 0.9 and 0.11 by the style of its lines``."""
    if found.version is not None:
        return catalog.word("label-version", lang, version=found.version)
    if found.source == "style" and found.low and found.high:
        key = "label-version-style-one" if found.low == found.high else "label-version-style"
        return catalog.word(key, lang, low=found.low, high=found.high)
    return catalog.word("label-version-unknown", lang)


def notes(found: Resolved, catalog: Catalog, lang: str) -> Iterator[str]:
    """Sentences about the version that a person should know: contradictions, builds between releases."""
    if found.said is not None and found.others:
        for other in found.others[:3]:
            yield catalog.word(
                "version-disagrees",
                lang,
                best=found.version,
                from_best=catalog.word(f"version-from-{found.source}", lang),
                other=other.version,
                from_other=catalog.word(f"version-from-{other.source}", lang),
            )
    if found.build == "development" and found.version:
        yield catalog.word("version-development", lang, version=found.version, release=found.low)
    elif found.build == "unnamed" and found.said is not None:
        yield catalog.word("version-unnamed", lang, version=found.said.version, assumed=found.assumed)
