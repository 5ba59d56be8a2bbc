"""What a tool found, as blocks, pictures and files. A result that has no drawing of its own is shown as its fields."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.drawing import draw
from assistant.faces.slack.elements import Piece, fixed, header, rich
from assistant.render.measured import named_figures
from tools.redaction import clean, redact

if TYPE_CHECKING:
    from assistant.diagnosis.model import Diagnosis, Language
    from knowledge.catalog import Catalog
    from tools.metrics.window import ServerWindow
    from tools.registry import Action

_MOST_VALUE = 300
_MOST_TEXT = 2800


#: Checks by their action, and the name under which their heading is kept.
_CHECKS = {
    "run_nccl_test": "nccl",
    "run_compile_test": "compile",
    "check_gpu": "gpu",
    "check_host": "host",
    "check_network": "network",
    "measure_loading": "loading",
    "profile_server": "profile",
    "capture": "capture",
}


def result_pieces(action: Action, result: Any, catalog: Catalog, lang: Language) -> list[Piece]:
    """The blocks for a result."""
    if action.name == "estimate_memory":
        from assistant.render.memory import estimate_blocks
        from tools.memory.action import MemoryEstimate

        estimate = MemoryEstimate.model_validate(result)
        return list(draw(estimate_blocks(estimate, catalog, lang, _gpus(result))))
    if action.name in _CHECKS:
        from assistant.render.checks import capture_blocks, nccl_blocks, report_blocks

        report: Any = action.output_model.model_validate(result)
        heading = _CHECKS[action.name]
        special: dict[str, Any] = {"nccl": nccl_blocks, "capture": capture_blocks}
        drawn = special[heading](report, catalog, lang) if heading in special else None
        return list(draw(drawn or report_blocks(report, catalog, lang, heading)))
    title = catalog.tool(action.name, action.title, lang)
    return [header(f"📋 {title}"), rich(fixed("\n".join(_lines(result)), _MOST_TEXT))]


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
    drawn = action.name == "estimate_memory" or action.name in _CHECKS
    if whole or (not drawn and len("\n".join(_lines(result))) > _MOST_TEXT):
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


def _gpus(result: Mapping[str, Any]) -> int:
    """The GPUs that the estimate is for: those of its own tensor-parallel row, 1 where there is none."""
    return int(result.get("gpus") or 1)


def _lines(result: Any) -> Iterator[str]:
    """The fields of a result that say something, one a line, lists by their entries."""
    if not isinstance(result, Mapping):
        yield _short(result)
        return
    for name, value in result.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list):
            yield f"{name}:"
            yield from (f"  - {_short(entry)}" for entry in value[:8])
            if len(value) > 8:
                yield f"  … {len(value) - 8}"
        else:
            yield f"{name}: {_short(value)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = redact(clean(text)).replace("\n", " ")
    return text if len(text) <= _MOST_VALUE else text[: _MOST_VALUE - 1] + "…"
