"""What a tool found, as blocks for every face. A result that has no drawing of its own is shown as its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from assistant.render.blocks import Block, Heading, Quotation
from tools.redaction import clean, redact

if TYPE_CHECKING:
    from assistant.diagnosis.model import Language
    from knowledge.catalog import Catalog
    from tools.registry import Action

_MOST_VALUE = 300
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


def is_drawn(action: str) -> bool:
    """Whether the results of an action have a drawing of their own."""
    return action == "estimate_memory" or action in _CHECKS


def result_blocks(action: Action, result: Any, catalog: Catalog, lang: Language) -> list[Block]:
    """The result of an action, as its output model dumps it, as blocks."""
    if action.name == "estimate_memory":
        from assistant.render.memory import estimate_blocks
        from tools.memory.action import MemoryEstimate

        # `gpus` is of the caller: how many GPUs the estimate is for, 1 where nothing is said.
        gpus = int(result.get("gpus") or 1)
        return list(estimate_blocks(MemoryEstimate.model_validate(result), catalog, lang, gpus))
    if action.name in _CHECKS:
        from assistant.render.checks import capture_blocks, nccl_blocks, report_blocks

        report: Any = action.output_model.model_validate(result)
        heading = _CHECKS[action.name]
        special: dict[str, Any] = {"nccl": nccl_blocks, "capture": capture_blocks}
        drawn = special[heading](report, catalog, lang) if heading in special else None
        return list(drawn or report_blocks(report, catalog, lang, heading))
    title = catalog.tool(action.name, action.title, lang)
    return [Heading(title, level=1), Quotation(action.name, result_text(result))]


def result_text(result: Any) -> str:
    """The fields of a result that say something, one a line, lists by their entries."""
    return "\n".join(_lines(result))


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
