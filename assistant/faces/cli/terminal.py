"""Draws blocks for a terminal: colour and layout on a terminal, the same text without them in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from assistant.render.blocks import Block, Command, Heading, Item, Quotation, Text
from assistant.render.commands import broken

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as RichText

_TONE = {"plain": "", "good": "green", "bad": "bold red", "unsure": "yellow", "quiet": "bright_black"}
#: Lines longer than this are hard to read, however wide the terminal is.
_MOST_COLUMNS = 110


def console_for(stream: IO[str]) -> Console:
    """A console for one stream: as wide as it is (at most 110 columns), without colour where it is no terminal."""
    from rich.console import Console

    is_terminal = stream.isatty()
    width = None if is_terminal else 100
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if console.width > _MOST_COLUMNS:
        console = Console(file=stream, width=_MOST_COLUMNS, highlight=False, markup=False, emoji=False)
    return console


def draw(blocks: Iterable[Block], stream: IO[str] | None = None) -> None:
    """Prints the blocks. Raises ``BrokenPipeError`` where the reader went away."""
    draw_on(console_for(stream or sys.stdout), blocks)


def draw_on(console: Console, blocks: Iterable[Block]) -> None:
    """Prints the blocks on a console that exists already."""
    for block in blocks:
        _draw(block, console, 0)


def _print(console: Console, text: str, style: str, left: int, *, first: str = "", rest: str = "") -> None:
    """Prints one paragraph, wrapped to the console; ``first`` and ``rest`` stand before its first and other lines."""
    from rich.cells import cell_len
    from rich.text import Text as RichText

    width = max(20, console.width - left - max(cell_len(first), cell_len(rest)))
    mark = first
    for line in RichText(text).wrap(console, width, overflow="fold"):
        line.rstrip()
        console.print(RichText(" " * left + mark) + RichText(line.plain, style=style), soft_wrap=True)
        mark = rest or " " * cell_len(first)


def _marked(line: str, changed: tuple[str, ...]) -> RichText:
    """One line of a command, with what is new in it standing out."""
    from rich.text import Text as RichText

    drawn = RichText(line, style="cyan")
    for piece in changed:
        for part in (piece, *(piece.split(" ", 1) if piece not in line else ())):
            at = line.find(part)
            if at >= 0 and len(part) > 1:
                drawn.stylize("bold green", at, at + len(part))
    return drawn


def _draw(block: Block, console: Console, left: int) -> None:
    match block:
        case Heading(text, tone, level):
            console.print()
            _print(console, text, f"bold {_TONE[tone]}".strip() if level > 1 else f"{_TONE[tone]} bold".strip(), left)
        case Text(text, tone):
            _print(console, text, _TONE[tone], left + 2 if left == 0 else left)
        case Quotation(where, text):
            _print(console, where, "bright_black", left + 2)
            for line in text.split("\n"):
                _print(console, line, "cyan", left + 4, first="│ ", rest="│ ")
        case Command(text, changed):
            # Never wrapped by the terminal: it is there to be copied, and is broken where a shell allows it.
            for line in broken(text, max(40, console.width - left - 2)).split("\n"):
                console.print(_marked(" " * (left + 2) + line, changed), soft_wrap=True)
        case Item(title, tags, body, number):
            mark = f"{number}." if number is not None else "•"
            tagged = f"  [{', '.join(tags)}]" if tags else ""
            _print(console, title + tagged, "bold" if number is not None else "", left + 2, first=f"{mark} ")
            for part in body:
                _draw(part, console, left + 5)
