"""What a vLLM server says of itself besides its metrics: health, version, models, load, and one token if asked for.

Every question is small, bounded and independent: a server that does not answer one of them may answer another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tools.addresses import Url, parse_url
from tools.outbound import Limits, Outbound, OutboundError, Reply

#: Answers of these routes are small; more than this is not one of them.
_SMALL = 256 * 1024
_VERSION_LENGTH = 60
_MODELS = 64


@dataclass(frozen=True, slots=True)
class Health:
    """What the small routes answered. ``health`` is a status, or None with ``health_detail`` saying why."""

    health: int | None = None
    health_detail: str = ""
    version: str | None = None
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    load: float | None = None


def base_of(address: str) -> Url:
    """The server's base address, from that or from the address of its metrics page or of its API.

    ``http://host:8000/v1`` and ``http://host:8000/metrics`` are what people have at hand. Raises
    :class:`~tools.addresses.AddressError`.
    """
    where = parse_url(address)
    path = where.path.split("?", 1)[0].rstrip("/")
    for known in ("/metrics", "/v1"):
        path = path.removesuffix(known)
    return replace(where, path=path + "/")


async def ask(outbound: Outbound, base: Url, headers: Mapping[str, str], limits: Limits) -> Health:
    """All small questions at once."""
    health, version, models, load = await asyncio.gather(
        *(_get(outbound, str(base.at(path)), headers, limits) for path in ("health", "version", "v1/models", "load"))
    )
    names, longest = _models(_json(models))
    said = _json(version)
    stated = said.get("version") if isinstance(said, dict) else None
    at_once = _json(load)
    number = at_once.get("server_load") if isinstance(at_once, dict) else None
    return Health(
        health=health.status if isinstance(health, Reply) else None,
        health_detail=str(health) if isinstance(health, OutboundError) else "",
        version=stated[:_VERSION_LENGTH] if isinstance(stated, str) and stated.isprintable() else None,
        models=names,
        max_model_len=longest,
        load=float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else None,
    )


async def health_of(outbound: Outbound, base: Url, headers: Mapping[str, str], limits: Limits) -> Health:
    """Only ``/health``, asked again at the end of a window."""
    reply = await _get(outbound, str(base.at("health")), headers, limits)
    if isinstance(reply, OutboundError):
        return Health(health_detail=str(reply))
    return Health(health=reply.status)


async def _get(outbound: Outbound, url: str, headers: Mapping[str, str], limits: Limits) -> Reply | OutboundError:
    try:
        return await outbound.get(url, headers=headers, limits=_small(limits))
    except OutboundError as error:
        return error


def _small(limits: Limits) -> Limits:
    return replace(limits, max_bytes=_SMALL, max_decompressed_bytes=_SMALL, cut=True)


def _json(reply: Reply | OutboundError) -> Any:
    if isinstance(reply, OutboundError) or reply.status != 200:
        return None
    try:
        return reply.json()
    except OutboundError:
        return None


def _models(said: Any) -> tuple[tuple[str, ...], int | None]:
    rows = said.get("data") if isinstance(said, dict) else None
    if not isinstance(rows, list):
        return (), None
    names: list[str] = []
    longest: int | None = None
    for row in rows[:_MODELS]:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            continue
        names.append("".join(c for c in row["id"][:200] if c.isprintable()))
        length = row.get("max_model_len")
        if isinstance(length, int) and not isinstance(length, bool) and 0 < length < 1 << 31:
            longest = max(longest or 0, length)
    return tuple(names), longest


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of asking for one token. ``seconds`` covers the whole request; nothing of the text is kept."""

    model: str | None = None
    status: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    detail: str = ""


async def probe(outbound: Outbound, base: Url, headers: Mapping[str, str], limits: Limits, model: str | None) -> Probed:
    """Asks for a single token of ``model``, or of the first model that the server names."""
    if model is None:
        short = replace(limits, deadline_s=min(5.0, limits.deadline_s))
        listed = await _get(outbound, str(base.at("v1/models")), headers, short)
        names, _ = _models(_json(listed))
        if not names:
            return Probed(detail="The server did not name a model; give one.")
        model = names[0]
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
    try:
        reply = await outbound.post(str(base.at("v1/completions")), body, headers=headers, limits=limits)
    except OutboundError as error:
        return Probed(model=model, detail=str(error))
    said = _json(reply)
    usage = said.get("usage") if isinstance(said, dict) else None
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Probed(
        model,
        reply.status,
        reply.seconds,
        tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
        "" if reply.status == 200 else f"The server answered with the status {reply.status}.",
    )
