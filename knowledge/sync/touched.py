"""What of this project a release touches: intents, causes, documents and conditions that name what changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knowledge.sources import ROOT, cause_files, cause_id, merged_files, read_yaml
from knowledge.sync.update import Changes
from knowledge.versions import is_between

_CONDITION = {"flags.json": "argument.", "environment.json": "environment."}


@dataclass(slots=True)
class Touched:
    """One name that changed, and who names it. ``intents_to_mend`` are those that would now give a wrong command."""

    name: str
    how: str  # gone | changed | renamed
    intents: list[str] = field(default_factory=list)
    intents_to_mend: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.intents or self.causes or self.documents or self.conditions)


def touched(changes: Changes, root: Path = ROOT) -> list[Touched]:
    """Every changed name that something of this project names, in order."""
    intents: Mapping[str, Any] = read_yaml(root / "intents.yaml").data or {}
    causes = {cause_id(path, root): path.read_text(encoding="utf-8") for path in cause_files(root)}
    documents = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((root / "documents").rglob("*.md"))
    }
    others = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in (root / "tree.yaml", root / "observables.yaml", *merged_files("messages", root))
        if path.is_file()
    }
    found = []
    for table, difference in changes.tables.items():
        hows = dict.fromkeys(difference.changed, "changed")
        hows.update(dict.fromkeys(difference.gone, "gone"))
        hows.update({old: "renamed" for old, _new, _certain in difference.renamed})
        for name, how in sorted(hows.items()):
            row = _touched(name, how, table, changes.version, intents, causes, documents, others)
            if row:
                found.append(row)
    return found


def _touched(
    name: str,
    how: str,
    table: str,
    version: str,
    intents: Mapping[str, Any],
    causes: Mapping[str, str],
    documents: Mapping[str, str],
    others: Mapping[str, str],
) -> Touched:
    row = Touched(name, how)
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    for key, intent in intents.items():
        spelled = [s for s in intent.get("spelled", ()) if s["flag"].split(".", 1)[0] == name]
        if spelled or intent.get("variable") == name:
            row.intents.append(key)
            now = any(is_between(version, str(s["since"]), s.get("until")) for s in spelled)
            if how == "gone" and now:
                row.intents_to_mend.append(key)
    condition = None
    if table in _CONDITION:
        condition = _CONDITION[table] + name.lstrip("-").replace("-", "_")
    for cause, text in causes.items():
        by_fix = any(f"intent: {key}\n" in text or f"intent: {key}," in text for key in row.intents)
        if by_fix or word.search(text) or (condition and condition in text):
            row.causes.append(cause)
        if condition and f"{condition}:" in text:
            row.conditions.append(f"{cause}: {condition}")
    if table == "messages.json":
        return row
    row.documents = _naming(word, documents)
    row.conditions += _naming(word, others)
    return row


def _naming(word: re.Pattern[str], texts: Mapping[str, str]) -> list[str]:
    return [path for path, text in texts.items() if word.search(text)]


def all_names(rows: Iterable[Touched], kind: str) -> list[str]:
    """Every intent, cause, document or condition of the rows, once."""
    return sorted({name for row in rows for name in getattr(row, kind)})
