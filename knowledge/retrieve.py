"""Finds causes and document sections for a few words, in both languages.

An id comes first, then causes whose own error text stands in the query, then full text: BM25F over stems, pairs of
Chinese characters, words that stand side by side and groups of synonyms, with the heading, its surroundings and the
body as fields; a heading that says nearly what the query says counts again. What holds few of the query's words counts
less. The two languages of a section are one hit: each lends the other some of its score.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from knowledge.catalog import Catalog
from knowledge.documents import Section, own_sections
from knowledge.lexicon import lexicon
from knowledge.nearby import Spelling
from knowledge.search import ConceptReader, rank
from knowledge.shapes import Cause
from knowledge.templates import literal_of
from knowledge.text import normalise, tokens

#: BM25's usual saturation (Robertson and Zaragoza, 2009), and how much the length of each field counts.
K1 = 1.2
FIELDS = {"heading": (8.0, 0.3), "around": (3.0, 0.3), "body": (1.0, 0.6)}  # weight, b
#: A concept that a heading speaks of, and one of the query, in units of a word.
CONCEPT_WEIGHT = 0.35
#: A group of synonyms counts less than the word itself, words side by side a little more.
GROUP_WEIGHT, PAIR_WEIGHT = 0.9, 0.5
#: What likeness to the causes' symptom sentences adds, in units of a good BM25 score.
LIKENESS_WEIGHT = 150.0
LIKENESS_POWER = 2.0
#: Likeness to the headings, likewise.
TITLE_LIKENESS_WEIGHT = 30.0
#: What holds none of a query's words keeps this share of its score; what holds them all keeps all of it.
LEAST_COVERED = 0.4
#: An error text of the message table that stands in the query.
MESSAGE_BONUS = 12.0
#: Shorter pieces of an error text stand in many sentences.
SHORTEST_MESSAGE = 12
QUERY_LIMIT = 600
#: Hits with less than this share of the best one's score are noise.
LEAST_SHARE = 0.25
OTHER_LANGUAGE = 0.55
#: What the other language's text of the same section adds.
BOTH_LANGUAGES = 0.8
#: What stands before the first section of a document only says what the sections hold.
INTRODUCTION = 0.5
_CONCEPT = "§"
_PAIR = " "


Kind = Literal["cause", "section", "site"]
#: In the order in which they are shown.
KINDS: tuple[Kind, ...] = ("cause", "section", "site")


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
        self._lexicon = lexicon()
        self._entries: list[_Entry] = []
        counts: list[dict[str, Counter[str]]] = []  # of each entry: field -> term -> how often
        headings: list[list[str]] = []
        for cause in catalog.causes.values():
            titles = [cause.id.split("/", 1)[1].replace("-", " "), *cause.title.values()]
            self._entries.append(
                _Entry("cause", cause.id, "", tuple(cause.title.items()), cause.explanation["en"][:160])
            )
            counts.append(self._fields(" ; ".join(titles), "", _body(cause, catalog)))
            headings.append(titles)
        for kind, group in (("section", own_sections() if sections is None else sections), ("site", site)):
            for section in group:
                own, around = _headings(section)
                self._entries.append(
                    _Entry(
                        "section" if kind == "section" else "site",
                        section.id,
                        section.language,
                        ((section.language, section.title),),
                        section.text[:160],
                    )
                )
                counts.append(self._fields(own, around, section.text))
                headings.append([own, around] if section.anchor else [own])
        self._postings = self._weighed(counts)
        self._spelling = Spelling(term for term in self._postings if term.isascii() and _PAIR not in term)
        self._titles = self._title_vectors(headings)
        self._places = {entry.id: number for number, entry in enumerate(self._entries) if entry.kind == "cause"}
        self._partners = _partners(self._entries)
        self._names = _names(self._entries)
        self._literals = _literals(catalog)

    # -- what is indexed -------------------------------------------------------------------------------------------

    def _terms(self, normalised: str) -> Counter[str]:
        """Stems and pairs of characters, words side by side, and groups of synonyms, with their counts."""
        words = list(tokens(normalised))
        found = Counter(words)
        found.update(f"{a}{_PAIR}{b}" for a, b in itertools.pairwise(words) if a.isascii() and b.isascii())
        found.update(self._lexicon.read(normalised, words))
        return found

    def _fields(self, heading: str, around: str, body: str) -> dict[str, Counter[str]]:
        words = normalise(heading)
        own = self._terms(words)
        own.update(_CONCEPT + concept for concept in self._reader.read(words))
        return {"heading": own, "around": self._terms(normalise(around)), "body": self._terms(normalise(body))}

    def _weighed(self, counts: Sequence[dict[str, Counter[str]]]) -> dict[str, list[tuple[int, float]]]:
        """Term -> (entry, what the term is worth there): all of BM25F but the query."""
        total = max(1, len(counts))
        lengths = {field: [sum(entry[field].values()) for entry in counts] for field in FIELDS}
        mean = {field: max(1.0, sum(rows) / total) for field, rows in lengths.items()}
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for number, entry in enumerate(counts):
            for field, (weight, b) in FIELDS.items():
                norm = 1 - b + b * lengths[field][number] / mean[field]
                for term, count in entry[field].items():
                    found[term][number] = found[term].get(number, 0.0) + weight * count / norm
        self._rarities = {term: math.log(1 + (total - len(p) + 0.5) / (len(p) + 0.5)) for term, p in found.items()}
        self._unseen = math.log(1 + (total + 0.5) / 0.5)
        return {
            term: [(number, self._rarities[term] * f * (K1 + 1) / (f + K1)) for number, f in posting.items()]
            for term, posting in found.items()
        }

    def _unit(self, terms: Iterable[tuple[str, float]]) -> dict[str, float]:
        weights = {term: share * self._rarities.get(term, self._unseen) for term, share in terms}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {term: weight / norm for term, weight in weights.items()}

    def _title_vectors(self, headings: Sequence[Sequence[str]]) -> dict[str, list[tuple[int, float]]]:
        """Unit vectors of every heading by itself."""
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, titles in enumerate(headings):
            for title in titles:
                words = normalise(title)
                for term, weight in self._unit(self._shares(words, self._reader.read(words))).items():
                    found[term].append((number, weight))
        return dict(found)

    def _shares(self, normalised: str, concepts: frozenset[str]) -> list[tuple[str, float]]:
        """The terms of a query or heading, each once, with what it counts beside a plain word."""
        shares = [(term, _share(term)) for term in self._terms(normalised)]
        return shares + [(_CONCEPT + concept, CONCEPT_WEIGHT) for concept in sorted(concepts)]

    # -- asking ----------------------------------------------------------------------------------------------------

    def search(self, query: str, limit: int = 5, language: str = "", *, kind: Kind | None = None) -> list[Hit]:
        """The best hits, best first, of one kind if asked; sections of the other language count less.

        Causes and sections answer different questions ("what is it", "how does it work"), so faces show them apart.
        """
        words = normalise(query[:QUERY_LIMIT])
        concepts = self._reader.read(words)
        terms = self._respelled(self._shares(words, concepts))
        found: dict[int, float] = defaultdict(float)
        covered: dict[int, float] = defaultdict(float)
        whole = 0.0
        for term, share in terms:
            weight = share * self._rarities.get(term, self._unseen)
            whole += weight
            for number, worth in self._postings.get(term, ()):
                found[number] += share * worth
                covered[number] += weight
        if whole:
            for number in found:
                found[number] *= LEAST_COVERED + (1 - LEAST_COVERED) * covered[number] / whole
        self._add_title_likeness(terms, found)
        if kind in (None, "cause"):
            for like in rank(words, self._catalog.symptoms, concepts)[:12]:
                found[self._places[like.cause]] += LIKENESS_WEIGHT * like.score**LIKENESS_POWER
        self._add_exact(words, found)
        scored = [
            (self._in_language(number, score, language, found), number)
            for number, score in found.items()
            if kind is None or self._entries[number].kind == kind
        ]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        hits: dict[str, Hit] = {}  # a section in both languages is one hit
        for score, number in scored:
            if len(hits) >= limit:
                break
            hits.setdefault(self._entries[number].id, self._hit(number, score, language))
        return list(hits.values())

    def search_kinds(self, query: str, limit: int = 5, language: str = "") -> Iterator[tuple[Kind, list[Hit]]]:
        """The best hits of each kind that has any, causes first, without what is noise beside the best of its kind."""
        for kind in KINDS:
            hits = self.search(query, limit, language, kind=kind)
            if hits:
                yield kind, [hit for hit in hits if hit.score >= hits[0].score * LEAST_SHARE]

    def _respelled(self, terms: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Words that stand nowhere are replaced by those that are written nearly so."""
        found: list[tuple[str, float]] = []
        for term, share in terms:
            if share != 1.0 or term in self._postings or not term.isascii():
                found.append((term, share))
                continue
            near = self._spelling.near(term)
            found += [(other, likeness) for other, likeness in near] or [(term, share)]
        return found

    def _add_title_likeness(self, terms: list[tuple[str, float]], found: dict[int, float]) -> None:
        alike: dict[int, float] = defaultdict(float)
        for term, weight in self._unit(terms).items():
            for number, other in self._titles.get(term, ()):
                alike[number] += weight * other
        for number, score in alike.items():
            found[number] += TITLE_LIKENESS_WEIGHT * min(1.0, score) ** 2

    def _in_language(self, number: int, score: float, language: str, found: dict[int, float]) -> float:
        entry = self._entries[number]
        partner = self._partners.get(number)
        if partner is not None:
            score += BOTH_LANGUAGES * found.get(partner, 0.0)
        if language and entry.language and entry.language != language:
            score *= OTHER_LANGUAGE
        if entry.kind == "section" and "#" not in entry.id:
            score *= INTRODUCTION
        return score

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


def _share(term: str) -> float:
    if term.startswith("~"):
        return GROUP_WEIGHT
    return PAIR_WEIGHT if _PAIR in term else 1.0


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


def _headings(section: Section) -> tuple[str, str]:
    """A section's own heading, and what it stands under: its document's title and name, and its anchor."""
    top, _, own = section.title.rpartition(": ")
    return own, f"{top} {section.document} {section.anchor}".replace("-", " ").strip()


def _partners(entries: Sequence[_Entry]) -> dict[int, int]:
    """The same section in the other language."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        if entry.kind == "section":
            places[entry.id].append(number)
    pairs = [rows for rows in places.values() if len(rows) == 2]
    return {a: b for rows in pairs for a, b in (rows, rows[::-1])}


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
