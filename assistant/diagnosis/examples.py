"""Runs the examples of the cause files against all causes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.diagnosis.model import Diagnosis
from knowledge.sources import ROOT, cause_files, cause_id, read_yaml
from tools.evidence import Evidence, Origin, Reading


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one example of a cause gave; ``wanted`` is a cause id, ``unknown`` or ``healthy``."""

    file: str
    line: int
    cause: str
    kind: str  # match | near_miss
    wanted: str
    got: str
    confidence: float
    ok: bool


def label_of(diagnosis: Diagnosis) -> str:
    """The answer in one word: the first cause's id, or the verdict."""
    return diagnosis.causes[0].id if diagnosis.verdict == "cause" else diagnosis.verdict


def example_material(example: dict[str, Any]) -> str:
    """An example as a person would paste it: their words, then the log."""
    return "\n".join(part for part in (example.get("text"), example.get("log")) if part)


def run_examples(engine: Engine, root: Path = ROOT, only: frozenset[str] = frozenset()) -> Iterator[Outcome]:
    """Diagnoses every example of every cause, or of ``only`` some. A match must name its cause, a near miss the one it belongs to."""
    for path in cause_files(root):
        own = cause_id(path, root)
        if only and own not in only:
            continue
        document = read_yaml(path, with_lines=True)
        for kind in ("match", "near_miss"):
            for index, example in enumerate(document.data["examples"].get(kind, ())):
                case, _ = read_case(engine.catalog, text=example_material(example))
                stated = example.get("facts") or {}
                facts = tuple(Evidence(name, "present", value, Origin("example")) for name, value in stated.items())
                case = replace(case, reading=case.reading + Reading(facts))
                diagnosis = engine.diagnose(case)
                wanted = example.get("belongs_to", own)
                if wanted.startswith("normal/"):
                    wanted = "healthy"
                got = label_of(diagnosis)
                confidence = diagnosis.causes[0].confidence if diagnosis.causes else 0.0
                yield Outcome(
                    document.name,
                    document.line_of(("examples", kind, index)),
                    own,
                    kind,
                    wanted,
                    got,
                    confidence,
                    got == wanted,
                )
