"""docs/advice.md shows what the program answers, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.render.commands import broken
from tools.logs import LogInput

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
_EXAMPLE = re.compile(
    r"### (?P<title>[^\n]+)\n\n(?:The capture `(?P<capture>[^`]+)`\.|```text\n(?P<text>.*?)\n```)\n\n"
    r"`(?P<cause>[\w/-]+)`, \"(?P<fix>[^\n]+)\":\n\n```\w+\n(?P<command>.*?)\n```\n\n(?P<said>.*?)\n(?=\n###|\n*\Z)",
    re.DOTALL,
)
EXAMPLES = {found.group("title"): found for found in _EXAMPLE.finditer(PAGE)}


def test_every_example_is_read() -> None:
    assert len(EXAMPLES) >= 10
    assert len(EXAMPLES) == PAGE.count("\n### ")


@pytest.mark.parametrize("title", sorted(EXAMPLES))
def test_the_program_answers_what_the_page_shows(engine: Engine, title: str) -> None:
    example = EXAMPLES[title]
    if example["capture"]:
        log = LogInput(name="server.log", data=(ROOT / example["capture"]).read_bytes())
        case, _ = read_case(engine.catalog, logs=[log])
    else:
        case, _ = read_case(engine.catalog, text=example["text"])
    diagnosis = engine.diagnose(case)
    assert diagnosis.verdict == "cause"
    assert diagnosis.causes[0].id == example["cause"]
    fix = next(fix for fix in diagnosis.causes[0].fixes if fix.title == example["fix"])
    assert fix.command is not None
    assert broken(fix.command, 96) == example["command"]
    for note in (
        *fix.notes,
        *([fix.effect] if fix.effect else []),
        *([f"Change: {fix.change}."] if fix.change else []),
    ):
        assert note in example["said"]
