"""Words of the field that mean the same, in both languages: what lets "节省显存" find "Conserving memory".

Only search uses them. The diagnosis goes by concepts, which are phrases and mean more than a word does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from knowledge.text import normalise, stem

_CJK = re.compile(r"[\u3400-\u9fff]")
#: Mark of a group among the terms.
MARK = "~"


class Lexicon:
    """Groups of words (``text_data/synonyms.txt``, one group a line; a hyphen joins words that stand side by side)."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._words: dict[str, list[str]] = {}
        chinese: dict[str, list[str]] = {}
        for number, group in enumerate(groups):
            name = f"{MARK}{number}"
            for word in group:
                if _CJK.search(word):
                    chinese.setdefault(normalise(word), []).append(name)
                else:
                    key = " ".join(stem(part) for part in normalise(word).split("-"))
                    self._words.setdefault(key, []).append(name)
        self._chinese = chinese
        longest_first = sorted(chinese, key=lambda word: (-len(word), word))
        self._rule = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def read(self, normalised: str, stems: Sequence[str]) -> Iterator[str]:
        """The groups that a normalised text speaks of; ``stems`` are its pieces in order. A group may come twice."""
        for place, piece in enumerate(stems):
            yield from self._words.get(piece, ())
            if place:
                yield from self._words.get(f"{stems[place - 1]} {piece}", ())
        for found in self._rule.finditer(normalised):
            yield from self._chinese[found.group()]


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The lexicon of this installation; an empty one where the file is missing."""
    path = Path(__file__).resolve().parent / "text_data" / "synonyms.txt"
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    return Lexicon([row.split() for row in rows if row.strip()])


@lru_cache(maxsize=1)
def asked_as() -> dict[str, str]:
    """What people ask where a section answers, in both languages: its id -> phrases (``text_data/asked_as.txt``)."""
    path = Path(__file__).resolve().parent / "text_data" / "asked_as.txt"
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    return {name: phrases.strip() for name, mark, phrases in (row.partition(": ") for row in rows) if mark}
