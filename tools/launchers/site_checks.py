"""What the nodes of a site found out about themselves, judged as the checks of this machine are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from tools.gpu import check as gpu
from tools.gpu.facts import GpuFacts
from tools.host import check as host
from tools.host.facts import HostFacts
from tools.launchers.site import Part
from tools.network import check as network
from tools.network.facts import NetworkFacts
from tools.sanity.results import Language, Report, Sheet, plain

T = TypeVar("T")
#: A node's facts are cut to this: characters of a text, entries of a list or table, tables inside each other.
_MOST_TEXT, _MOST_ENTRIES, _MOST_DEPTH = 600, 512, 8

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _judge_host(sheet: Sheet, raw: object) -> None:
    host.judge(sheet, told(HostFacts, raw))


def _judge_network(sheet: Sheet, raw: object) -> None:
    network.judge(sheet, told(NetworkFacts, raw))


def _judge_gpu(sheet: Sheet, raw: object) -> None:
    gpu.judge(sheet, told(GpuFacts, raw))


_CHECKS: dict[str, tuple[str, Callable[[Sheet, object], None]]] = {
    "gpu": ("check_gpu", _judge_gpu),
    "host": ("check_host", _judge_host),
    "network": ("check_network", _judge_network),
}


def reports_of(part: Part, lang: Language, late: str, garbled: str) -> list[Report]:
    """A report for each check. ``late`` and ``garbled`` are the sentences for facts that did not come and for such that
    cannot be facts."""
    said: dict[str, dict[str, Any]] = {}
    for event in part.said.get("checks", ()):
        if event.get("event") in ("facts", "failed"):
            said.setdefault(str(event.get("part")), event)
    found: list[Report] = []
    for name, (tool, judge) in _CHECKS.items():
        event = said.get(name, {})
        why = _last_words(part) or late
        if event.get("event") == "facts":
            sheet = Sheet(tool, lang)
            try:
                judge(sheet, event.get("facts"))
                found.append(sheet.report())
                continue
            except (ValueError, TypeError, ArithmeticError):  # it comes from elsewhere, and may be anything
                why = garbled
        elif event:
            why = plain(event.get("text"))
        sheet = Sheet(tool, lang)
        sheet.add("cluster.check", "unknown", tool, detail=why)
        found.append(sheet.report())
    return found


def _last_words(part: Part) -> str:
    """What the program that looks said on standard error, where it has ended by itself in failure."""
    ended = part.ended.get("checks", {})
    lines = str(ended.get("stderr") or "").strip().splitlines()
    return plain(lines[-1]) if lines and ended.get("status") and not ended.get("late") else ""


def told(kind: type[T], raw: object) -> T:
    """Facts as a node tells them; raises ``ValueError`` where they are none of this kind."""
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    return cast("T", adapter.validate_python(bounded(raw)))


def bounded(raw: object, depth: int = 0) -> object:
    """The same with everything cut to its size; raises ``ValueError`` for what no machine says of itself."""
    if depth > _MOST_DEPTH:
        raise ValueError("tables inside tables")
    if isinstance(raw, str):
        return raw[:_MOST_TEXT]
    if isinstance(raw, dict):
        return {str(key)[:_MOST_TEXT]: bounded(value, depth + 1) for key, value in list(raw.items())[:_MOST_ENTRIES]}
    if isinstance(raw, list):
        return [bounded(value, depth + 1) for value in raw[:_MOST_ENTRIES]]
    if isinstance(raw, int | float) and not (math.isfinite(raw) and abs(raw) < 1 << 63):
        raise ValueError("a number without measure")
    return raw
