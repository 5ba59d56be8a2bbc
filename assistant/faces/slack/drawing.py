"""Blocks of the assistant as blocks of Slack, and many of them as several messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from assistant.faces.slack.elements import (
    MOST_BLOCKS,
    MOST_COMMAND,
    MOST_MESSAGE,
    MOST_QUOTE,
    Piece,
    bullets,
    cut,
    fixed,
    header,
    paragraph,
    prose,
    quiet,
    rich,
    size,
    words,
)
from assistant.render.blocks import Block, Command, Heading, Item, Quotation, Text
from assistant.render.commands import broken

#: Columns of a command; a longer one goes over several lines that paste as one.
COLUMNS = 72
_MARK = {"plain": "", "good": "✅ ", "bad": "🔴 ", "unsure": "⚠️ ", "quiet": ""}
#: Characters of one paragraph; a longer one is cut, because one block must fit into a message with others.
_MOST_PARAGRAPH = 2800


def draw(blocks: Iterable[Block]) -> Iterator[Piece]:
    """One Slack block for each block."""
    for block in blocks:
        yield from _draw(block)


def _draw(block: Block) -> Iterator[Piece]:
    match block:
        case Heading(text, tone, level):
            if level == 1:
                yield header(_MARK[tone] + text)
            else:
                yield rich(paragraph(words(cut(text, _MOST_PARAGRAPH), bold=True)))
        case Text(text, tone):
            yield quiet(text) if tone == "quiet" else rich(paragraph(*prose(cut(_MARK[tone] + text, _MOST_PARAGRAPH))))
        case Quotation(where, text):
            yield rich(paragraph(words(cut(where, 300))), fixed(text, MOST_QUOTE))
        case Command(text):
            yield rich(fixed(broken(text, COLUMNS), MOST_COMMAND))
        case Item(title, tags, body, number):
            below, rest = _below(body) if number is None else ((), body)
            yield rich(*_item(title, tags, number, below), *(part for inner in rest for part in _inside(inner)))


def _below(body: Sequence[Block]) -> tuple[tuple[Text, ...], Sequence[Block]]:
    """The sentences with which a body begins, which stand inside the bullet, and the rest."""
    leading: list[Text] = []
    for block in body:
        if not isinstance(block, Text) or not block.text:
            break
        leading.append(block)
    return tuple(leading), body[len(leading) :]


def _item(title: str, tags: Sequence[str], number: int | None, below: Sequence[Text] = ()) -> list[Piece]:
    first = words(cut(f"{number}. {title}" if number is not None else title, _MOST_PARAGRAPH), bold=True)
    tagged = [piece for tag in tags for piece in (words("  "), words(tag, code=True))]
    if number is None:
        lines = [
            run for text in below for run in (words("\n"), *prose(cut(_MARK[text.tone] + text.text, _MOST_PARAGRAPH)))
        ]
        return [bullets([[words(cut(title, _MOST_PARAGRAPH), bold=bool(lines)), *tagged, *lines]])]
    return [paragraph(first, *tagged)]


def _inside(block: Block) -> Iterator[Piece]:
    """The pieces of what belongs to an item."""
    match block:
        case Heading(text):
            yield paragraph(words(cut(text, _MOST_PARAGRAPH), bold=True))
        case Text(text):
            yield paragraph(*prose(cut(text, _MOST_PARAGRAPH)))
        case Quotation(where, text):
            yield paragraph(words(cut(where, 300)))
            yield fixed(text, MOST_QUOTE)
        case Command(text):
            yield fixed(broken(text, COLUMNS), MOST_COMMAND)
        case Item(title, tags, body, number):
            yield from _item(title, tags, number)
            for part in body:
                yield from _inside(part)


def fits(blocks: Sequence[Piece]) -> bool:
    """Whether one message takes these blocks."""
    return len(blocks) <= MOST_BLOCKS and size(blocks) <= MOST_MESSAGE


def pages(blocks: Iterable[Piece]) -> list[list[Piece]]:
    """The blocks as messages, in their order, each within the limits."""
    made: list[list[Piece]] = [[]]
    room = MOST_MESSAGE - 2
    for block in blocks:
        length = size([block])
        if made[-1] and (len(made[-1]) >= MOST_BLOCKS or length > room):
            made.append([])
            room = MOST_MESSAGE - 2
        made[-1].append(block)
        room -= length
    return [page for page in made if page]


def fitted(start: Sequence[Piece], middle: Sequence[Piece], end: Sequence[Piece]) -> list[Piece]:
    """One message: beginning and end whole, of the middle as many blocks from its beginning as there is room for.

    Raises ``ValueError`` where beginning and end alone do not fit.
    """
    made = [*start, *end]
    if not fits(made):
        raise ValueError("the beginning and the end of a message do not fit into one")
    taken: list[Piece] = []
    for block in middle:
        if not fits([*start, *taken, block, *end]):
            break
        taken.append(block)
    return [*start, *taken, *end]
