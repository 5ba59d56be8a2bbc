"""Search over causes and documents, in both languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knowledge.catalog import load
from knowledge.documents import cut, own_sections, site_sections
from knowledge.retrieve import Retriever

QUERIES = [
    json.loads(line)
    for line in (Path(__file__).resolve().parents[1] / "data" / "queries.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
RETRIEVER = Retriever(load())


def found(query: str, language: str, wants: list[str], limit: int) -> bool:
    """Whether a wanted cause is among the first causes, or a wanted section among the first sections."""
    for kind in ("cause", "section"):
        hits = [hit.id for hit in RETRIEVER.search(query, limit, language, kind=kind)]
        if set(hits) & set(wants):
            return True
    return False


def test_recall_over_our_own_queries() -> None:
    first = sum(found(q["query"], q["language"], q["wants"], 1) for q in QUERIES) / len(QUERIES)
    five = sum(found(q["query"], q["language"], q["wants"], 5) for q in QUERIES) / len(QUERIES)
    assert first >= 0.88, f"recall at 1 is {first:.3f}"
    assert five >= 0.96, f"recall at 5 is {five:.3f}"


@pytest.mark.parametrize("cause", ["memory/runtime-oom", "install/port-in-use", "gpu/fallen-off-bus"])
def test_an_id_or_its_slug_comes_first(cause: str) -> None:
    assert RETRIEVER.search(cause, 1)[0].id == cause
    assert RETRIEVER.search(cause.split("/")[1], 1)[0].id == cause


def test_an_error_text_finds_its_cause() -> None:
    hits = RETRIEVER.search("ValueError: No available memory for the cache blocks. Try increasing", 1, kind="cause")
    assert hits[0].id == "memory/no-room-for-kv-cache"


def test_both_languages_have_the_same_sections() -> None:
    sections = list(own_sections())
    assert {s.id for s in sections if s.language == "en"} == {s.id for s in sections if s.language == "zh"}


def test_a_site_s_own_runbooks_join_in(tmp_path: Path) -> None:
    (tmp_path / "paging.md").write_text(
        "# On call\n\n## Zeppelin cluster drain\n\nCall the depot first.\n", encoding="utf-8"
    )
    retriever = Retriever(load(), sections=(), site=site_sections(tmp_path))
    hit = retriever.search("zeppelin drain", 1)[0]
    assert (hit.kind, hit.id) == ("site", "paging.md#zeppelin-cluster-drain")
    with pytest.raises(NotADirectoryError):
        list(site_sections(tmp_path / "nothing"))


def test_a_heading_inside_a_code_block_is_text() -> None:
    sections = list(cut("d", "en", "# T\n\nintro\n\n## A {#a}\n\n```\n# not a heading\n```\n"))
    assert [(s.anchor, s.title) for s in sections] == [("", "T"), ("a", "T: A")]


@pytest.mark.parametrize("query", ["", " ", "\x00", "😀" * 500, "a" * 100_000, "《》（）"])
def test_strange_queries_find_nothing_or_something_but_never_fail(query: str) -> None:
    RETRIEVER.search(query, 3, "zh")
