"""Every row that a check can add has its title, and every row that says something is wrong has its sentence."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

from assistant.diagnosis.tool_steps import TOOLS
from knowledge.catalog import load
from tools import registry

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted([*(ROOT / "tools").glob("*.py"), *(p for name in ("capture", "gpu", "host", "network", "sanity") for p in (ROOT / "tools" / name).glob("*.py"))])  # fmt: skip


def rows() -> Iterator[tuple[str, set[str], set[str], str]]:
    """(id, statuses, names of the values given, place) of every ``sheet.add`` with a literal id."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add"):
                continue
            if len(node.args) < 2 or not isinstance(node.args[0], ast.Constant):
                continue
            statuses = {n.value for n in ast.walk(node.args[1]) if isinstance(n, ast.Constant) and n.value in ("ok", "note", "bad", "unknown")}  # fmt: skip
            if not statuses and isinstance(node.args[1], ast.Name):
                statuses = {"note"}
            yield str(node.args[0].value), statuses, {k.arg or "" for k in node.keywords}, f"{path.name}:{node.lineno}"


def test_rows_have_titles_and_what_is_wrong_is_explained() -> None:
    words = load().sentences
    found = list(rows())
    assert len(found) > 50
    for identity, statuses, given, place in found:
        assert f"check-{identity}" in words, f"{place}: {identity} has no title"
        for status in statuses:
            sentence = words.get(f"check-{identity}-{status}")
            if status == "bad":
                assert sentence is not None, f"{place}: {identity} is {status} without a word"
            if sentence is None:
                continue
            for lang in ("en", "zh"):
                places = {name for _, name, _, _ in string.Formatter().parse(sentence[lang]) if name}
                assert places <= given | {"value"}, f"{place}: {identity} has no {places - given}"


def test_both_languages_have_the_same_places() -> None:
    for key, sentence in load().sentences.items():
        if key.startswith(("check-", "nccl-", "compile-", "capture-", "profile-", "sanity-")):
            english, chinese = (
                {n for _, n, _, _ in string.Formatter().parse(sentence[lang]) if n} for lang in ("en", "zh")
            )
            assert english == chinese, key


def stated() -> Iterator[tuple[str, str]]:
    """(observable, place) of every literal fact."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not calls or node.func.attr not in ("fact", "unknown") or not node.args:  # type: ignore[attr-defined]
                continue
            first = node.args[0]  # type: ignore[attr-defined]
            if isinstance(first, ast.Constant) and "." in str(first.value):
                yield str(first.value), f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]


def test_facts_are_declared_and_supplied_by_the_tools() -> None:
    catalog = load()
    found = list(stated())
    assert len(found) > 30
    for name, place in found:
        declared = catalog.observable(name)
        assert declared is not None, f"{place}: {name}"
        assert set(declared.suppliers) & set(TOOLS), f"{place}: {name}"


def test_the_tools_that_are_proposed_exist_with_the_effect_that_is_said() -> None:
    registry.discover()
    for name, (_, effect) in TOOLS.items():
        assert registry.get(name).effect == effect
        assert f"step-{name}" in load().sentences


def test_every_action_is_documented() -> None:
    page = (ROOT / "docs" / "sanity.md").read_text("utf-8")
    for name in (*TOOLS, "profile_server"):
        assert f"`{name}`" in page
