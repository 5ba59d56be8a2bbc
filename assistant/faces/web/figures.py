"""Figures of a diagnosis as bars: which evidence has a name for people, on one scale for each unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from assistant.render.measured import named_figures
from knowledge.catalog import Catalog
from tools.evidence import Evidence

#: Width of the longest bar, in the units of the picture.
FULL = 360.0
_ROW = 38.0
_MOST_ROWS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One bar; ``width`` is in units of the picture."""

    y: float
    label: str
    shown: str
    width: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars on one scale."""

    unit: str
    rows: tuple[Row, ...]

    @property
    def height(self) -> float:
        """Of the picture, in its units."""
        return _ROW * len(self.rows) + 6


@dataclass(frozen=True, slots=True)
class Number:
    """One figure that has no bar."""

    label: str
    shown: str


def charts(evidence: Iterable[Evidence], catalog: Catalog, lang: str) -> tuple[tuple[Chart, ...], tuple[Number, ...]]:
    """The bars, one chart a unit in which at least two figures are known, and the other figures as numbers."""
    units = named_figures(evidence, catalog, lang)
    drawn, single = [], []
    for unit, rows in units.items():
        if unit == "GiB" and len(rows) > 1 and max(value for _, value in rows) > 0:
            drawn.append(bars(unit, rows))
        else:
            single += [Number(label, shown(value, unit)) for label, value in rows]
    return tuple(drawn), tuple(single)


def bars(unit: str, rows: Sequence[tuple[str, float]], most: float | None = None) -> Chart:
    """Rows of one unit on one scale, up to ``most`` or the longest."""
    most = most or max((value for _, value in rows), default=0.0) or 1.0
    return Chart(
        unit,
        tuple(
            Row(
                _ROW * place,
                label,
                shown(value, unit),
                FULL * min(1.0, max(0.0, value) / most),
            )
            for place, (label, value) in enumerate(rows[:_MOST_ROWS])
        ),
    )


def shown(value: float, unit: str) -> str:
    """A figure with its unit."""
    return f"{number(value)}%" if unit == "%" else f"{number(value)} {unit}".strip()


def number(value: float) -> str:
    """A figure as people read it: whole numbers grouped, others with as many places as they need."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 0.01 else f"{value:.2g}"
