"""Every picture of figures: what is shown, as data, and the one place that draws it as SVG (PNG comes from the SVG).

Labels are the names of the exported series and numbers, so that no picture needs words of a language, or a font for
one. Text from outside (the name of a model) is cleaned, cut and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tools.metrics.vocabulary import BY_KEY
from tools.metrics.window import EngineWindow, ServerWindow
from tools.redaction import clean

#: Engines that get rows of their own; a picture of hundreds helps nobody.
MOST_ENGINES = 16
_WIDTH, _MARGIN, _ROW, _LABEL = 760, 16, 22, 220
#: Colours that differ in lightness too, for people who tell few hues apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TEXT, _QUIET, _BACK, _GRID = "#1b1b1b", "#5f5f5f", "#ffffff", "#dddddd"


class PlotError(Exception):
    """A picture cannot be made. The message is a clause."""


@dataclass(frozen=True, slots=True)
class Bars:
    """One value for each row, on one scale from 0 to ``most``."""

    title: str
    unit: str
    rows: tuple[tuple[str, float], ...]
    most: float


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over seconds, one line for each engine."""

    title: str
    unit: str
    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """How many observations fell between two bounds; the last bound may be infinite."""

    title: str
    unit: str
    bins: tuple[tuple[float, float], ...]  # (upper bound, observations in this bin alone)
    marks: tuple[tuple[str, float], ...]  # ("p50", value) and the like


Figure = Bars | Lines | Spread


def figures_of(window: ServerWindow) -> tuple[Figure, ...]:
    """The pictures of one window: load, cache, throughput, and where the time goes."""
    engines = window.engines[:MOST_ENGINES]
    found: list[Figure] = []
    levels = {key: _lasts(engines, key) for key in ("running", "waiting")}
    most = max((value for rows in levels.values() for _, value in rows), default=0.0)
    for key, rows in levels.items():
        if rows:
            found.append(Bars(BY_KEY[key].names()[0], "", rows, max(1.0, most)))
    usage = tuple((name, value * 100) for name, value in _lasts(engines, "kv_usage"))
    if usage:
        found.append(Bars(BY_KEY["kv_usage"].names()[0], "%", usage, 100.0))
    for key in ("waiting", "kv_usage"):
        line = _over_time(window, key)
        if line is not None:
            found.append(line)
    rates = _rates(window)
    if rates is not None:
        found.append(rates)
    for key in ("time_to_first_token", "inter_token_latency", "queue_time"):
        spread = _spread(engines, key)
        if spread is not None:
            found.append(spread)
    return tuple(found)


def _name(engine: EngineWindow) -> str:
    return clean(str(engine.key))[:40]


def _lasts(engines: Sequence[EngineWindow], key: str) -> tuple[tuple[str, float], ...]:
    return tuple((_name(e), value) for e in engines if (value := e.last(key)) is not None)


def _over_time(window: ServerWindow, key: str) -> Lines | None:
    if len(window.moments) < 3:
        return None
    factor, unit = (100.0, "%") if key == "kv_usage" else (1.0, "")
    series = tuple(
        (_name(e), tuple((at, v * factor) for at, v in zip(window.moments, e.gauges[key], strict=True)))
        for e in window.engines[:MOST_ENGINES]
        if len(e.gauges.get(key, ())) == len(window.moments)
    )
    changes = any(len({v for _, v in points}) > 1 for _, points in series)
    return Lines(BY_KEY[key].names()[0], unit, series) if series and changes else None


def _rates(window: ServerWindow) -> Lines | None:
    """Tokens per second between neighbouring looks, prompt and answer together, of the whole server."""
    at, done = window.moments, window.produced
    if len(at) < 3 or len(at) != len(done):
        return None
    points = tuple(
        (at[i], max(0.0, done[i] - done[i - 1]) / (at[i] - at[i - 1])) for i in range(1, len(at)) if at[i] > at[i - 1]
    )
    return Lines("vllm:prompt_tokens_total + vllm:generation_tokens_total", "/s", (("", points),)) if points else None


def _spread(engines: Sequence[EngineWindow], key: str) -> Spread | None:
    from tools.metrics.window import joined

    whole = joined(e.distributions[key] for e in engines if key in e.distributions)
    if whole is None or whole.count <= 0 or not whole.buckets:
        return None
    bins, before = [], 0.0
    for bound, count in whole.buckets:
        bins.append((bound, max(0.0, count - before)))
        before = max(before, count)
    filled = [i for i, (_, count) in enumerate(bins) if count > 0]
    if not filled:
        return None
    bins = bins[max(0, filled[0] - 1) : filled[-1] + 2]
    marks = tuple((f"p{share}", value) for share in (50, 95, 99) if (value := whole.quantile(share / 100)) is not None)
    return Spread(BY_KEY[key].names()[0], "s", tuple(bins), marks)


def short(value: float) -> str:
    """A number as a label: three figures, thousands and above with a letter."""
    if math.isinf(value):
        return "+Inf"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def to_svg(window: ServerWindow) -> str:
    """The whole picture. Raises :class:`PlotError` where nothing was measured."""
    figures = figures_of(window)
    if not figures:
        raise PlotError("nothing was measured that could be drawn")
    looked = f"{window.looks} / {window.seconds:.1f} s" + (f"   vLLM {clean(window.version)}" if window.version else "")
    return _page(clean(window.source)[:90], looked, figures)


def memory_svg(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """Figures of memory in GiB under each other, on one scale. Raises :class:`PlotError` where nothing is to compare."""
    most = max((value for _, value in rows), default=0.0)
    if len(rows) < 2 or most <= 0:
        raise PlotError("nothing was measured that could be drawn")
    return _page(
        clean(title)[:90], "", (Bars("GiB", "", tuple((clean(name)[:40], value) for name, value in rows), most),)
    )


def _page(title: str, below: str, figures: Sequence[Figure]) -> str:
    """One picture: a title, a line below it, and the figures under each other."""
    parts: list[str] = []
    top = float(_MARGIN)
    parts.append(_text(_MARGIN, top + 14, title, 13, bold=True))
    top += 22
    if below:
        parts.append(_text(_MARGIN, top + 9, below, 11, _QUIET))
        top += 24
    for figure in figures:
        parts.append(_text(_MARGIN, top + 13, figure.title, 12, bold=True))
        body, height = _draw(figure, top + 22)
        parts += body
        top += 22 + height + 14
    size = f'width="{_WIDTH}" height="{top:.0f}" viewBox="0 0 {_WIDTH} {top:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} xml:space="preserve" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">'
    return "\n".join([head, f'<rect width="100%" height="100%" fill="{_BACK}"/>', *parts, "</svg>", ""])


def to_png(svg: str) -> bytes:
    """The picture as PNG, in twice its size. Raises :class:`PlotError`."""
    import resvg_py

    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2.0))
    except ValueError as error:
        raise PlotError(str(error)) from None


def save_plot(window: ServerWindow, path: Path) -> None:
    """Writes ``path`` (.svg or .png). Raises :class:`PlotError` and ``OSError``."""
    svg = to_svg(window)
    if path.suffix == ".svg":
        path.write_text(svg, encoding="utf-8")
        return
    path.write_bytes(to_png(svg))


def _draw(figure: Figure, top: float) -> tuple[list[str], float]:
    if isinstance(figure, Bars):
        return _bars(figure, top)
    return _lines(figure, top) if isinstance(figure, Lines) else _bins(figure, top)


def _text(
    x: float, y: float, text: str, size: int, colour: str = _TEXT, *, end: bool = False, bold: bool = False
) -> str:
    anchor = ' text-anchor="end"' if end else ""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{anchor}{weight}>{escape(text)}</text>'


def _bars(figure: Bars, top: float) -> tuple[list[str], float]:
    parts = []
    room = _WIDTH - _LABEL - 2 * _MARGIN - 70
    for row, (name, value) in enumerate(figure.rows):
        y = top + row * _ROW
        width = room * min(1.0, value / figure.most) if figure.most else 0.0
        parts.append(_text(_MARGIN, y + 14, name, 11))
        parts.append(f'<rect x="{_LABEL}" y="{y + 3:.1f}" width="{room:.1f}" height="14" fill="{_GRID}"/>')
        parts.append(f'<rect x="{_LABEL}" y="{y + 3:.1f}" width="{width:.1f}" height="14" fill="{_COLOURS[0]}"/>')
        parts.append(_text(_LABEL + room + 8, y + 14, short(value) + figure.unit, 11))
    return parts, len(figure.rows) * _ROW


def _lines(figure: Lines, top: float) -> tuple[list[str], float]:
    height, left = 90.0, _MARGIN + 50.0
    room = _WIDTH - left - _MARGIN - 90
    every = [point for _, points in figure.series for point in points]
    last, most = max(x for x, _ in every) or 1.0, max(max(y for _, y in every), 1e-9)
    parts = [
        f'<line x1="{left}" y1="{top + height * part:.1f}" x2="{left + room:.1f}" y2="{top + height * part:.1f}" stroke="{_GRID}"/>'
        for part in (0.0, 0.5, 1.0)
    ]
    parts.append(_text(left - 6, top + 10, short(most) + figure.unit, 10, _QUIET, end=True))
    parts.append(_text(left - 6, top + height, "0", 10, _QUIET, end=True))
    parts.append(_text(left + room, top + height + 13, f"{last:.1f} s", 10, _QUIET, end=True))
    for number, (name, points) in enumerate(figure.series):
        colour = _COLOURS[number % len(_COLOURS)]
        row = " ".join(f"{left + room * x / last:.1f},{top + height * (1 - y / most):.1f}" for x, y in points)
        parts.append(f'<polyline points="{row}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if name and number < 6:
            parts.append(_text(left + room + 8, top + 10 + 14 * number, name[:14], 10, colour))
    return parts, height + 16


def _bins(figure: Spread, top: float) -> tuple[list[str], float]:
    height, left = 70.0, float(_MARGIN)
    top += 10  # room for the number above the tallest bar
    step = min(56.0, (_WIDTH - 2 * _MARGIN) / max(1, len(figure.bins)))
    most = max(count for _, count in figure.bins) or 1.0
    parts = []
    for place, (bound, count) in enumerate(figure.bins):
        x, tall = left + place * step, height * count / most
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{top + height - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}" fill="{_COLOURS[0]}"/>'
        )
        if count:
            parts.append(_text(x + 2, top + height - tall - 2, short(count), 9, _QUIET))
        parts.append(_text(x + step - 2, top + height + 12, f"≤{short(bound)}", 9, _QUIET, end=True))
    marks = "   ".join(f"{name} {short(value)} {figure.unit}" for name, value in figure.marks)
    parts.append(_text(left, top + height + 28, marks, 11))
    return parts, height + 42
