"""Which causes does a description sound like?

Every symptom sentence is a small document: stems, pairs of Chinese characters, and the concepts it expresses (which
carry meaning across languages and wordings). A description is compared with each sentence by cosine over
inverse-frequency weights; a cause scores by its best sentence, helped a little by its next best ones.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from knowledge.catalog import SymptomIndex
from knowledge.shapes import Concept
from knowledge.text import normalise, tokens

#: A concept weighs as much as this many words of the same rarity.
CONCEPT_WEIGHT = 1.6
#: So many texts are remembered with their concepts; a compilation reads each sentence twice.
REMEMBERED = 8_000
#: Sentences that share less than this with a description share nothing.
LEAST_OVERLAP = 0.05
#: A description of fewer telling terms than this sounds like many things; its likeness is trusted less.
ENOUGH_TERMS = 6
LEAST_TRUST = 0.3
#: Mark of a concept among the terms.
_MARK = "§"
#: A quick ranking reads so many (sentence, weight) pairs of so many terms and then follows so many sentences; terms of
#: more pairs than ``_COMMON`` are prepared for that.
_ENOUGH_READ, _MOST_TERMS, _LEADING, _COMMON = 400, 20, 40, 40


class ConceptReader:
    """Finds the concepts that a text expresses; linear in the text whatever it holds (RE2)."""

    def __init__(self, concepts: Mapping[str, Concept]) -> None:
        import re2

        options = re2.Options()
        options.max_mem = 64 << 20
        options.log_errors = False
        options.case_sensitive = False
        self._owners = tuple(concepts)
        self._seen: dict[str, frozenset[str]] = {}
        # A filter looks for the literals that a pattern cannot do without before it runs the pattern: two orders of
        # magnitude less work per text than running all patterns as one automaton.
        self._filter: Any = re2.Filter()
        for concept in concepts.values():
            self._filter.Add("|".join(f"(?:{pattern})" for pattern in concept.patterns), options)
        if self._owners:
            self._filter.Compile()

    def read(self, normalised: str) -> frozenset[str]:
        """The ids of the concepts in a text that :func:`knowledge.text.normalise` has prepared."""
        if not self._owners or not normalised:
            return frozenset()
        found = self._seen.get(normalised)
        if found is None:
            found = frozenset(self._owners[index] for index in self._filter.Match(normalised) or ())
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[normalised] = found
        return found

    def forget(self) -> None:
        """Drop what is remembered of earlier texts."""
        self._seen.clear()


def terms(normalised: str, concepts: Iterable[str]) -> Counter[str]:
    """The terms of a text with their counts; a concept counts :data:`CONCEPT_WEIGHT` times."""
    found: Counter[str] = Counter(tokens(normalised))
    for term in found:
        found[term] = 1
    weighted: Counter[str] = found
    for concept in concepts:
        weighted[_MARK + concept] = CONCEPT_WEIGHT  # type: ignore[assignment]
    return weighted


def build_index(sentences: Sequence[tuple[str, str]], reader: ConceptReader) -> SymptomIndex:
    """Prepares (cause id, sentence) pairs for :func:`rank`."""
    documents = []
    causes_with: dict[str, set[str]] = defaultdict(set)
    for cause, sentence in sentences:
        text = normalise(sentence)
        found = terms(text, reader.read(text))
        documents.append((cause, found))
        for term in found:
            causes_with[term].add(cause)
    total = max(2, len({cause for cause, _ in documents}))
    inverse = {term: math.log(1 + total / len(owners)) for term, owners in causes_with.items()}
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, (_, found) in enumerate(documents):
        for term, weight in _unit({t: n * inverse[t] for t, n in found.items()}).items():
            postings[term].append((number, weight))
    return SymptomIndex(tuple(cause for cause, _ in documents), dict(postings), inverse)


def _unit(weights: dict[str, float]) -> dict[str, float]:
    norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
    return {term: round(w / norm, 4) for term, w in weights.items()}


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much a description sounds like a cause, from 0 to about 1."""

    cause: str
    score: float


def rank(description: str, index: SymptomIndex, concepts: frozenset[str]) -> list[Likeness]:
    """Causes by likeness, best first. ``description`` is normalised; a long one is judged by its telling terms."""
    weights, trust = _weights(description, index, concepts)
    overlap: dict[int, float] = defaultdict(float)
    for term, weight in weights.items():
        for number, other in index.postings[term]:
            overlap[number] += weight * other * trust
    return _by_cause(overlap, index)


class QuickRank:
    """:func:`rank` in bounded time, for a search: terms are read from the rarest on, and when enough was read the common
    ones that are left only add to the sentences that lead so far."""

    def __init__(self, index: SymptomIndex) -> None:
        self._index = index
        self._common = {term: dict(rows) for term, rows in index.postings.items() if len(rows) > _COMMON}

    def rank(self, description: str, concepts: frozenset[str]) -> list[Likeness]:
        index = self._index
        weights, trust = _weights(description, index, concepts)
        telling = heapq.nlargest(_MOST_TERMS, weights, key=weights.__getitem__)
        telling.sort(key=lambda term: (len(index.postings[term]), term))
        overlap: dict[int, float] = defaultdict(float)
        read = place = 0
        for term in telling:
            rows = index.postings[term]
            if read and read + len(rows) > _ENOUGH_READ:
                break
            weight = weights[term] * trust
            for number, other in rows:
                overlap[number] += weight * other
            read += len(rows)
            place += 1
        left = [
            (weights[term] * trust, self._common.get(term) or dict(index.postings[term])) for term in telling[place:]
        ]
        if left:
            leading = heapq.nlargest(_LEADING, overlap, key=overlap.__getitem__)
            overlap = {
                number: overlap[number] + sum([weight * common.get(number, 0.0) for weight, common in left])
                for number in leading
            }
        return _by_cause(overlap, index)


def _weights(description: str, index: SymptomIndex, concepts: frozenset[str]) -> tuple[dict[str, float], float]:
    """The unit vector of a description over the terms that the index knows, and how far it is to be trusted."""
    inverse = index.inverse_frequency
    weights = {t: n * inverse[t] for t, n in terms(description, concepts).items() if t in inverse}
    return _unit(weights), min(1.0, LEAST_TRUST + (1.0 - LEAST_TRUST) * len(weights) / ENOUGH_TERMS)


def _by_cause(overlap: Mapping[int, float], index: SymptomIndex) -> list[Likeness]:
    """From how much each sentence shares with a description to the causes, best first."""
    best: dict[str, list[float]] = defaultdict(list)
    for number, score in overlap.items():
        if score > LEAST_OVERLAP:
            best[index.causes[number]].append(score)
    ranked = []
    for cause, scores in best.items():
        scores.sort(reverse=True)
        ranked.append(
            Likeness(cause, min(1.0, scores[0] + 0.25 * sum(s * 0.6**i for i, s in enumerate(scores[1:5])) / 2))
        )
    ranked.sort(key=lambda like: (-like.score, like.cause))
    return ranked
