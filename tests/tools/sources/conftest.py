"""What the tests of the sources share: reading all lines of a survey, and the recorded answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.outbound import Allowance, Outbound, Policy
from tools.sources.base import Bounds, Line, Source, Survey

DATA = Path(__file__).parents[2] / "data" / "sources"


@pytest.fixture
def recorded() -> Callable[[str], Any]:
    """A recorded answer, fresh for every test."""
    return lambda name: json.loads((DATA / f"{name}.json").read_text("utf-8"))


async def _everything(source: Source, policy: Policy, bounds: Bounds) -> tuple[Survey, dict[str, list[Line]]]:
    async with Outbound(policy) as outbound:
        survey = await source.survey(outbound, bounds)
        lines: dict[str, list[Line]] = {}
        for stream in survey.streams:
            lines[stream.name] = [line async for batch in stream.lines(outbound, bounds) for line in batch]
        return survey, lines


def look(
    source: Source, *, url: str = "", socket: str = "", bounds: Bounds | None = None
) -> tuple[Survey, dict[str, list[Line]]]:
    """Survey ``source`` and read every stream to its end."""
    policy = Policy((Allowance.of(url),) if url else (), sockets=(socket,) if socket else ())
    return asyncio.run(_everything(source, policy, bounds or Bounds(deadline_s=10)))


def facts(survey: Survey) -> dict[str, Any]:
    """The evidence of a survey by name."""
    return {item.name: item.value for item in survey.reading.evidence}
