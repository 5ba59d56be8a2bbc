"""Words that are written nearly alike: a typing error, a compound, an ending that the stemmer does not know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache

#: Less alike than this is another word.
LEAST_ALIKE = 0.5
#: A word inside a longer one ("nccl" in "libnccl") counts so much, if it has so many letters.
INSIDE, SHORTEST_INSIDE = 0.6, 4
MOST_NEAR = 2


def _grams(word: str) -> list[str]:
    padded = f"^{word}$"
    return [padded[place : place + 2] for place in range(len(padded) - 1)]


class Spelling:
    """The known words by their first letter and the pairs of letters in them."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = sorted({word for word in words if len(word) >= 3})
        self._known = frozenset(self._words)
        self._by_gram: dict[str, list[int]] = defaultdict(list)  # first letter and pair -> words
        self._sizes = []
        for number, word in enumerate(self._words):
            grams = set(_grams(word))
            self._sizes.append(len(grams))
            for gram in grams:
                self._by_gram[word[0] + gram].append(number)
        self._find = lru_cache(maxsize=512)(self._search)

    def near(self, word: str) -> tuple[tuple[str, float], ...]:
        """The known words most like ``word`` with their likeness (Dice's coefficient over pairs of letters), best first.

        A typing error seldom changes the first letter: only words with the same one are looked at.
        """
        return self._find(word) if 3 < len(word) < 40 else ()

    def forget(self) -> None:
        """Drop what is remembered of earlier words."""
        self._find.cache_clear()

    def _search(self, word: str) -> tuple[tuple[str, float], ...]:
        grams = set(_grams(word))
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(self._by_gram.get(word[0] + gram, ()))
        likeness: dict[str, float] = {}
        for number, count in shared.items():
            dice = 2 * count / (len(grams) + self._sizes[number])
            if dice >= LEAST_ALIKE:
                likeness[self._words[number]] = dice
        if sum(dice > INSIDE for dice in likeness.values()) < MOST_NEAR:
            for inner in self._inside(word):
                likeness[inner] = max(likeness.get(inner, 0.0), INSIDE)
        ranked = sorted(likeness.items(), key=lambda pair: (-pair[1], -len(pair[0]), pair[0]))
        return tuple((other, round(score, 3)) for other, score in ranked[:MOST_NEAR])

    def _inside(self, word: str) -> frozenset[str]:
        """The known words that are a part of ``word``."""
        size = len(word)
        return self._known.intersection(
            [word[begin:end] for begin in range(size) for end in range(begin + SHORTEST_INSIDE, size + 1)]
        )
