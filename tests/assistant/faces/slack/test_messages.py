"""Every answer and every step of the tree as Slack would get it, in both languages, held to Slack's own limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from assistant.advice.fixes import advise, collect_first
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.examples import example_material
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Diagnosis, Finding, NextStep, Quote
from assistant.diagnosis.truth import Facts
from assistant.faces.slack import elements, forms
from assistant.faces.slack.answer import Shown, answer_message, places, questions, read_value
from assistant.faces.slack.drawing import COLUMNS, draw, fitted, pages
from assistant.faces.slack.listeners import is_form
from assistant.faces.slack.text import readable
from assistant.render.blocks import Command, Heading, Item, Quotation, Text, diagnosis_blocks
from assistant.render.commands import broken
from knowledge.catalog import load
from knowledge.sources import ROOT, cause_files, cause_id, read_yaml
from tests.assistant.faces.slack.driver import buttons, find, words
from tests.assistant.faces.slack.rules import MOST_TOTAL, live_runs, problems, view_problems
from tools.logs import LogInput

LANGUAGES = ("en", "zh")
TALK = "0123456789abcdef0123"
HOSTILE = (
    "<!channel> <!here> <@U123> <#C1|x> <http://evil.example|click> @everyone *b* _i_ `c` ~s~ :fire: & &lt;!channel&gt;"
)


@cache
def engine() -> Engine:
    return Engine(load())


def diagnosed(text: str = "", log: str = "", lang: Any = "en", answers: dict[str, str] | None = None) -> Diagnosis:
    logs = [LogInput(name="server.log", data=log.encode())] if log else []
    case, _ = read_case(engine().catalog, text=text, logs=logs, language=lang, answers=answers or {})
    return engine().diagnose(case)


def check(diagnosis: Diagnosis, shown: Shown) -> list[Any]:
    blocks, text = answer_message(diagnosis, engine().catalog, shown)
    assert problems(blocks) == [], (diagnosis.summary, problems(blocks))
    assert live_runs(blocks) == []
    assert len(text) > 0 and "<" not in elements.fallback(text)
    return blocks


@cache
def examples() -> list[tuple[str, str]]:
    """The first example of every cause, and the cause."""
    found = []
    for path in cause_files(ROOT):
        document = read_yaml(path)
        found.append((cause_id(path, ROOT), example_material(document.data["examples"]["match"][0])))
    return found


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_cause_is_drawn_within_the_limits(lang: str) -> None:
    known, seen = engine().catalog, set()
    for cause, material in examples():
        first = diagnosed(material, lang=lang)
        shown = Shown(TALK, 7, 0, "U0ADA: " + "asks " * 50, ("a note",), 3)
        for place in range(places(first)):
            names = set(buttons(check(first, replace(shown, place=place))))
            assert {"path", "report", "details", "language", "back", "over"} <= names
        if first.verdict == "cause":
            seen.add(first.causes[0].id)
            blocks = check(first, shown)
            assert {"worked", "failed"} <= set(buttons(blocks))
            command = first.causes[0].fixes[0].command if first.causes[0].fixes else None
            if command and len(command) <= 2000:
                assert broken(command, COLUMNS) in words(blocks), cause  # to be copied as it is
        whole = pages(draw(diagnosis_blocks(first, known, show_path=True)))
        assert [problem for page in whole for problem in problems(page)] == []
        assert live_runs(whole) == []
    causes = {cause for cause in known.causes if not cause.startswith("normal/")}  # what is normal is healthy
    assert len(causes) >= 95 and len(seen) >= len(causes) - 10
    # Every cause as if it had been found, also those whose example is more than words and a log.
    for identifier in causes:
        cause, language = known.causes[identifier], first.language
        finding = Finding(
            identifier,
            cause.title[language],
            cause.explanation[language],
            0.9,
            cause.severity,
            "primary",
            (Quote("server.log", 1, "EngineCore pid=1", None, HOSTILE * 9),) * 4,
            (HOSTILE,),
            advise(cause, Facts(), known, None, language),
            cause.check[language],
            (),
        )
        save = tuple(collect_first(cause, known, language))
        found = replace(first, verdict="cause", causes=(finding,), collect_first=save, notes=(), next_steps=())
        names = set(buttons(check(found, Shown(TALK, 1))))
        assert {"worked", "failed", "report"} <= names


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_path_of_the_tree_stays_within_the_limits(lang: Any) -> None:
    known = engine().catalog
    start, _ = read_case(known, text="it does not work" if lang == "en" else "服务有问题", language=lang)
    nodes: set[str] = set()
    been: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    paths = 0

    def walk(node: str, answers: dict[str, str]) -> None:
        nonlocal paths
        if (node, tuple(answers.items())) in been:
            return
        been.add((node, tuple(answers.items())))
        found = engine().diagnose(replace(start, answers=answers))
        check(found, Shown(TALK, len(answers) + 1, 0, "", (), len(answers)))
        if node == "decide":
            paths += 1
            return
        nodes.add(node)
        declared = known.observable(known.tree.nodes[node].observe)
        assert declared is not None
        name, ways = known.tree.nodes[node].observe, known.tree.nodes[node].next
        if declared.ask is None or not declared.choices:  # decided by evidence: every way it can go
            for further in dict.fromkeys((*ways.values(), "decide")):
                walk(further, answers)
            return
        for value in (*declared.choices, "unknown"):
            any_way = ways.get("any") if value != "unknown" else None
            further = ways.get(value) or any_way or ways.get("unknown", "decide")
            walk(further, answers if name in answers or value == "unknown" else {**answers, name: value})

    walk(known.tree.start, {})
    assert paths > 50
    assert nodes == set(known.tree.nodes)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_question_has_its_buttons_menu_or_form(lang: Any) -> None:
    known = engine().catalog
    base = diagnosed("it does not work", lang=lang)
    assert base.verdict == "unknown"
    asked = 0
    for name, declared in known.observables.items():
        if declared.ask is None:
            continue
        asked += 1
        choices = [(value, label[lang]) for value, label in declared.choices.items()]
        step = NextStep(name, "ask", declared.ask[lang], choices=(*choices, ("unknown", "?")))
        blocks = check(replace(base, next_steps=(step,)), Shown(TALK, 999_999))
        names = list(buttons(blocks))
        if not choices:
            assert "open" in names
            view = forms.value_form(_Service(), lang, name, {"line": {}, "talk": TALK})
            assert view_problems(view) == []
        elif "choose" in names:
            _, menu = find(blocks, "choose")
            assert [option["value"] for option in menu["options"]] == [f"{name}={v}" for v, _ in step.choices or ()]
        else:
            values = [read_value(find(blocks, f"answer:{n}")[1]["value"]) for n in range(len(choices) + 1)]
            assert values == [(TALK, 999_999, f"{name}={v}") for v, _ in step.choices or ()]
    assert asked > 5


class _Service:
    def __init__(self) -> None:
        self.catalog = load()
        self.targets = {f"target-{n}": None for n in range(150)}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_forms_stay_within_the_limits(lang: str) -> None:
    service: Any = _Service()
    metadata = {"line": {"url": "https://hooks.slack.com/" + "x" * 900}, "talk": TALK, "revision": 1, "question": "q"}
    for view in (forms.ask_form(service, lang, metadata), forms.more_form(service, lang, metadata)):
        assert view_problems(view) == []


def hostile_blocks() -> Iterator[Any]:
    yield Heading(HOSTILE * 40, "bad", 1)
    yield Text(HOSTILE * 2000)
    yield Text("", "quiet")
    yield Text("x" * 100_000, "quiet")
    yield Quotation(HOSTILE, HOSTILE * 1000)
    yield Command("vllm serve " + HOSTILE * 1000)
    for number in range(120):
        yield Item(HOSTILE, ("tag",), (Text(HOSTILE), Command("\n".join(["x"] * 50)), Text("", "quiet")), number)


def test_text_from_outside_stays_text() -> None:
    made = pages(draw(hostile_blocks()))
    assert len(made) > 1
    assert [problem for page in made for problem in problems(page)] == []
    assert live_runs(made) == []
    assert "<!channel>" in words(made)  # shown as it was written, and not as a mention
    assert "<" not in elements.fallback(HOSTILE) and len(elements.fallback(HOSTILE * 1000)) < 16_000


def test_an_answer_with_hostile_evidence_still_fits() -> None:
    log = f"(EngineCore pid=1) ERROR 11-21 00:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. {HOSTILE * 300}\n"
    for lang in LANGUAGES:
        found = diagnosed(HOSTILE * 50, log, lang)
        blocks = check(found, Shown(TALK, 1, 0, HOSTILE * 9, (HOSTILE * 50,) * 9, 1, HOSTILE))
        assert len(json.dumps(blocks, ensure_ascii=False)) <= MOST_TOTAL


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    start, end = [elements.header("a")], [elements.divider()]
    middle = [elements.quiet("x" * 1900) for _ in range(40)]
    made = fitted(start, middle, end)
    assert made[0] == start[0] and made[-1] == end[0] and 3 < len(made) < 10
    assert problems(made) == []
    with pytest.raises(ValueError, match="do not fit"):
        fitted(middle, [], end)


@pytest.mark.parametrize("value", ["", "a:b:c", f"{TALK}:-1:", f"{TALK}:1", f"{TALK[:-1]}!:1:x", "x" * 4000])
def test_a_button_of_somebody_else_is_not_ours(value: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_value(value)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("<@U0BOT> it hangs &lt;here&gt; &amp; there", "it hangs <here> & there"),
        (
            "<@U0BOT>  see <https://x.example/a?b=c|docs> and <http://server.log|server.log>",
            "see https://x.example/a?b=c and server.log",
        ),
        ("<!subteam^S1|@ops> look", "@ops look"),
        ("&amp;lt;kept&amp;gt;", "&lt;kept&gt;"),
    ],
)
def test_slacks_markup_is_read_as_the_person_wrote_it(sent: str, meant: str) -> None:
    assert readable(sent) == meant


def test_the_question_is_the_first_of_the_diagnosis() -> None:
    found = diagnosed("it does not work")
    assert questions(found)
    assert questions(found)[0].text in words(check(found, Shown(TALK, 1)))


@pytest.mark.parametrize(
    ("name", "rest", "form"),
    [
        ("nccl", "", True),
        ("nccl", "--ranks 2", True),
        ("nccl", "hangs on all ranks", False),
        ("memory", "Qwen/Qwen3-8B --gpu L4", True),
        ("memory", "Qwen/Qwen3-8B", True),
        ("memory", "grows until the server is killed", False),
        ("status", "", True),
        ("status", "500 for every request", False),
        ("help", "it does not start", False),
        ("runbook", "memory/no-room-for-kv-cache", True),
    ],
)
def test_a_question_that_begins_like_a_form_is_a_question(name: str, rest: str, form: bool) -> None:
    assert is_form(name, rest) is form
