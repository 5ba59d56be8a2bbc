"""Scores the diagnosis on labelled incidents, plain and under harder circumstances.

    python scripts/measure.py INCIDENTS.jsonl [MORE.jsonl ...] [--harder] [--confusion] [--areas]

Each line: {"id", "text", "primary", "also"?, "kind"?}. ``--harder`` also scores incidents with log lines buried in 20,000
lines of healthy traffic of the same generation (other processes' lines between their own), and with paths, process
ids, hosts, stamps, line numbers and model names permuted. ``--confusion`` lists which causes are taken for which, ``--areas`` draws
the confusion matrix of the areas of causes, "healthy" and "unknown" over all files, what is right on the diagonal.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from burying import bury

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Diagnosis
from knowledge.catalog import load
from tools.logs import LogInput, ReadOptions
from tools.logs.prose import is_log_line

SPECIAL = {"fine": "healthy", "other": "unknown"}


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def judge(row: dict[str, Any], diagnosis: Diagnosis) -> tuple[bool, bool, bool]:
    """(right, right among the first three, confidently wrong)."""
    accepted = {row["primary"], *row.get("also", ())}
    named = [finding.id for finding in diagnosis.causes]
    if row["primary"] in SPECIAL:
        right = diagnosis.verdict == SPECIAL[row["primary"]]
        return right, right, not right and diagnosis.verdict != "unknown"
    right = diagnosis.verdict == "cause" and named[:1] != [] and named[0] in accepted
    return right, bool(accepted & set(named[:3])), not right and diagnosis.verdict != "unknown"


def permuted(text: str, rng: random.Random) -> str:
    """The same incident on another machine."""
    text = re.sub(r"pid=\d+", lambda m: f"pid={rng.randrange(100, 999999)}", text)
    text = re.sub(r"(\.py):\d+\]", lambda m: f"{m.group(1)}:{rng.randrange(10, 3000)}]", text)
    text = re.sub(r'(\.py", line )\d+', lambda m: f"{m.group(1)}{rng.randrange(10, 3000)}", text)
    text = re.sub(
        r"\b\d\d-\d\d (\d\d:\d\d:\d\d)",
        lambda m: f"{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02} {m.group(1)}",
        text,
    )
    text = re.sub(
        r"\b(?:10|192\.168|172\.\d\d)\.\d+\.\d+(?:\.\d+)?\b",
        lambda m: f"10.{rng.randrange(9)}.{rng.randrange(99)}.{rng.randrange(2, 250)}",
        text,
    )
    text = re.sub(
        r"/[\w.-]+/(?:lib/)?python3\.\d+/(?:site|dist)-packages/", "/srv/env/lib/python3.12/site-packages/", text
    )
    names = ("acme/atlas-7b-chat", "acme/borealis-32b", "acme/cobalt-70b-instruct")
    return re.sub(
        r"\b(?:Qwen|meta-llama|mistralai|deepseek-ai|google|microsoft|openai)/[\w.-]+",
        lambda m: rng.choice(names),
        text,
    )


def _is_log(text: str) -> bool:
    """Whether programs printed nearly all of a text."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(map(is_log_line, lines)) >= 0.8 * len(lines)


def score(name: str, rows: list[dict[str, Any]], answers: list[Diagnosis], seconds: float) -> None:
    judged = [judge(row, answer) for row, answer in zip(rows, answers, strict=True)]
    n = max(1, len(rows))
    causes = [j for j, row in zip(judged, rows, strict=True) if row["primary"] not in SPECIAL]
    high = [
        j[0] for j, a in zip(judged, answers, strict=True) if a.verdict == "cause" and a.causes[0].confidence >= 0.9
    ]
    print(
        f"{name:34} n={len(rows):<4} right={sum(j[0] for j in judged) / n:.3f} "
        f"top3={sum(j[1] for j in causes) / max(1, len(causes)):.3f} wrong={sum(j[2] for j in judged) / n:.3f} "
        f">=0.9: {len(high) / n:.2f} of answers, right {sum(high) / max(1, len(high)):.3f}  ({seconds:.1f} s)"
    )


def area(label: str) -> str:
    return SPECIAL.get(label, label.partition("/")[0])


def draw_areas(pairs: Counter[tuple[str, str]]) -> None:
    """A Markdown table: a row for what was labelled, a column for what was answered."""
    names = [*sorted({name for pair in pairs for name in pair} - {"healthy", "unknown"}), "healthy", "unknown"]
    print("| labelled | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for label in names:
        print(f"| {label} | " + " | ".join(str(pairs[label, name] or "") for name in names) + " |")


def main(arguments: list[str]) -> int:
    paths = [a for a in arguments if not a.startswith("--")]
    if not paths:
        print(__doc__)
        return 2
    engine = Engine(load())
    engine.diagnose(read_case(engine.catalog, text="warm up")[0])
    confusion: Counter[tuple[str, str]] = Counter()
    areas: Counter[tuple[str, str]] = Counter()
    for path in paths:
        rows, rng = read(path), random.Random(7)  # noqa: S311
        began = time.perf_counter()
        answers = [engine.diagnose(read_case(engine.catalog, text=row["text"])[0]) for row in rows]
        score(Path(path).name, rows, answers, time.perf_counter() - began)
        for row, answer in zip(rows, answers, strict=True):
            named = answer.causes[0].id if answer.verdict == "cause" else answer.verdict
            right = judge(row, answer)[0]
            areas[area(row["primary"]), area(row["primary"] if right else named)] += 1
            if not right:
                confusion[row["primary"], named] += 1
        if "--harder" not in arguments:
            continue
        began = time.perf_counter()
        moved = [engine.diagnose(read_case(engine.catalog, text=permuted(row["text"], rng))[0]) for row in rows]
        score("  permuted", rows, moved, time.perf_counter() - began)
        logs = [row for row in rows if row.get("kind", "log" if _is_log(row["text"]) else "words") == "log"]
        logs = [row for row in logs if row["primary"] not in SPECIAL]
        plain = [engine.diagnose(read_case(engine.catalog, text=row["text"])[0]) for row in logs]
        score("  its logs", logs, plain, 0.0)
        began = time.perf_counter()
        deep = []
        for row in logs:
            given = [LogInput(name="server.log", data=bury(row["text"], rng).encode())]
            deep.append(engine.diagnose(read_case(engine.catalog, logs=given, options=ReadOptions())[0]))
        score("  its logs, buried", logs, deep, time.perf_counter() - began)
        if "--misses" in arguments:
            for row, before, after in zip(logs, plain, deep, strict=True):
                if judge(row, before)[0] and not judge(row, after)[0]:
                    print("   lost", row["id"], row["primary"], after.verdict, [f.id for f in after.causes[:2]])
    if "--confusion" in arguments:
        for (label, named), count in confusion.most_common():
            print(f"  {count} x {label} answered as {named}")
    if "--areas" in arguments:
        draw_areas(areas)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
