"""The configured servers: where they are, what was found out about them last, and how they are right now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from assistant.acting import perform
from assistant.faces.web.figures import bars, number
from assistant.faces.web.incidents import rows
from assistant.store.finding import Wanted, find
from tools import registry
from tools.redaction import clean
from tools.registry import ActionError

if TYPE_CHECKING:
    from assistant.faces.web.visit import Visit
    from assistant.targets import Target

_ACTION = "fetch_metrics"
#: Seconds between two looks at one server; in the list one look is enough.
_WINDOW_S = 2.0
_PAGE = 100
_MOST_ENGINES = 16
#: What a row of the list says, in this order, where it was measured.
_SHOWN = ("running", "waiting", "kv_usage")


async def everything(visit: Visit) -> Response:
    """All targets by name, with the last incident of each."""
    service = visit.service
    wanted = visit.field("q").casefold()
    names = [name for name in sorted(service.targets) if wanted in _words(service.targets[name]).casefold()]
    after = visit.field("after")
    names = [name for name in names if name > after]
    page = names[:_PAGE]
    last = await service.in_thread(_last, visit, page)
    return visit.page(
        "fleet.html",
        title=visit.word("web-fleet"),
        targets=[service.targets[name] for name in page],
        last=last,
        q=visit.field("q"),
        following=visit.address(after=page[-1]) if len(names) > _PAGE else "",
        file=service.settings.text("targets_file"),
    )


async def one(visit: Visit) -> Response:
    """One server: what its metrics say over two seconds, and its incidents."""
    service = visit.service
    target = service.target(visit.request.path_params["target"])
    found: dict[str, Any] | None = None
    problem = ""
    try:
        found = await _look(visit, target.name, _WINDOW_S)
    except ActionError as error:
        problem = visit.told(error)
    recent = await service.in_thread(find, service.database, Wanted(target=target.name), 10)
    return visit.page(
        "target.html",
        title=target.name,
        target=target,
        found=found,
        problem=problem,
        engines=_engines(found) if found else [],
        recent=rows(visit, recent),
    )


async def state(visit: Visit) -> Response:
    """How one server is right now, for a row of the list."""
    target = visit.service.target(visit.request.path_params["target"])
    try:
        found = await _look(visit, target.name, 0.0)
    except ActionError as error:
        return JSONResponse({"tone": "bad", "text": visit.told(error), "figures": []})
    if found["answer"] != "vllm":
        text = visit.word("web-fleet-no-answer", what=clean(found["detail"] or found["answer"]))
        return JSONResponse({"tone": "bad", "text": text, "figures": []})
    figures = []
    for key in _SHOWN:
        values = [engine["levels"][key] for engine in found["engines"] if key in engine["levels"]]
        if values:
            value = max(values) * 100 if key == "kv_usage" else sum(values)
            shown = f"{number(round(value))}%" if key == "kv_usage" else number(value)
            figures.append({"label": visit.word(f"web-level-{key}"), "shown": shown})
    return JSONResponse({"tone": "good", "text": visit.word("web-fleet-answers"), "figures": figures})


async def _look(visit: Visit, name: str, window_s: float) -> dict[str, Any]:
    """What the server states of itself. Raises ``ActionError``."""
    result = await perform(
        visit.principal,
        registry.get(_ACTION),
        {"target": name, "window_s": window_s},
        face="web",
        policy=visit.service.policy,
        audit=visit.service.audit,
        deadline_s=visit.service.settings.number("deadline_s"),
        server=visit.service.server,
    )
    return result.model_dump(mode="json")


def _engines(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each engine's levels as bars and its rates and times as numbers, under the names that vLLM exports."""
    from tools.metrics.vocabulary import BY_KEY

    def named(rows: dict[str, float]) -> list[tuple[str, str, float]]:
        return [(BY_KEY[key].names()[0], BY_KEY[key].unit, value) for key, value in rows.items() if key in BY_KEY]

    drawn = []
    for engine in found["engines"][:_MOST_ENGINES]:
        levels = named(engine["levels"])
        counts = [(name, value) for name, unit, value in levels if unit == "requests"]
        shares = [(name, value * 100) for name, unit, value in levels if unit == "1"]
        drawn.append(
            {
                "name": clean(engine["engine"]),
                "counts": bars("", counts) if counts else None,
                "shares": bars("%", shares, most=100.0) if shares else None,
                "rates": [(name, number(round(value, 2))) for name, _, value in named(engine["per_second"]) if value],
                "slow": [(name, number(round(value, 3))) for name, unit, value in named(engine["p95"]) if unit == "s"],
            }
        )
    return drawn


def _last(visit: Visit, names: list[str]) -> dict[str, dict[str, Any]]:
    last = {}
    for name in names:
        found = find(visit.service.database, Wanted(target=name), 1)
        if found:
            last[name] = rows(visit, found)[0]
    return last


def _words(target: Target) -> str:
    return " ".join((target.name, target.address, *target.labels, *target.labels.values()))
