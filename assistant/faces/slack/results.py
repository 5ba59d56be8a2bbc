"""What a tool found, as blocks, pictures and files. A result that has no drawing of its own is shown as its fields."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.drawing import draw
from assistant.faces.slack.elements import Piece, fixed, header, rich
from assistant.render.measured import named_figures
from assistant.render.results import is_drawn, result_blocks, result_text
from tools.redaction import clean, redact

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis, Language
    from knowledge.catalog import Catalog
    from tools.metrics.window import ServerWindow
    from tools.registry import Action

_MOST_TEXT = 2800


def result_pieces(action: Action, result: Any, catalog: Catalog, lang: Language) -> list[Piece]:
    """The blocks for a result."""
    if is_drawn(action.name):
        return list(draw(result_blocks(action, result, catalog, lang)))
    title = catalog.tool(action.name, action.title, lang)
    return [header(f"📋 {title}"), rich(fixed(result_text(result), _MOST_TEXT))]


def result_file(
    action: Action, result: Any, catalog: Catalog, lang: Language, *, whole: bool
) -> Iterator[tuple[str, bytes, str]]:
    """Files that belong to a result: name, content, title. ``whole`` asks for the result itself as well."""
    title = catalog.tool(action.name, action.title, lang)
    if action.name == "estimate_memory":
        from assistant.render.figures import to_png
        from assistant.render.memory_figure import svg
        from tools.memory.action import MemoryEstimate

        # Labels are English: a server seldom has fonts with Chinese characters, and this is drawn with its fonts.
        text = svg(MemoryEstimate.model_validate(result), catalog, "en")
        yield "memory.png", to_png(text), title
    drawn = is_drawn(action.name)
    if whole or (not drawn and len(result_text(result)) > _MOST_TEXT):
        yield (
            f"{action.name}.json",
            redact(clean(json.dumps(result, ensure_ascii=False, indent=1))).encode(),
            title,
        )


def figure_files(
    diagnosis: Diagnosis, window: ServerWindow | None, catalog: Catalog
) -> Iterator[tuple[str, bytes, str]]:
    """Pictures of what a diagnosis measured: the live server's figures, and the parts of a GPU's memory.

    Labels are English, as in :func:`result_file`; the file's title is in the language of the diagnosis.
    """
    from assistant.render.figures import PlotError, memory_svg, to_png, to_svg

    title = catalog.word("web-figures", diagnosis.language)
    if window is not None:
        with contextlib.suppress(PlotError):
            yield "metrics.png", to_png(to_svg(window)), title
    evidence = diagnosis.case.reading.evidence if diagnosis.case is not None else ()
    named = named_figures(evidence, catalog, "en").get("GiB", ())
    with contextlib.suppress(PlotError):
        yield "memory.png", to_png(memory_svg(diagnosis.target or "GPU", named)), title
