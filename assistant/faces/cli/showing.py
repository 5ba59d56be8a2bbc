"""What every command that ends in a diagnosis shares: the knowledge, keeping the incident, and printing the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assistant import __version__
from assistant.diagnosis.model import Diagnosis
from assistant.faces.cli.options import fail
from assistant.render.blocks import diagnosis_blocks
from assistant.render.seen import seen_before_blocks
from knowledge.catalog import Catalog, load

EXIT = {"healthy": 0, "cause": 1, "unknown": 4}


@dataclass(frozen=True, slots=True)
class Shown:
    """How the person wants the answer."""

    output: str
    full: bool = False
    path: bool = False
    exit_code: bool = False
    save: bool = False


def catalogue() -> Catalog:
    """The knowledge, or one sentence on why there is none."""
    from knowledge.errors import KnowledgeError

    try:
        return load()
    except (KnowledgeError, OSError, ValueError, KeyError) as error:
        fail(f"the knowledge base cannot be used: {error}", 3)


def conclude(diagnosis: Diagnosis, known: Catalog, shown: Shown, question: str) -> None:
    """Prints the answer, and keeps the incident where that was asked for; where it cannot be kept, one line says why."""
    if not shown.save:
        show(diagnosis, known, shown)
        return
    from assistant.store.saving import save_incident

    evidence = [diagnosis.case.to_json()] if diagnosis.case is not None else []
    saved = save_incident(diagnosis.to_json(engine=__version__), evidence, question=question, saved_by="command line")
    print(f"saved as {saved.incident_id}" if saved.incident_id else f"vllm-diagnose: {saved.why}", file=sys.stderr)
    show(diagnosis, known, shown, saved.incident_id, seen_before=[seen.to_json() for seen in saved.seen_before])


def show(
    diagnosis: Diagnosis,
    known: Catalog,
    shown: Shown,
    incident: str | None = None,
    revision: int = 1,
    *,
    seen_before: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Prints a diagnosis in the asked form; ``seen_before`` are earlier incidents with the same cause."""
    if shown.output == "json":
        body = diagnosis.to_json(engine=__version__, full=shown.full, incident=incident, revision=revision)
        body |= {"seen_before": list(seen_before)} if incident else {}
        print(json.dumps(body, ensure_ascii=False, indent=2))
        return
    typed = shown.output == "text"
    blocks = list(diagnosis_blocks(diagnosis, known, show_path=shown.path, typed=typed))
    blocks += seen_before_blocks(seen_before, known, diagnosis.language)
    if shown.output == "markdown":
        from assistant.render.markdown import to_markdown

        print(to_markdown(blocks), end="")
        return
    from assistant.faces.cli.terminal import draw

    draw(blocks)
