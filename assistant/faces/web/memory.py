"""The memory calculator: a form over the action that estimates, and its figures as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from starlette.responses import Response

from assistant.acting import perform
from assistant.render.blocks import Heading, Text
from assistant.render.memory import MARKS, estimate_blocks, gib
from tools import registry
from tools.redaction import clean
from tools.registry import ActionError

if TYPE_CHECKING:
    from assistant.faces.web.visit import Visit
    from tools.memory.action import Component, MemoryEstimate

#: Of the bar, in units of the picture.
_WIDTH = 640.0
_ACTION = "estimate_memory"
#: Fields of the form and what kind of value each one is; those below ``arguments`` go there, as vLLM spells them.
FIELDS: Mapping[str, type] = {
    "model": str,
    "gpu": str,
    "tensor_parallel_size": int,
    "gpu_memory_utilization": float,
    "max_model_len": int,
    "quantization": str,
    "kv_cache_dtype": str,
    "vllm_version": str,
}
ARGUMENTS: Mapping[str, type] = {
    "pipeline_parallel_size": int,
    "max_num_seqs": int,
    "max_num_batched_tokens": int,
    "max_loras": int,
    "cpu_offload_gb": float,
}


async def calculator(visit: Visit) -> Response:
    """The form; with a model also what it needs. Only a form that was sent (POST) may ask the hub for a model."""
    action = registry.get(_ACTION)
    given = {name: visit.field(name) for name in (*FIELDS, *ARGUMENTS)}
    values: dict[str, Any] = {"given": given, "result": None, "problem": ""}
    ask_hub = visit.form is not None and visit.field("ask_hub") == "yes"
    if given["model"]:
        try:
            arguments = _arguments(visit, given, ask_hub=ask_hub)
            result = await perform(
                visit.principal,
                action,
                arguments,
                face="web",
                policy=visit.service.policy,
                audit=visit.service.audit,
            )
            gpus = arguments.get("tensor_parallel_size", 1) * arguments.get("arguments", {}).get(
                "pipeline_parallel_size", 1
            )
            values |= _drawn(visit, cast("MemoryEstimate", result), gpus)
        except ActionError as error:
            values["problem"] = visit.told(error)
    values["share"] = visit.shared.url("/memory?" + urlencode({k: v for k, v in given.items() if v}))
    status = 422 if values["problem"] else 200
    return visit.page("memory.html", status=status, title=visit.word("web-memory"), gpus=_gpus(), **values)


def _arguments(visit: Visit, given: Mapping[str, str], *, ask_hub: bool) -> dict[str, Any]:
    """The action's arguments; raises ``ActionError`` for a number that is none."""
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for fields, into in ((FIELDS, found), (ARGUMENTS, others)):
        for name, kind in fields.items():
            if text := given[name]:
                try:
                    into[name] = kind(text.replace(",", ""))
                except (ValueError, OverflowError):
                    raise ActionError(visit.word("web-error-number", name=name, given=clean(text)[:40])) from None
    if others:
        found["arguments"] = others
    if ask_hub:
        found["ask_hub"] = True
    return found


def _drawn(visit: Visit, result: MemoryEstimate, gpus: int) -> dict[str, Any]:
    """The estimate in its own sentences, with a stacked bar: where one card's memory goes."""
    catalog = visit.service.catalog
    verdict, *rest = estimate_blocks(result, catalog, visit.lang, gpus)
    # the marks that draw the bar in a terminal, and the sizes beside them, are the picture here
    marks = tuple(MARKS.values())
    rest = [block for block in rest if not (isinstance(block, Text) and block.text.startswith(marks))]
    where = next((place for place, block in enumerate(rest[1:3], 1) if isinstance(block, Heading)), 1)
    drawn = [part for part in result.components if part.counted or part.name == "left_free"]
    taken = sum(max(0.0, part.gib.value) for part in drawn) or 1.0
    scale = max(result.gpu_total_gib or 0.0, taken)
    x, parts = 0.0, []
    for part in result.components:
        width = _WIDTH * max(0.0, part.gib.value) / scale if part in drawn else 0.0
        parts.append({"name": part.name, "x": round(x, 2), "width": round(width, 2), "line": _line(visit, part)})
        x += width
    return {
        "result": result,
        "verdict": verdict,
        "before": rest[: where + 1] if result.gpu_total_gib else rest[:1],
        "rest": rest[where + 1 :] if result.gpu_total_gib else rest[1:],
        "parts": parts,
        "bar_width": _WIDTH,
        "limit": round(_WIDTH * result.gpu_total_gib / scale, 2) if result.gpu_total_gib else 0,
    }


def _line(visit: Visit, part: Component) -> str:
    """One part with its size and the range that it may lie in."""
    size = part.gib
    key = "memory-part-line" if part.counted else "memory-part-line-outside"
    if size.low == size.high:
        key = "memory-part-line-exact"
    name = visit.word(f"memory-part-{part.name}")
    return visit.word(key, name=name, value=gib(size.value), low=gib(size.low), high=gib(size.high))


def _gpus() -> list[str]:
    """Names that the form offers; any other may be typed."""
    from knowledge import gpus

    return [gpu.name for gpu in gpus.load()]
