"""Search over causes and documents, in both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load
from knowledge.documents import cut, own_sections, site_sections
from knowledge.lexicon import asked_as
from knowledge.retrieve import KINDS, Retriever
from knowledge.search import ConceptReader, QuickRank, rank
from knowledge.text import language_of, normalise

DATA = Path(__file__).resolve().parents[1] / "data"


def queries(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


RETRIEVER = Retriever(load())


def found(query: str, language: str, wants: list[str], limit: int) -> bool:
    """Whether a wanted cause is among the first causes, or a wanted section among the first sections."""
    for kind in ("cause", "section"):
        hits = [hit.id for hit in RETRIEVER.search(query, limit, language, kind=kind)]
        if set(hits) & set(wants):
            return True
    return False


@pytest.mark.parametrize(
    ("name", "least_first", "least_five"),
    # The second set was written with the added half of the first and never looked at while the search was tuned; the
    # third was written later and measured once before anything was changed for it (0.883 and 1.000).
    [("queries.jsonl", 0.95, 0.99), ("queries_apart.jsonl", 0.88, 0.97), ("queries_later.jsonl", 0.93, 0.98)],
)
def test_recall_over_our_own_queries(name: str, least_first: float, least_five: float) -> None:
    rows = queries(name)
    first = sum(found(q["query"], q["language"], q["wants"], 1) for q in rows) / len(rows)
    five = sum(found(q["query"], q["language"], q["wants"], 5) for q in rows) / len(rows)
    assert first >= least_first, f"recall at 1 is {first:.3f}"
    assert five >= least_five, f"recall at 5 is {five:.3f}"


def test_every_section_says_in_both_languages_what_is_asked_there() -> None:
    anchored = {section.id for section in own_sections() if section.anchor}
    assert set(asked_as()) == anchored
    for name, phrases in asked_as().items():
        said = [language_of(phrase) for phrase in phrases.split(";")]
        assert {"en", "zh"} <= set(said), name


def test_what_the_queries_want_exists() -> None:
    known = {section.id for section in own_sections()} | set(load().causes)
    for path in DATA.glob("queries*.jsonl"):
        for query in queries(path.name):
            assert set(query["wants"]) <= known, query


@pytest.mark.parametrize(
    ("query", "language", "wanted"),
    [
        ("speculatve decodng draft memmory", "en", "speculation#memory"),  # typing errors
        ("節省顯示卡記憶體", "zh", "memory#conserving"),  # Taiwan's words in traditional characters
        ("otel 追踪", "zh", "logging#tracing"),  # a synonym, two languages
    ],
)
def test_other_spellings_find_the_same(query: str, language: str, wanted: str) -> None:
    assert wanted in [hit.id for hit in RETRIEVER.search(query, 2, language, kind="section")]


def test_a_section_in_both_languages_is_one_hit() -> None:
    ids = [hit.id for hit in RETRIEVER.search("sleep mode 睡眠", 20, "en", kind="section")]
    assert len(ids) == len(set(ids))


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


def test_what_a_query_says_first_decides_however_long_it_goes_on() -> None:
    query = (
        "the kv cache is full and requests are preempted, gpu_memory_utilization is 0.9, what else can be done? " * 3
    )
    for kind in KINDS:
        assert RETRIEVER.search(query, 5, "en", kind=kind) == RETRIEVER.search(
            query + "lora " * 50_000, 5, "en", kind=kind
        )


def test_the_quick_ranking_is_led_by_what_leads_the_thorough_one() -> None:
    catalog = load()
    reader, quick = ConceptReader(catalog.concepts), QuickRank(catalog.symptoms)
    rows = [normalise(row["query"]) for path in DATA.glob("queries*.jsonl") for row in queries(path.name)]
    same = total = 0
    for words in rows:
        concepts = reader.read(words)
        thorough = rank(words, catalog.symptoms, concepts)
        if thorough:
            total += 1
            same += thorough[0].cause in [like.cause for like in quick.rank(words, concepts)[:2]]
    assert total > 200
    assert same / total > 0.95
