"""Tables of what each vLLM version has: per name, what it was first and what changed when.

A table file holds ``{"_meta": {"versions": [...], ...}, <section>: {name: history}}``. A history maps versions to
changes: the first is the entry as it appeared, later ones hold only the keys that changed (``null``: the key is
gone), and ``null`` in place of a change says that the name is gone since that version. What a version has is therefore
what the changes up to it add up to, a new release adds one line for each name that it changed, and nothing else moves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from knowledge.versions import release

Entry = dict[str, Any]
Snapshot = dict[str, Entry]  # name -> its entry in one version
History = dict[str, Entry | None]  # version -> what changed in it
Table = dict[str, History]  # name -> history


def entry_at(history: Mapping[str, Entry | None], version: str) -> Entry | None:
    """The entry of one name in ``version``, or ``None`` where that version lacks it."""
    wanted, found = release(version), None
    for since, change in history.items():
        if release(since) > wanted:
            break
        found = None if change is None else _changed(found, change)
    return found


def _changed(before: Entry | None, change: Entry) -> Entry:
    merged = {**(before or {}), **change}
    return {key: value for key, value in merged.items() if value is not None}


def ranges(history: Mapping[str, Entry | None]) -> list[tuple[str, str | None]]:
    """The stretches of versions that have the name, oldest first: (since, until), ``until`` exclusive or ``None``."""
    found: list[tuple[str, str | None]] = []
    for version, change in history.items():
        if change is None:
            if found and found[-1][1] is None:
                found[-1] = (found[-1][0], version)
        elif not found or found[-1][1] is not None:
            found.append((version, None))
    return found


def expand(table: Mapping[str, Mapping[str, Entry | None]], versions: Iterable[str]) -> dict[str, Snapshot]:
    """Version -> what it has."""
    return {
        version: {name: entry for name, history in table.items() if (entry := entry_at(history, version)) is not None}
        for version in versions
    }


def fold(snapshots: Mapping[str, Snapshot]) -> Table:
    """The table of these versions: the inverse of :func:`expand`. Names in order, versions oldest first."""
    order = sorted(snapshots, key=release)
    table: Table = {}
    for name in sorted({name for snapshot in snapshots.values() for name in snapshot}):
        history: History = {}
        before: Entry | None = None
        for version in order:
            now = snapshots[version].get(name)
            now = None if now is None else {key: value for key, value in now.items() if value is not None}
            if now != before:
                history[version] = None if now is None else _difference(before or {}, now)
            before = now
        table[name] = history
    return table


def _difference(before: Entry, now: Entry) -> Entry:
    change = {key: value for key, value in now.items() if key not in before or before[key] != value}
    change.update({key: None for key in before if key not in now})
    return change


def render(document: Mapping[str, Any]) -> str:
    """A table file as text: one line a change, so that the diff of a new release is what that release changed."""
    sections = [f' "_meta": {_line(document["_meta"])}']
    for section, table in document.items():
        if section == "_meta":
            continue
        rows = []
        for name, history in table.items():
            changes = ",\n".join(f"   {_line(version)}: {_line(change)}" for version, change in history.items())
            rows.append(f"  {_line(name)}: {{\n{changes}\n  }}")
        body = ",\n".join(rows)
        sections.append(f" {_line(section)}: {{\n{body}\n }}" if rows else f" {_line(section)}: {{}}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=isinstance(value, dict))


def write_table(path: Path, document: Mapping[str, Any]) -> bool:
    """Replaces the file in one step where its text changes; says whether it did. Raises ``OSError`` where it cannot."""
    text = render(document)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True
