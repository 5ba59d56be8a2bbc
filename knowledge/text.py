"""What people write, made comparable: one form for widths, cases and scripts, words and two-character pieces of Chinese.

Used for the person's own words and for the symptom sentences of the causes; log lines never pass through here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

#: A question longer than this many characters is cut: nobody describes an incident in more words.
TEXT_LIMIT = 20_000

_WORD = re.compile(r"[a-z0-9][a-z0-9_.+-]*|[\u3400-\u9fff]+")
_CJK = re.compile(r"[\u3400-\u9fff]")
_SPACES = re.compile(r"\s+")
#: Some people set a blank between Chinese and Latin letters, some do not; it means nothing.
_BETWEEN_SCRIPTS = re.compile(r"(?<=[\u3400-\u9fff]) (?=[a-z0-9])|(?<=[a-z0-9]) (?=[\u3400-\u9fff])")
_SUFFIXES = ("ings", "ing", "edly", "ies", "ied", "ed", "es", "ly", "s")
#: Words that carry no symptom.
_STOP = frozenset(
    "a an the is are was were be been am i we you it its they he she this that these those of to in on at by for with from as and or "
    "but so if then than there here our my your their do does did have has had can could would should will what which who when how why "
    "not no any some all just also only very too out up get gets got".split()
)
_STOP_ZH = frozenset(
    "我们 你们 他们 这个 那个 一个 就是 但是 然后 因为 所以 请问 大家 有没 没有 怎么 什么 为什 是不 不是 是否 可以 一下 出现 时候".split()
)


@lru_cache(maxsize=1)
def _simplified() -> dict[int, str]:
    """Traditional to simplified characters, from ``text/simplified.txt`` (one pair a line)."""
    path = Path(__file__).resolve().parent / "text_data" / "simplified.txt"
    try:
        rows = path.read_text(encoding="utf-8").split()
    except OSError:
        return {}
    return {ord(row[0]): row[1] for row in rows if len(row) == 2}


@lru_cache(maxsize=1)
def _mainland() -> tuple[re.Pattern[str], dict[str, str]]:
    """Words that Taiwan and the mainland use for the same thing (``text_data/taiwan.txt``), longer ones first."""
    path = Path(__file__).resolve().parent / "text_data" / "taiwan.txt"
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        rows = []
    words = {row[0]: row[1] for row in rows if len(row) == 2}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(longest_first) or r"(?!)"), words


def normalise(text: str) -> str:
    """NFKC, lower case, simplified characters, the mainland's words, one blank between words, none beside Chinese.

    At most :data:`TEXT_LIMIT` characters are read.
    """
    text = unicodedata.normalize("NFKC", text[:TEXT_LIMIT]).lower().replace("’", "'")
    if _CJK.search(text):
        simplified = text.translate(_simplified())
        if simplified != text:  # some of the words mean something else where simplified characters are written
            rule, words = _mainland()
            simplified = rule.sub(lambda found: words[found.group()], simplified)
        text = _BETWEEN_SCRIPTS.sub("", _SPACES.sub(" ", simplified))
    return _SPACES.sub(" ", text).strip()


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """Cuts the commonest English endings; crude on purpose, the same on both sides of a comparison."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            if suffix in ("ies", "ied"):
                word += "y"
            break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    if len(word) > 4 and word.endswith("e"):
        word = word[:-1]
    return word


def tokens(normalised: str) -> Iterator[str]:
    """The comparable pieces of a normalised text: stems of English words, pairs of neighbouring Chinese characters."""
    for match in _WORD.finditer(normalised):
        word = match.group()
        if _CJK.match(word):
            pieces = [word] if len(word) == 1 else [word[i : i + 2] for i in range(len(word) - 1)]
            yield from (piece for piece in pieces if piece not in _STOP_ZH)
        else:
            word = word.strip("._-+")
            if word and word not in _STOP and len(word) < 40:
                yield stem(word)


def language_of(text: str) -> str:
    """``zh`` when Chinese characters make up a fair part of the letters, else ``en``."""
    chinese = len(_CJK.findall(text))
    letters = sum(1 for c in text if c.isascii() and c.isalpha())
    return "zh" if chinese and chinese * 8 >= letters else "en"
