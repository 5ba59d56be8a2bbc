"""What the program raises in English is told in Chinese where a Chinese reader is spoken to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from knowledge.catalog import load
from tools import registry

ROOT = Path(__file__).parents[2]
#: Modules whose errors somebody in a chat or on a page can meet, and the errors that are sentences there.
MODULES = (
    "assistant/acting.py",
    "assistant/readers.py",
    "assistant/security/consent.py",
    "assistant/security/roles.py",
    "assistant/service.py",
    "assistant/store/incidents.py",
    "tools/capture/bundle.py",
    "tools/capture/capture.py",
    "tools/gpu/holders.py",
    "tools/host/loading.py",
    "tools/launchers/links.py",
    "tools/profile.py",
    "tools/registry.py",
    "tools/sanity/choose.py",
    "tools/sanity/dummy_load.py",
    "tools/sanity/nccl.py",
)
ERRORS = {
    "ActionError",
    "ConsentError",
    "DeadlineError",
    "ForbiddenError",
    "NotFoundError",
    "QuestionError",
    "ReadersError",
    "UnknownActionError",
}


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """The sentences of the errors that a module raises, with something in their places."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)):
            continue
        if node.exc.func.id not in ERRORS or not node.exc.args:
            continue
        said = node.exc.args[0]
        if isinstance(said, ast.Constant) and isinstance(said.value, str):
            yield node.lineno, said.value
        elif isinstance(said, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "'x y'" for part in said.values),
            )


@pytest.mark.parametrize("module", MODULES)
def test_every_error_that_a_person_can_meet_is_told_in_chinese(module: str) -> None:
    known, found = load(), list(sentences(ROOT / module))
    assert found, f"{module} raises nothing any more; take it out of the list"
    for line, text in found:
        told = known.told(text.replace("'x y''x y'", "'x y'"), "zh")
        assert told != text and any("\u4e00" <= letter <= "\u9fff" for letter in told), f"{module}:{line}: {text}"


def test_what_stands_in_a_place_is_told_too_and_values_stay_as_they_are() -> None:
    known = load()
    english = "ada is viewer and may not use run_nccl_test, which loads; that needs operator."
    assert known.told(english, "zh") == (
        "ada 的角色是查看者，不能使用 run_nccl_test（会给机器带来负载）；这需要操作员角色。"
    )
    assert known.told(english, "en") == english
    hostile = "There is no job '{lang} <!channel> {0}'."
    assert known.told(hostile, "zh") == "没有任务 '{lang} <!channel> {0}'。"


def test_what_is_nobodys_sentence_stays() -> None:
    for text in ("", "Something else went wrong.", "x" * 5000, "There is no job"):
        assert load().told(text, "zh") == text


def test_every_tool_has_a_title_in_both_languages() -> None:
    registry.discover()
    for action in registry.actions():
        if action.function.__module__.startswith("tools."):
            assert load().tool(action.name, "", "en") == action.title
            assert load().tool(action.name, action.title, "zh") != action.title
