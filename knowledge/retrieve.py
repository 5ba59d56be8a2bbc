"""Finds causes and document sections for a few words, in both languages.

An id comes first, then causes whose own error text stands in the query, then full text: BM25 over stems and pairs of
Chinese characters, with titles weighted, and the concepts that carry meaning between the languages.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from knowledge.catalog import Catalog
from knowledge.documents import Section, own_sections
from knowledge.search import ConceptReader, rank
from knowledge.shapes import Cause
from knowledge.templates import literal_of
from knowledge.text import normalise, tokens

#: BM25's usual constants (Robertson and Zaragoza, 2009).
K1, B = 1.2, 0.6
#: A word of a title counts so many times.
TITLE_WEIGHT = 4.0
CONCEPT_WEIGHT = 1.5
#: What likeness to the causes' symptom sentences adds, in units of a good BM25 score.
LIKENESS_WEIGHT = 150.0
LIKENESS_POWER = 2.0
#: Likeness to the titles, likewise.
TITLE_LIKENESS_WEIGHT = 60.0
#: An error text of the message table that stands in the query.
MESSAGE_BONUS = 12.0
#: Shorter pieces of an error text stand in many sentences.
SHORTEST_MESSAGE = 12
QUERY_LIMIT = 600
#: Hits with less than this share of the best one's score are noise.
LEAST_SHARE = 0.25
OTHER_LANGUAGE = 0.55
#: What stands before the first section of a document only says what the sections hold.
INTRODUCTION = 0.5
_MARK = "§"


Kind = Literal["cause", "section", "site"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing found: a cause (its id) or a section (``document#anchor``)."""

    kind: Kind
    id: str
    title: str
    score: float
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: Kind
    id: str
    language: str
    titles: tuple[tuple[str, str], ...]  # (language, title)
    excerpt: str


class Retriever:
    """Prepared once, then asked any number of times; holds everything in memory."""

    def __init__(
        self, catalog: Catalog, sections: Iterable[Section] | None = None, site: Iterable[Section] = ()
    ) -> None:
        self._catalog = catalog
        self._reader = ConceptReader(catalog.concepts)
        self._entries: list[_Entry] = []
        self._postings: dict[str, dict[int, float]] = defaultdict(dict)
        self._lengths: list[float] = []
        self._titles: dict[str, list[tuple[int, float]]] = defaultdict(list)  # term -> (entry, weight in a unit title)
        headings: list[tuple[int, list[str]]] = []  # an entry and its titles, the name of its document first
        for cause in catalog.causes.values():
            entry = _Entry("cause", cause.id, "", tuple(cause.title.items()), cause.explanation["en"][:160])
            headings.append((len(self._entries), [cause.id.split("/", 1)[1].replace("-", " "), *cause.title.values()]))
            self._add(entry, " ".join(headings[-1][1]), _body(cause, catalog))
        for kind, group in (("section", own_sections() if sections is None else sections), ("site", site)):
            for section in group:
                headings.append((len(self._entries), _headings(section)))
                self._add_section(section, "section" if kind == "section" else "site")
        self._mean = sum(self._lengths) / max(1, len(self._lengths))
        self._index_titles(headings)
        self._places = {entry.id: number for number, entry in enumerate(self._entries) if entry.kind == "cause"}
        self._names = _names(self._entries)
        self._literals = _literals(catalog)

    def _add_section(self, section: Section, kind: Kind) -> None:
        entry = _Entry(kind, section.id, section.language, ((section.language, section.title),), section.text[:160])
        self._add(entry, f"{section.title} {section.document.replace('-', ' ')}", section.text)

    def _add(self, entry: _Entry, title: str, body: str) -> None:
        number = len(self._entries)
        self._entries.append(entry)
        counts: Counter[str] = Counter()
        text, heading = normalise(body), normalise(title)
        counts.update(tokens(text))
        length = float(sum(counts.values()))
        weighted: dict[str, float] = dict(counts)
        for term in tokens(heading):
            weighted[term] = weighted.get(term, 0.0) + TITLE_WEIGHT
        for concept in self._reader.read(heading):
            weighted[_MARK + concept] = weighted.get(_MARK + concept, 0.0) + 2.0
        for term, count in weighted.items():
            self._postings[term][number] = count
        self._lengths.append(length + 12.0)

    def _index_titles(self, headings: list[tuple[int, list[str]]]) -> None:
        """Unit vectors of every title by itself, over words and concepts."""
        for number, titles in headings:
            for title in titles:
                words = normalise(title)
                terms = {term: self._rarity(term) for term in tokens(words)}
                terms |= {_MARK + c: self._rarity(_MARK + c) * 0.7 for c in self._reader.read(words)}
                norm = math.sqrt(sum(w * w for w in terms.values())) or 1.0
                for term, weight in terms.items():
                    self._titles[term].append((number, weight / norm))

    def _rarity(self, term: str) -> float:
        having = len(self._postings.get(term, ()))
        return math.log(1 + (len(self._entries) - having + 0.5) / (having + 0.5))

    def _add_title_likeness(self, words: str, concepts: frozenset[str], found: dict[int, float]) -> None:
        terms = {term: self._rarity(term) for term in tokens(words)}
        terms |= {_MARK + c: self._rarity(_MARK + c) * 0.7 for c in concepts}
        norm = math.sqrt(sum(w * w for w in terms.values())) or 1.0
        alike: dict[int, float] = defaultdict(float)
        for term, weight in terms.items():
            for number, other in self._titles.get(term, ()):
                alike[number] += weight * other / norm
        for number, score in alike.items():
            found[number] += TITLE_LIKENESS_WEIGHT * min(1.0, score) ** 2

    def search(self, query: str, limit: int = 5, language: str = "", *, kind: Kind | None = None) -> list[Hit]:
        """The best hits, best first, of one kind if asked; sections of the other language count less.

        Causes and sections answer different questions ("what is it", "how does it work"), so faces show them apart.
        """
        words = normalise(query[:QUERY_LIMIT])
        found: dict[int, float] = defaultdict(float)
        concepts = self._reader.read(words)
        total = len(self._entries)
        terms = [(term, 1.0) for term in dict.fromkeys(tokens(words))]
        terms += [(_MARK + concept, CONCEPT_WEIGHT) for concept in concepts]
        for term, weight in terms:
            posting = self._postings.get(term)
            if not posting:
                continue
            rarity = weight * math.log(1 + (total - len(posting) + 0.5) / (len(posting) + 0.5))
            for number, count in posting.items():
                norm = K1 * (1 - B + B * self._lengths[number] / self._mean)
                found[number] += rarity * count * (K1 + 1) / (count + norm)
        self._add_likeness(words, concepts, found)
        self._add_title_likeness(words, concepts, found)
        self._add_exact(words, found)
        scored = []
        for number, score in found.items():
            entry = self._entries[number]
            if kind is not None and entry.kind != kind:
                continue
            if language and entry.language and entry.language != language:
                score *= OTHER_LANGUAGE
            if entry.kind == "section" and "#" not in entry.id:
                score *= INTRODUCTION
            scored.append((score, number))
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        hits: dict[str, Hit] = {}  # a section in both languages is one hit
        for score, number in scored:
            if len(hits) >= limit:
                break
            hits.setdefault(self._entries[number].id, self._hit(number, score, language))
        return list(hits.values())

    def _add_likeness(self, words: str, concepts: frozenset[str], found: dict[int, float]) -> None:
        for like in rank(words, self._catalog.symptoms, concepts)[:12]:
            found[self._places[like.cause]] += LIKENESS_WEIGHT * like.score**LIKENESS_POWER

    def _add_exact(self, words: str, found: dict[int, float]) -> None:
        for number in self._names.get(words, ()):
            found[number] += 1000.0 - len(self._entries[number].id) / 100
        for place in range(len(words) - SHORTEST_MESSAGE + 1):
            for literal, numbers in self._literals.get(words[place : place + SHORTEST_MESSAGE], ()):
                if words.startswith(literal, place):
                    for number in numbers:
                        found[number] += MESSAGE_BONUS * min(2.0, len(literal) / 20)

    def _hit(self, number: int, score: float, language: str) -> Hit:
        entry = self._entries[number]
        titles = dict(entry.titles)
        title = titles.get(language) or titles.get("en") or next(iter(titles.values()))
        return Hit(entry.kind, entry.id, title, round(score, 3), entry.excerpt)


def _body(cause: Cause, catalog: Catalog) -> str:
    """What is said and printed about a cause, in both languages."""
    parts = [*cause.explanation.values(), *cause.check.values()]
    for fix in cause.fixes:
        parts += catalog.intents[fix.intent].title.values()
    for signal in cause.signals:
        if signal.key.startswith("message:"):
            message = catalog.messages.get(signal.key[8:])
            parts += message.says[:6] if message else ()
    return " ".join(parts)


def _headings(section: Section) -> list[str]:
    """The ways a section is called: its own heading, and its anchor with its document's name."""
    own = section.title.rsplit(": ", 1)[-1]
    return [own, f"{section.document} {section.anchor}".replace("-", " ")]


def _names(entries: Sequence[_Entry]) -> dict[str, list[int]]:
    """What an entry may be called by: its id, the last part of it, its document, its anchor."""
    names: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        document, _, anchor = entry.id.partition("#")
        for name in {entry.id, entry.id.split("/", 1)[-1], document, anchor} - {""}:
            names[name].append(number)
    return names


Literals = dict[str, list[tuple[str, tuple[int, ...]]]]


def _literals(catalog: Catalog) -> Literals:
    """Error texts in normalised form with the causes that they decide, by their first characters."""
    owners: dict[str, set[int]] = defaultdict(set)
    for number, cause in enumerate(catalog.causes.values()):
        for signal in cause.signals:
            message = catalog.messages.get(signal.key.removeprefix("message:"))
            if message is None or signal.weight != "decisive" or not signal.key.startswith("message:"):
                continue
            for says in message.says:
                try:
                    literal = normalise(literal_of(says).decode("utf-8", "replace"))
                except ValueError:
                    continue  # too short to be looked for
                if len(literal) >= SHORTEST_MESSAGE:
                    owners[literal].add(number)
    table: Literals = defaultdict(list)
    for literal, numbers in owners.items():
        table[literal[:SHORTEST_MESSAGE]].append((literal, tuple(sorted(numbers))))
    return dict(table)
