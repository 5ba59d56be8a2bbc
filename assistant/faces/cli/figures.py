"""The figures of a window in a terminal: bars, small lines, and the percentiles."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from assistant.render.figures import Bars, Lines, Spread, figures_of, short
from tools.metrics.window import ServerWindow

if TYPE_CHECKING:
    from rich.text import Text as RichText

_LEVELS = "▁▂▃▄▅▆▇█"
_BAR, _SPARK = 24, 30


def draw_figures(window: ServerWindow, stream: IO[str]) -> None:
    """Prints one row for each figure and engine."""
    from rich.text import Text

    from assistant.faces.cli.terminal import console_for

    console = console_for(stream)
    figures = figures_of(window)
    if not figures:
        return
    console.print()
    wide = max(len(_title(figure.title)) for figure in figures) + 2
    for figure in figures:
        for number, row in enumerate(_rows(figure)):
            line = Text(f"  {_title(figure.title) if number == 0 else '':{wide}}", style="bright_black")
            console.print(line + row, soft_wrap=True)


def _title(title: str) -> str:
    return title.replace("vllm:", "").replace("_total", "")


def _rows(figure: Bars | Lines | Spread) -> list[RichText]:
    from rich.text import Text

    if isinstance(figure, Bars):
        return [_bar(figure, name, value, len(figure.rows) > 1) for name, value in figure.rows]
    if isinstance(figure, Lines):
        return [
            Text(f"{sparkline([y for _, y in points])}  {short(points[-1][1])}{figure.unit}  {name}")
            for name, points in figure.series[:4]
        ]
    marks = "  ".join(f"{name} {short(value)} {figure.unit}" for name, value in figure.marks)
    return [Text(f"{sparkline([count for _, count in figure.bins])}  {marks}")]


def _bar(figure: Bars, name: str, value: float, named: bool) -> RichText:
    from rich.text import Text

    filled = round(_BAR * min(1.0, value / figure.most)) if figure.most else 0
    tone = "red" if figure.unit == "%" and value >= 95 else "yellow" if figure.unit == "%" and value >= 80 else "cyan"
    bar = Text("█" * filled, style=tone) + Text("·" * (_BAR - filled), style="bright_black")
    return bar + Text(f"  {short(value)}{figure.unit}" + (f"  {name}" if named else ""))


def sparkline(values: list[float]) -> str:
    """Values as one line of blocks, from zero to the largest."""
    values = values[-_SPARK:]
    most = max(values, default=0.0)
    if most <= 0:
        return _LEVELS[0] * len(values)
    return "".join(_LEVELS[min(7, round(7 * max(0.0, v) / most))] for v in values)
