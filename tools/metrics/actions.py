"""The actions on a live server: read its metrics over a window, and, when somebody agrees, ask it for one token."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from tools import vllm_server
from tools.addresses import AddressError
from tools.metrics.facts import evidence_of
from tools.metrics.look import Look, look_at
from tools.metrics.window import ServerWindow
from tools.outbound import Limits, Outbound
from tools.registry import ActionError, Context, action


class FetchMetricsInput(BaseModel):
    """Which server, and how long it is watched."""

    target: str = Field(max_length=4096, description="A configured server by name, or its address (http://host:8000).")
    window_s: float = Field(
        5.0, ge=0, le=600, description="Seconds between first and last look; 0 looks once and decides little."
    )


class Fact(BaseModel):
    """One fact by its name in the vocabulary of evidence."""

    name: str
    state: str
    value: str | int | float | bool | None = None
    quote: str = ""
    why_unknown: str = ""
    engine: str | None = None


class EngineFigures(BaseModel):
    """One engine over the window: levels at the last look, growth per second, means and percentiles in seconds."""

    engine: str
    levels: dict[str, float]
    per_second: dict[str, float]
    means: dict[str, float]
    p95: dict[str, float]


class FetchMetricsOutput(BaseModel):
    """What the server states of itself over the window. What was not measured is missing, never zero."""

    source: str
    answer: str = Field(description="vllm, or what came instead: html, credentials, refused, too-late and others")
    detail: str = ""
    looks: int
    seconds: float
    version: str | None = None
    models: list[str] = []
    health: int | None = None
    engines: list[EngineFigures] = []
    facts: list[Fact] = []
    not_measured: list[str] = []


@action("fetch_metrics", "Read a vLLM server's metrics over some seconds", effect="reads", deadline_s=660)
async def fetch_metrics(given: FetchMetricsInput, context: Context) -> FetchMetricsOutput:
    """Look at a live vLLM server: its metrics page several times over a window, /health, /version and /v1/models.

    Returns rates, levels, means and percentiles of that window for each engine, and the facts that a diagnosis rests
    on. A server that cannot be reached, or that is no vLLM, is an answer too.
    """
    try:
        address, headers = context.server(given.target)
        look = Look(address, window_s=given.window_s, deadline_s=given.window_s + 45.0, headers=headers)
        return output_of(await look_at(look, context.policy, report=context.report))
    except AddressError as error:
        raise ActionError(str(error)) from None


def output_of(window: ServerWindow) -> FetchMetricsOutput:
    """The window as the action's result."""
    reading = evidence_of(window)
    return FetchMetricsOutput(
        source=window.source,
        answer=window.answer,
        detail=window.detail,
        looks=window.looks,
        seconds=round(window.seconds, 3),
        version=window.version,
        models=list(window.models),
        health=window.health,
        engines=[
            EngineFigures(
                engine=str(engine.key),
                levels={key: values[-1] for key, values in engine.gauges.items() if values},
                per_second={key: grown / window.seconds for key, grown in engine.increases.items()}
                if window.seconds > 0
                else {},
                means={key: mean for key, d in engine.distributions.items() if (mean := d.mean) is not None},
                p95={key: high for key, d in engine.distributions.items() if (high := d.quantile(0.95)) is not None},
            )
            for engine in window.engines
        ],
        facts=[
            Fact(
                name=e.name,
                state=e.state,
                value=e.value,
                quote=e.quote,
                why_unknown=e.why_unknown,
                engine=e.origin.process,
            )
            for e in reading.evidence
        ],
        not_measured=[what for what, _ in reading.not_measured],
    )


class ProbeInput(BaseModel):
    """Which server is asked for one token, and of which model."""

    target: str = Field(max_length=4096, description="A configured server by name, or its address.")
    model: str | None = Field(None, max_length=400, description="Model; the first that the server names unless given.")
    deadline_s: float = Field(30.0, gt=0, le=120, description="Seconds that the token may take.")


class ProbeOutput(BaseModel):
    """Whether the token came, and how long it took. Nothing of its text is kept."""

    answered: bool
    model: str | None = None
    status: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    detail: str = ""


@action("probe_server", "Ask a vLLM server for one token", effect="loads", deadline_s=150)
async def probe_server(given: ProbeInput, context: Context) -> ProbeOutput:
    """Ask the server for a single token and say how long it took.

    Tells an engine that stands still from one that is only busy, at the price of one small request.
    """
    limits = Limits(deadline_s=given.deadline_s, max_bytes=1 << 20, max_decompressed_bytes=1 << 20, cut=True)
    try:
        address, headers = context.server(given.target)
        base = vllm_server.base_of(address)
    except AddressError as error:
        raise ActionError(str(error)) from None
    context.report(None, "asking for one token")
    async with Outbound(context.policy, limits=limits) as outbound:
        probed = await vllm_server.probe(outbound, base, headers, limits, given.model)
    fields: dict[str, Any] = {
        name: getattr(probed, name) for name in ("model", "status", "seconds", "tokens", "detail")
    }
    return ProbeOutput(answered=probed.status == 200, **fields)
