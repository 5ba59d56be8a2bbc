"""What the tests of the advice share: the engine, and a way from text to the fixes of one cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assistant.advice.fixes import advise, read_started
from assistant.advice.started import Started
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Advice
from assistant.diagnosis.truth import Facts
from knowledge.catalog import load
from tools.logs import LogInput


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(load())


@pytest.fixture(scope="session")
def facts_of(engine: Engine) -> Callable[..., Facts]:
    """The facts of a question or a log."""

    def read(text: str, *, log: bool = False) -> Facts:
        given = {"logs": [LogInput(name="server.log", data=text.encode())]} if log else {"text": text}
        case, _ = read_case(engine.catalog, **given)  # type: ignore[arg-type]
        return engine.consider(case)[0]

    return read


@pytest.fixture(scope="session")
def started_of(facts_of: Callable[..., Facts]) -> Callable[..., Started]:
    def read(text: str, version: str | None = "0.32.0", *, log: bool = False) -> Started:
        return read_started(facts_of(text, log=log), version)

    return read


@pytest.fixture(scope="session")
def fixes_of(engine: Engine, facts_of: Callable[..., Facts]) -> Callable[..., tuple[Advice, ...]]:
    """The fixes of one cause for what a text states."""

    def read(
        cause: str, text: str, version: str | None = "0.32.0", *, log: bool = False, language: str = "en"
    ) -> tuple[Advice, ...]:
        return advise(engine.catalog.causes[cause], facts_of(text, log=log), engine.catalog, version, language)  # type: ignore[arg-type]

    return read
