"""The way through the decision tree as lines, boxes and words at places: what the SVG template draws."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from assistant.diagnosis.model import Step
from knowledge.catalog import Catalog

#: In the units of the picture; the text is 13 units high.
WIDTH, BOX_WIDTH, LINE, PAD = 480, 220, 18, 12
GAP = 52
_BRANCH_AT = BOX_WIDTH + 44
_MOST_BRANCHES = 5
_MOST_LINES = 4


@dataclass(frozen=True, slots=True)
class Box:
    """One question with its answer and the ways that were not taken, each with its place."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[tuple[float, str], ...]  # (y, text)
    answer: str
    origin: str
    answer_y: float
    branches: tuple[tuple[float, str], ...]  # (y, answer that was not given)
    is_last: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """The whole way."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    end_lines: tuple[tuple[float, str], ...]
    end_y: float
    end_height: float


def picture(path: Sequence[Step], end: str, catalog: Catalog, lang: str) -> Picture | None:
    """The way, from the first question down to ``end``, the conclusion; None where nothing was walked."""
    if not path:
        return None
    boxes: list[Box] = []
    y = 4.0
    for place, step in enumerate(path):
        lines = wrapped(step.question, BOX_WIDTH - 2 * PAD)
        branches = _others(step, catalog, lang)
        height = max(2 * PAD + LINE * len(lines) - 4, 20.0 * len(branches))
        first = y + height / 2 - LINE * (len(lines) - 1) / 2 + 4.5
        middle = y + height / 2 - 20.0 * (len(branches) - 1) / 2
        boxes.append(
            Box(
                x=4,
                y=y,
                width=BOX_WIDTH,
                height=height,
                lines=tuple((first + LINE * number, line) for number, line in enumerate(lines)),
                answer=shortened(step.answer, WIDTH - 70),
                origin=step.origin,
                answer_y=y + height + GAP / 2 + 4,
                branches=tuple((middle + 20 * number, label) for number, label in enumerate(branches)),
                is_last=place == len(path) - 1,
            )
        )
        y += height + GAP
    lines = wrapped(end, WIDTH - 2 * PAD - 8)
    end_height = 2 * PAD + LINE * len(lines) - 4
    ends = tuple((y + PAD + 11 + LINE * number, line) for number, line in enumerate(lines))
    return Picture(WIDTH, y + end_height + 4, tuple(boxes), ends, y, end_height)


def _others(step: Step, catalog: Catalog, lang: str) -> list[str]:
    """The answers that would have led elsewhere."""
    node = catalog.tree.nodes.get(step.node)
    if node is None:
        return []
    observable = catalog.observable(node.observe)
    choices = observable.choices if observable is not None else {}
    found = [
        choices[value][lang] if value in choices else value for value in node.next if value not in ("any", "unknown")
    ]
    labels = [shortened(label, WIDTH - _BRANCH_AT - 20) for label in found if label != step.answer]
    return labels[:_MOST_BRANCHES]


def advance(text: str) -> float:
    """About how wide the text is drawn, in units, at 13 units height."""
    return sum(13.0 if unicodedata.east_asian_width(c) in "WF" else 7.2 for c in text)


def shortened(text: str, width: float) -> str:
    """The text, cut with an ellipsis where it is wider."""
    if advance(text) <= width:
        return text
    kept = text
    while kept and advance(kept) > width - 13:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def wrapped(text: str, width: float) -> list[str]:
    """The text in lines that fit, broken at blanks and between Chinese characters."""
    lines: list[str] = []
    line = ""
    for word in _pieces(text):
        if line and advance(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    lines.append(line.rstrip())
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], shortened(" ".join(lines[_MOST_LINES - 1 :]), width)]
    return [shortened(line, width) for line in lines if line] or [""]


def _pieces(text: str) -> list[str]:
    pieces: list[str] = []
    word = ""
    for character in " ".join(text.split()):
        wide = unicodedata.east_asian_width(character) in "WF"
        if wide and unicodedata.category(character).startswith("P") and (word or pieces):
            word += character  # no line begins with a comma
            continue
        if wide and word:
            pieces.append(word)
            word = ""
        word += character
        if character == " ":
            pieces.append(word)
            word = ""
    return [*pieces, word] if word else pieces
