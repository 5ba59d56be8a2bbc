"""Finds causes and document sections for a few words, in both languages.

An id comes first, then causes whose own error text stands in the query, then full text: BM25F over stems, pairs of
Chinese characters, words that stand side by side and groups of synonyms, with the heading, its surroundings, what
people ask where the section answers, and the body as fields; a heading that says nearly what the query says counts
again. What holds few of the query's words counts less. The two languages of a section are one hit: each lends the
other some of its score.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from knowledge.catalog import Catalog
from knowledge.documents import Section, own_sections
from knowledge.lexicon import asked_as, lexicon
from knowledge.nearby import Spelling
from knowledge.search import ConceptReader, QuickRank
from knowledge.shapes import Cause
from knowledge.templates import literal_of
from knowledge.text import normalise, tokens

#: BM25's usual saturation (Robertson and Zaragoza, 2009), and how much the length of each field counts.
K1 = 1.2
FIELDS = {"heading": (8.0, 0.3), "asked": (3.0, 0.3), "around": (3.0, 0.3), "body": (1.0, 0.6)}  # weight, b
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
#: An error text is looked for in so many characters of a query; its words are read from so many bytes of its beginning
#: (UTF-8: a Chinese character says as much as three letters), its concepts, which cost most, from so many.
QUERY_LIMIT, WORDS_LIMIT, CONCEPTS_LIMIT = 400, 160, 80
#: So many terms of a query are looked up, the rarest ones.
MOST_TERMS = 20
#: So many words that stand nowhere are looked for in other spellings.
MOST_RESPELLED = 4
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


#: Of one entry: field -> term -> how often.
_Counts = dict[str, Counter[str]]


@dataclass(slots=True)
class _Part:
    """The entries of one kind: term -> (entry, what the term is worth in it) in its texts, and in its headings."""

    entries: list[int] = field(default_factory=list)
    postings: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    titles: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query as it is compared: its terms with what they count beside a plain word, and weighed by their rarity."""

    whole: str
    words: str  # the beginning of it
    concepts: frozenset[str]
    terms: list[tuple[str, float]]
    weights: list[float]
    unit: dict[str, float]


class Retriever:
    """Prepared once, then asked any number of times; holds everything in memory."""

    def __init__(
        self, catalog: Catalog, sections: Iterable[Section] | None = None, site: Iterable[Section] = ()
    ) -> None:
        self._catalog = catalog
        self._reader = ConceptReader(catalog.concepts)
        self._lexicon = lexicon()
        self._entries: list[_Entry] = []
        counts: list[_Counts] = []
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
                counts.append(self._fields(own, around, section.text, asked_as().get(section.id, "")))
                headings.append([own, around] if section.anchor else [own])
        self._rarities, self._unseen = _rarities(counts)
        self._parts = self._cut(counts, headings)
        self._spelling = Spelling(term for term in self._rarities if term.isascii() and _PAIR not in term)
        self._symptoms = QuickRank(catalog.symptoms)
        self._places = {entry.id: number for number, entry in enumerate(self._entries) if entry.kind == "cause"}
        self._partners = _partners(self._entries)
        self._kept: dict[str, list[float]] = {}
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

    def _fields(self, heading: str, around: str, body: str, asked: str = "") -> _Counts:
        words = normalise(heading)
        own = self._terms(words)
        own.update(_CONCEPT + concept for concept in self._reader.read(words))
        return {
            "heading": own,
            "asked": self._terms(normalise(asked)),
            "around": self._terms(normalise(around)),
            "body": self._terms(normalise(body)),
        }

    def _cut(self, counts: Sequence[_Counts], headings: Sequence[Sequence[str]]) -> dict[Kind, _Part]:
        """The index of each kind by itself: who asks for causes does not pay for sections."""
        total = max(1, len(counts))
        lengths = {name: [sum(entry[name].values()) for entry in counts] for name in FIELDS}
        mean = {name: max(1.0, sum(rows) / total) for name, rows in lengths.items()}
        parts = {kind: _Part() for kind in KINDS}
        for number, (entry, fields, titles) in enumerate(zip(self._entries, counts, headings, strict=True)):
            part = parts[entry.kind]
            part.entries.append(number)
            sums: dict[str, float] = defaultdict(float)
            for name, (weight, b) in FIELDS.items():
                norm = 1 - b + b * lengths[name][number] / mean[name]
                for term, count in fields[name].items():
                    sums[term] += weight * count / norm
            for term, f in sums.items():
                part.postings[term].append((number, self._rarities[term] * f * (K1 + 1) / (f + K1)))
            for title in titles:  # the unit vector of every heading by itself
                words = normalise(title)
                for term, worth in self._unit(self._shares(words, self._reader.read(words))).items():
                    part.titles[term].append((number, worth))
        return parts

    def _unit(self, terms: Iterable[tuple[str, float]]) -> dict[str, float]:
        weights = {term: share * self._rarities.get(term, self._unseen) for term, share in terms}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {term: weight / norm for term, weight in weights.items()}

    def _shares(self, normalised: str, concepts: frozenset[str]) -> list[tuple[str, float]]:
        """The terms of a query or heading, each once, with what it counts beside a plain word."""
        shares = [(term, _share(term)) for term in self._terms(normalised)]
        return shares + [(_CONCEPT + concept, CONCEPT_WEIGHT) for concept in sorted(concepts)]

    # -- asking ----------------------------------------------------------------------------------------------------

    def search(self, query: str, limit: int = 5, language: str = "", *, kind: Kind | None = None) -> list[Hit]:
        """The best hits, best first, of one kind if asked; sections of the other language count less.

        Causes and sections answer different questions ("what is it", "how does it work"), so faces show them apart.
        """
        return self._search(self._asked(query), limit, language, KINDS if kind is None else (kind,))

    def search_kinds(self, query: str, limit: int = 5, language: str = "") -> Iterator[tuple[Kind, list[Hit]]]:
        """The best hits of each kind that has any, causes first, without what is noise beside the best of its kind."""
        asked = self._asked(query)
        for kind in KINDS:
            hits = self._search(asked, limit, language, (kind,))
            if hits:
                yield kind, [hit for hit in hits if hit.score >= hits[0].score * LEAST_SHARE]

    def forget(self) -> None:
        """Drop what is remembered of earlier queries; measurements ask for it."""
        self._reader.forget()
        self._spelling.forget()

    def _asked(self, query: str) -> _Asked:
        whole = normalise(query[:QUERY_LIMIT])
        words = _beginning(whole, WORDS_LIMIT)
        concepts = self._reader.read(_beginning(whole, CONCEPTS_LIMIT))
        terms = self._respelled(self._shares(words, concepts))
        if len(terms) > MOST_TERMS:
            terms = heapq.nlargest(MOST_TERMS, terms, key=lambda pair: pair[1] * self._rarities.get(pair[0], 0.0))
        weights = [share * self._rarities.get(term, self._unseen) for term, share in terms]
        return _Asked(whole, words, concepts, terms, weights, self._unit(terms))

    def _search(self, asked: _Asked, limit: int, language: str, kinds: Sequence[Kind]) -> list[Hit]:
        found = [0.0] * (len(self._entries) + 1)  # the last is the partner of those that have none
        for kind in kinds:
            self._add_words(asked, self._parts[kind], found)
            if kind == "cause":
                for like in self._symptoms.rank(asked.words, asked.concepts)[:12]:
                    found[self._places[like.cause]] += LIKENESS_WEIGHT * like.score**LIKENESS_POWER
        self._add_exact(asked.whole, found)
        partners, kept = self._partners, self._shares_of(language if language in ("en", "zh") else "")
        scored = [
            (-kept[number] * (found[number] + BOTH_LANGUAGES * found[partners[number]]), number)
            for kind in kinds
            for number in self._parts[kind].entries
            if found[number]
        ]
        scored.sort()
        hits: dict[str, Hit] = {}  # a section in both languages is one hit
        for score, number in scored:
            if len(hits) >= limit:
                break
            hits.setdefault(self._entries[number].id, self._hit(number, -score, language))
        return list(hits.values())

    def _respelled(self, terms: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Words that stand nowhere are replaced by those that are written nearly so."""
        found: list[tuple[str, float]] = []
        looked_up = 0
        for term, share in terms:
            if share != 1.0 or term in self._rarities or not term.isascii() or looked_up >= MOST_RESPELLED:
                found.append((term, share))
                continue
            looked_up += 1
            near = self._spelling.near(term)
            found += [(other, likeness) for other, likeness in near] or [(term, share)]
        return found

    def _add_words(self, asked: _Asked, part: _Part, found: list[float]) -> None:
        """BM25F's score, less where few of the query's words stand, and what likeness to a heading adds."""
        covered = [0.0] * len(found)
        alike = [0.0] * len(found)
        for (term, share), weight in zip(asked.terms, asked.weights, strict=True):
            for number, worth in part.postings.get(term, ()):
                found[number] += share * worth
                covered[number] += weight
        for term, weight in asked.unit.items():
            for number, worth in part.titles.get(term, ()):
                alike[number] += weight * worth
        whole = sum(asked.weights) or 1.0
        for number in part.entries:
            if found[number] or alike[number]:
                found[number] *= LEAST_COVERED + (1 - LEAST_COVERED) * covered[number] / whole
                found[number] += TITLE_LIKENESS_WEIGHT * min(1.0, alike[number]) ** 2

    def _shares_of(self, language: str) -> list[float]:
        """What each entry keeps of its score where somebody asks in ``language``."""
        known = self._kept.get(language)
        if known is None:
            known = self._kept[language] = [
                (OTHER_LANGUAGE if language and entry.language and entry.language != language else 1.0)
                * (INTRODUCTION if entry.kind == "section" and "#" not in entry.id else 1.0)
                for entry in self._entries
            ]
        return known

    def _add_exact(self, words: str, found: list[float]) -> None:
        for number in self._names.get(words, ()):
            found[number] += 1000.0 - len(self._entries[number].id) / 100
        pieces = {words[place : place + SHORTEST_MESSAGE] for place in range(len(words) - SHORTEST_MESSAGE + 1)}
        for piece in self._literals.keys() & pieces:
            for literal, numbers in self._literals[piece]:
                if literal in words:
                    for number in numbers:
                        found[number] += MESSAGE_BONUS * min(2.0, len(literal) / 20)

    def _hit(self, number: int, score: float, language: str) -> Hit:
        entry = self._entries[number]
        titles = dict(entry.titles)
        title = titles.get(language) or titles.get("en") or next(iter(titles.values()))
        return Hit(entry.kind, entry.id, title, round(score, 3), entry.excerpt)


def _rarities(counts: Sequence[_Counts]) -> tuple[dict[str, float], float]:
    """BM25's inverse frequency of every term, and that of one which stands nowhere."""
    total = max(1, len(counts))
    holding = Counter(term for entry in counts for term in set().union(*entry.values()))
    return {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in holding.items()}, math.log(
        1 + (total + 0.5) / 0.5
    )


def _beginning(text: str, most_bytes: int) -> str:
    return text.encode("utf-8", "ignore")[:most_bytes].decode("utf-8", "ignore")


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


def _partners(entries: Sequence[_Entry]) -> list[int]:
    """Where the same section stands in the other language; one place after the last for an entry without another."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        if entry.kind == "section":
            places[entry.id].append(number)
    pairs = [rows for rows in places.values() if len(rows) == 2]
    other = {a: b for rows in pairs for a, b in (rows, rows[::-1])}
    return [other.get(number, len(entries)) for number in range(len(entries))]


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
