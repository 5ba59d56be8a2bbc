"""What the documentation names exists: pages, headings, files, commands with their options, make targets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from assistant.faces.cli.main import app
from knowledge.vllm_tables import versions

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "knowledge" / "documents").rglob("*.md"))
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^```[^\n]*\n.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: A path of this repository in code.
PLACE = re.compile(r"(?<![\w/.~-])((?:assistant|benchmarks|deploy|docs|knowledge|scripts|tests|tools)/[\w./*-]*\w/?)")
#: Made by a command of the same page, not kept.
MADE = {"knowledge/causes/serving/too-many-open-files.yaml"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def anchors(name: str) -> set[str]:
    """The headings of a page as GitHub makes anchors of them; a document of the knowledge base names its own, ``{#name}``."""
    found = set(re.findall(r"^#+ .*\{#([\w-]+)\}$", text_of(name), re.MULTILINE))
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(name)), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip()
        found.add(plain.replace(" ", "-"))
    return found


def code(name: str) -> list[str]:
    """Every line of a page that is code: those of its blocks, and what stands between backquotes."""
    text = text_of(name)
    lines: list[str] = []
    for block in FENCE.findall(text):
        lines += block.replace("\\\n", " ").splitlines()[1:-1]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in LINK.findall(FENCE.sub("", text_of(name))):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if anchor and target.suffix == ".md":
            page = str(target.resolve().relative_to(ROOT))
            assert anchor in anchors(page), f"{name} links to {link}; {page} has {sorted(anchors(page))}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), ["README.md"]
    while todo:
        name = todo.pop()
        reached.add(name)
        for link in LINK.findall(text_of(name)):
            target = ((ROOT / name).parent / link.partition("#")[0]).resolve()
            if target.is_dir() and target.is_relative_to(ROOT):
                inside = [str(page.relative_to(ROOT)) for page in target.rglob("*.md")]
            elif target.is_file() and target.suffix in (".md", ".png", ".svg") and target.is_relative_to(ROOT):
                inside = [str(target.relative_to(ROOT))]
            else:
                continue
            reached |= {one for one in inside if not one.endswith(".md")}
            todo += [one for one in inside if one.endswith(".md") and one not in reached]
    pictures = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "pictures").iterdir()}
    assert ({name for name in NAMES if name.startswith("docs/")} | pictures) - reached == set()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("knowledge/")])
def test_every_place_in_the_repository_exists(name: str) -> None:
    for line in code(name):
        for place in PLACE.findall(line):
            if place not in MADE:
                # The threat model names its tests from the folder of tests.
                assert any(found for base in (ROOT, ROOT / "tests") for found in base.glob(place.rstrip("/"))), (
                    f"{name} names {place}"
                )


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE))
    for name in NAMES:
        for line in code(name):
            for named in re.findall(r"^make ((?:[a-z]+ ?)+)", line):
                assert set(named.split()) <= targets, f"{name}: make {named}"


def words_of(line: str) -> list[str]:
    """The words of a command up to where the shell takes over; empty where it cannot be read as one."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "@:,%+!?$[]{}…#"
        lexer.commenters = ""
        words = list(lexer)
    except ValueError:
        return []
    for number, word in enumerate(words):
        if set(word) <= set("();<>|&") or word == "#":
            return words[:number]
    return words


def commands() -> list[tuple[str, str]]:
    """Every use of our command in the pages, with the page."""
    found = []
    for name in NAMES:
        for line in code(name):
            for part in re.split(r"(?:^|[\s(`\"'=]|bin/)vllm-diagnose (?=[a-z-]+(?:\s|$))", line)[1:]:
                found.append((name, part))
    return found


def test_every_command_and_option_exists() -> None:
    root: Any = typer.main.get_command(app)
    seen = 0
    for name, line in commands():
        words = words_of(line)
        here = root
        while words and getattr(here, "commands", None) is not None and not words[0].startswith("-"):
            alternatives = words[0]
            assert alternatives in here.commands, f"{name}: vllm-diagnose {line}"
            here = here.commands[words.pop(0)]
        options = {spelling for one in here.params for spelling in (*one.opts, *one.secondary_opts)} | {"--help"}
        for word in words:
            if re.match(r"--[a-z]", word) and "--" not in words[: words.index(word)]:
                assert word.partition("=")[0] in options or here.ignore_unknown_options, f"{name}: vllm-diagnose {line}"
        seen += 1
    assert seen > 100


def test_every_measured_figure_has_its_command() -> None:
    """No section is without one, and where a table has a column for it, every row says it."""
    sections = re.split(r"^## ", text_of("docs/measured.md"), flags=re.MULTILINE)[1:]
    for section in sections:
        assert re.search(r"pytest|scripts/|benchmarks/|vllm-diagnose |make ", section), section.splitlines()[0]
        for table in re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE):
            header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
            if header[-1] in ("command", "how", "measured by"):
                for row in rows:
                    assert len(row) == len(header) and ("`" in row[-1] or row[-1].startswith("the same")), row


def test_what_is_counted_in_the_text_is_what_there_is() -> None:
    causes = len(list((ROOT / "knowledge" / "causes").rglob("*.yaml")))
    assert f"decides by {causes} causes" in text_of("docs/comparison.md")
    assert f"\n{len(versions())} releases are examined" in text_of("docs/versions.md")
    assert f"the shapes of {len(list((ROOT / 'knowledge' / 'models').glob('*.yaml')))} much served models" in text_of(
        "docs/memory.md"
    )
