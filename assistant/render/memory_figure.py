"""The memory of one GPU as a picture: one bar with its parts, their sizes and their ranges. SVG, or PNG by resvg."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.diagnosis.model import Language
from assistant.render.memory import gib
from knowledge.catalog import Catalog

if TYPE_CHECKING:
    from tools.memory.action import MemoryEstimate

#: Told apart by people who do not see all colours (Okabe and Ito, "Color Universal Design", 2008), and by their labels.
_COLOURS = {
    "weights": "#0072B2", "activations": "#E69F00", "non_torch": "#CC79A7", "cuda_graphs": "#D55E00", "kv_cache": "#009E73", "left_free": "#BBBBBB",
}  # fmt: skip
_WIDTH, _LEFT, _BAR = 760, 24, 712


def svg(result: MemoryEstimate, catalog: Catalog, lang: Language) -> str:
    """The picture as SVG text. Raises :class:`ValueError` where the GPU's memory is not known."""
    total = result.gpu_total_gib
    if total is None:
        raise ValueError(catalog.word("memory-verdict-unknown", lang, model=result.model, gpus=1, gpu="GPU"))
    drawn = [c for c in result.components if (c.counted or c.name == "left_free") and c.gib.value > 0]
    over = sum(c.gib.value for c in drawn)
    scale = _BAR / max(total, over)
    height = 118 + 22 * len(drawn)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="Noto Sans, Noto Sans CJK SC, DejaVu Sans, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="28" font-size="16" font-weight="bold">{escape(catalog.word("memory-figure-title", lang, model=result.model))}</text>',
    ]
    x = float(_LEFT)
    for part in drawn:
        width = part.gib.value * scale
        rows.append(
            f'<rect x="{x:.1f}" y="44" width="{width:.1f}" height="36" fill="{_COLOURS[part.name]}" stroke="#ffffff"/>'
        )
        x += width
    limit = _LEFT + total * scale
    rows.append(f'<line x1="{limit:.1f}" y1="38" x2="{limit:.1f}" y2="88" stroke="#000000" stroke-width="2"/>')
    rows.append(f'<text x="{limit:.1f}" y="102" text-anchor="end">{gib(total)} GiB</text>')
    for row, part in enumerate(drawn):
        y = 122 + 22 * row
        size = part.gib
        key = "memory-part-line-exact" if size.low == size.high else "memory-part-line"
        line = catalog.word(
            key,
            lang,
            name=catalog.word(f"memory-part-{part.name}", lang),
            value=gib(size.value),
            low=gib(size.low),
            high=gib(size.high),
        )
        rows.append(f'<rect x="{_LEFT}" y="{y - 11}" width="13" height="13" fill="{_COLOURS[part.name]}"/>')
        rows.append(f'<text x="{_LEFT + 22}" y="{y}">{escape(line)}</text>')
    rows.append("</svg>")
    return "\n".join(rows) + "\n"


def draw(result: MemoryEstimate, catalog: Catalog, lang: Language, path: Path) -> None:
    """Writes the picture. Raises :class:`ValueError` for an ending that is neither .svg nor .png, and ``OSError``."""
    ending = path.suffix.lower()
    if ending not in (".svg", ".png"):
        raise ValueError(f"--plot {path}: the file's name has to end in .svg or .png.")
    # A PNG is drawn with this machine's fonts, and servers seldom have Chinese ones: its labels are English.
    text = svg(result, catalog, lang if ending == ".svg" else "en")
    if ending == ".svg":
        path.write_text(text, encoding="utf-8")
        return
    import resvg_py

    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=text, zoom=2)))
