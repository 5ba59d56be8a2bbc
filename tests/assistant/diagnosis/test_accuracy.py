"""The project's own labelled incidents, written apart from the cause files: what must not get worse.

``docs/measured.md`` has the figures; the limits here lie a little below them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from knowledge.catalog import load

DATA = Path(__file__).resolve().parents[2] / "data" / "incidents"
ENGINE = Engine(load())
SETS = (
    "words",
    "oblique",
    "reports",
    "blind",
    "strangers",
    "apart",
    "fresh",
    "neighbours",
    "late",
    "end",
    "talk",
    "tri",
)


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def judged(row: dict[str, Any]) -> tuple[bool, bool, float | None]:
    """Right, confidently wrong, and the stated confidence where a cause was named."""
    diagnosis = ENGINE.diagnose(read_case(ENGINE.catalog, text=row["text"])[0])
    first = diagnosis.causes[0] if diagnosis.causes else None
    if row["primary"] in ("fine", "other"):
        right = diagnosis.verdict == {"fine": "healthy", "other": "unknown"}[row["primary"]]
    else:
        right = (
            diagnosis.verdict == "cause" and first is not None and first.id in {row["primary"], *row.get("also", ())}
        )
    sure = first.confidence if diagnosis.verdict == "cause" and first else None
    return right, not right and diagnosis.verdict != "unknown", sure


@pytest.mark.parametrize(
    ("name", "least_right", "most_wrong"),
    [
        ("words", 0.97, 0.02),
        ("oblique", 0.94, 0.03),
        ("reports", 0.95, 0.03),
        ("blind", 0.95, 0.03),
        ("strangers", 0.95, 0.03),
        ("apart", 0.95, 0.03),
        ("fresh", 0.95, 0.02),
        ("neighbours", 0.9, 0.02),
        ("late", 0.95, 0.02),
        ("end", 0.95, 0.02),
        ("talk", 0.9, 0.03),
        ("tri", 0.95, 0.02),
    ],
)
def test_own_incidents(name: str, least_right: float, most_wrong: float) -> None:
    results = [judged(row) for row in rows(name)]
    right = sum(r for r, _, _ in results) / len(results)
    wrong = sum(w for _, w, _ in results) / len(results)
    assert right >= least_right, f"right {right:.3f}"
    assert wrong <= most_wrong, f"confidently wrong {wrong:.3f}"


def test_what_is_stated_with_high_confidence_is_right() -> None:
    results = [judged(row) for name in SETS for row in rows(name)]
    high = [right for right, _, sure in results if sure is not None and sure >= 0.9]
    assert len(high) >= len(results) * 0.5
    assert sum(high) / len(high) >= 0.95


def test_labels_exist() -> None:
    known = {*ENGINE.catalog.causes, "fine", "other"}
    for name in SETS:
        for row in rows(name):
            assert {row["primary"], *row.get("also", ())} <= known, row["id"]
