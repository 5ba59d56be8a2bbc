"""Actions: declared once, validated at the border, ended in time, never run without consent when they touch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tools import registry
from tools.registry import (
    Consent,
    ConsentError,
    Context,
    DeadlineError,
    InputError,
    UnknownActionError,
    action,
    digest_of,
)


class Asked(BaseModel):
    seconds: float = Field(default=0, ge=0, description="how long to sleep")
    name: str = "x"


class Answered(BaseModel):
    text: str


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_ACTIONS", {})
    yield


def declare(effect: Any = "reads", deadline_s: float = 5.0) -> registry.Action:
    @action("look_around", "Look around", effect, deadline_s)
    async def look_around(asked: Asked, context: Context) -> Answered:
        """Look, and say what was seen."""
        context.report(0.5, "half")
        await asyncio.sleep(asked.seconds)
        return Answered(text=asked.name)

    return registry.get("look_around")


def test_one_declaration_gives_schema_description_and_call() -> None:
    found = declare()
    said: list[tuple[float | None, str]] = []
    result = asyncio.run(found.call({"name": "gpu"}, Context(report=lambda share, text: said.append((share, text)))))
    assert result == Answered(text="gpu") and said == [(0.5, "half")]
    assert found.input_schema()["properties"]["seconds"]["description"] == "how long to sleep"
    assert found.output_schema()["required"] == ["text"]
    assert found.description == "Look, and say what was seen."
    assert registry.actions() == (found,)


def test_a_function_without_context_works_too() -> None:
    @action("plain", "Plain", "reads", 1)
    async def plain(asked: Asked) -> Answered:
        return Answered(text="plain")

    assert asyncio.run(registry.get("plain").call({})) == Answered(text="plain")


def test_wrong_arguments_are_sentences() -> None:
    found = declare()
    for arguments, words in (
        ({"seconds": -1}, "seconds: input should be greater than or equal to 0"),
        ({"secnods": 1}, "'secnods' is not an argument"),
        ({"seconds": "soon"}, "seconds: input should be a valid number"),
    ):
        with pytest.raises(InputError, match=words):
            asyncio.run(found.call(arguments))


def test_an_unknown_action_names_the_nearest() -> None:
    declare()
    with pytest.raises(UnknownActionError, match="look_around is meant"):
        registry.get("look_arond")


def test_the_deadline_stops_the_call_and_a_caller_can_only_shorten_it() -> None:
    found = declare(deadline_s=0.05)
    with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
        asyncio.run(found.call({"seconds": 5}, deadline_s=60))
    with pytest.raises(DeadlineError, match=r"within 0\.01 s"):
        asyncio.run(found.call({"seconds": 5}, deadline_s=0.01))


def test_a_timeout_of_the_function_itself_is_not_called_the_deadline() -> None:
    @action("own", "Own", "reads", 5)
    async def own(asked: Asked) -> Answered:
        raise TimeoutError("the disk")

    with pytest.raises(TimeoutError, match="the disk"):
        asyncio.run(registry.get("own").call({}))


def test_cancelling_reaches_the_function() -> None:
    stopped: list[bool] = []

    @action("long", "Long", "reads", 60)
    async def long(asked: Asked) -> Answered:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)
        return Answered(text="")

    async def work() -> None:
        task = asyncio.create_task(registry.get("long").call({}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert stopped == [True]


@pytest.mark.parametrize("effect", ["loads", "runs"])
def test_touching_needs_consent_to_this_very_call(effect: str) -> None:
    found = declare(effect)
    whole = {"seconds": 0.0, "name": "gpu"}
    good = Consent("look_around", digest_of(whole), "ada", time.time() + 60)
    assert asyncio.run(found.call(whole, Context(consent=good))) == Answered(text="gpu")
    for consent in (
        None,
        Consent("other", digest_of(whole), "ada", time.time() + 60),
        Consent("look_around", digest_of({**whole, "name": "all"}), "ada", time.time() + 60),
        Consent("look_around", digest_of(whole), "ada", time.time() - 1),
    ):
        with pytest.raises(ConsentError, match="agree"):
            asyncio.run(found.call(whole, Context(consent=consent)))


def test_bad_declarations_are_found_at_import() -> None:
    async def good(asked: Asked) -> Answered:
        return Answered(text="")

    def not_async(asked: Asked) -> Answered:
        return Answered(text="")

    with pytest.raises(ValueError, match="snake case"):
        action("Look-Around", "x", "reads", 1)(good)
    with pytest.raises(ValueError, match="expected reads"):
        action("look", "x", "writes", 1)(good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="above 0"):
        action("look", "x", "reads", 0)(good)
    with pytest.raises(TypeError, match="async"):
        action("look", "x", "reads", 1)(not_async)  # type: ignore[type-var]
    declare()
    with pytest.raises(ValueError, match="is declared in"):
        action("look_around", "x", "reads", 1)(good)


def test_a_function_of_another_shape_is_refused() -> None:
    @action("shapeless", "x", "reads", 1)
    async def shapeless(text: str) -> Answered:
        return Answered(text=text)

    with pytest.raises(TypeError, match="one Pydantic model"):
        registry.get("shapeless").input_schema()


def test_the_registry_itself_needs_no_pydantic() -> None:
    code = "import sys, tools.registry; print([m for m in ('pydantic', 'httpcore', 'httpx') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_declared_action_can_be_discovered_and_has_a_schema() -> None:
    """In a fresh interpreter, because this module works on a registry of its own."""
    code = (
        "from tools import registry\n"
        "failures = registry.discover()\n"
        "assert not failures, failures\n"
        "for found in registry.actions():\n"
        "    assert found.input_schema()['type'] == found.output_schema()['type'] == 'object', found.name\n"
        "    assert found.description, found.name\n"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


def test_a_module_that_cannot_be_imported_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tools"
    package.mkdir()
    (package / "broken.py").write_text("import no_such_module\n@action('a1', 'b', 'reads', 1)\n")
    (package / "helper.py").write_text("raise RuntimeError('nobody asked for me')\n")
    monkeypatch.setattr(registry, "_PACKAGE", package)
    (sentence,) = registry.discover()
    assert sentence.startswith("The actions of tools.broken are not available")
