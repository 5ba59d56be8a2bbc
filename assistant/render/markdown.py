"""Blocks as Markdown, for tickets and chats. Text from outside goes into code spans that it cannot close."""

from __future__ import annotations

from collections.abc import Iterable

from assistant.render.blocks import Block, Command, Heading, Item, Quotation, Text
from assistant.render.commands import broken

#: Commands longer than this are broken over lines.
_COLUMNS = 100


def fence(text: str) -> str:
    """A code block whose fence is longer than any run of back-ticks in the text."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}\n{text}\n{ticks}"


def span(text: str) -> str:
    """A code span whose delimiter is longer than any run of back-ticks in the text."""
    delimiter = fence(text).partition("\n")[0][2:] if "`" in text else "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{delimiter}{pad}{' '.join(text.split())}{pad}{delimiter}"


def to_markdown(blocks: Iterable[Block]) -> str:
    """The whole answer as Markdown text."""
    return "\n\n".join(part for block in blocks for part in _draw(block)) + "\n"


def _draw(block: Block, indent: str = "") -> list[str]:
    match block:
        case Heading(text, _, level):
            return [f"{'#' * (level + 1)} {text}"]
        case Text(text):
            return [_indented(text, indent)]
        case Quotation(where, text):
            return [_indented(f"{span(where)}:\n\n{fence(text)}", indent)]
        case Command(text):
            return [_indented(fence(broken(text, _COLUMNS)), indent)]
        case Item(title, tags, body, number):
            mark = f"{number}." if number is not None else "-"
            tagged = f" ({', '.join(tags)})" if tags else ""
            inner = [line for part in body for line in _draw(part, indent + " " * (len(mark) + 1))]
            return [_indented(f"{mark} **{title}**{tagged}", indent), *inner]


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line if line else line for line in text.split("\n"))
