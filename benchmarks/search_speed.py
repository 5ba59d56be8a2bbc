"""How long `kb search` thinks about a query, beside reading all sections for the query's words.

    python benchmarks/search_speed.py

Prints the median and the 95th percentile of a search in milliseconds over the queries of the tests, each asked for
causes and for sections, and their ratio to a plain substring search for the same words over the same sections.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from knowledge.catalog import load
from knowledge.documents import own_sections
from knowledge.retrieve import Retriever

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def counted(words: list[str], texts: list[str]) -> list[int]:
    """How many of the words stand in each text."""
    return [sum(word in text for word in words) for text in texts]


def main() -> None:
    rows = [
        json.loads(line)
        for name in ("queries.jsonl", "queries_apart.jsonl")
        for line in (DATA / name).read_text(encoding="utf-8").splitlines()
    ]
    texts = [section.text.lower() for section in own_sections()]
    began = time.perf_counter()
    retriever = Retriever(load())
    print(f"preparing {len(texts)} sections and all causes: {time.perf_counter() - began:.2f} s")
    retriever.search("warm up", 5)
    searches, plain = [], []
    for row in rows:
        query, language, words = row["query"], row["language"], row["query"].lower().split()
        for kind in ("cause", "section"):
            searches.append(timed(partial(retriever.search, query, 5, language, kind=kind)))
        plain.append(timed(partial(counted, words, texts)))
    searches.sort()
    median, tail = statistics.median(searches), searches[int(len(searches) * 0.95)]
    print(f"{len(searches)} searches: median {median:.2f} ms, 95th percentile {tail:.2f} ms")
    print(f"substring search over all sections: median {statistics.median(plain):.2f} ms")
    print(f"ratio {median / statistics.median(plain):.2f}")


if __name__ == "__main__":
    main()
