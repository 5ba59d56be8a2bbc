"""Puts a release into the tables, and says what that changes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knowledge.history import Entry, Snapshot, expand, fold, write_table
from knowledge.sources import ROOT, SILENT_LEVELS
from knowledge.sync.messages import Template, Texts, fixed_parts, key_of
from knowledge.sync.release import Release
from knowledge.versions import release as number

#: table file -> the section with its histories. renames.json is not here: it is a list.
TABLES = {
    "flags.json": "flags",
    "fields.json": "classes",
    "environment.json": "env_vars",
    "metrics.json": "metrics",
    "messages.json": "messages",
}
#: Two texts this alike, one gone and one new in a release, are one message that was reworded.
ALIKE = 0.78
#: Two names this alike, one gone and one new in a release, may be one thing that was renamed.
ALIKE_NAMES = 0.72
_MOST_COMPARED = 4_000


@dataclass(slots=True)
class Difference:
    """What a release has that the one before it lacks, and the other way round, in one table."""

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)  # name -> "default 0.9 -> 0.92"
    renamed: list[tuple[str, str, bool]] = field(default_factory=list)  # old, new, whether the sources say so

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed or self.renamed)


@dataclass(slots=True)
class Changes:
    """The outcome of one update. ``before`` is the examined version that the release is compared with."""

    version: str
    before: str | None
    known: bool  # whether the tables held this version already
    tables: dict[str, Difference] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)  # files whose text changed
    untold: list[str] = field(default_factory=list)  # messages too short to be looked for
    not_tracked: int = 0  # failures that the release can print and no message knows


def update(version: str, found: Release, root: Path = ROOT, *, dry_run: bool = False) -> Changes:
    """Enters ``found`` as ``version``. Running it again changes nothing: the files stay the same to the byte.

    Raises ``OSError`` where a table cannot be written; each is replaced in one step.
    """
    folder = root / "vllm"
    documents = {name: _load(folder / name, section) for name, section in TABLES.items()}
    known = documents["flags.json"]["_meta"]["versions"]
    before = _before(version, known)
    changes = Changes(version, before, version in known)
    snapshots: dict[str, Snapshot] = {
        "flags.json": found.flags,
        "fields.json": found.fields,
        "environment.json": found.environment,
        "metrics.json": found.metrics,
    }
    snapshots["messages.json"] = _messages(version, found.texts, documents["messages.json"], changes)
    for name, section in TABLES.items():
        document = documents[name]
        versions = document["_meta"]["versions"]
        all_of = expand(document[section], versions)
        neighbour = _before(version, versions)
        changes.tables[name] = compare(all_of.get(neighbour, {}) if neighbour else {}, snapshots[name], name)
        all_of[version] = _stored(snapshots[name])
        document[section] = fold(all_of)
        document["_meta"] = {**document["_meta"], "versions": sorted(all_of, key=number)}
        if not dry_run and write_table(folder / name, document):
            changes.written.append(name)
    _note_renames(folder / "renames.json", changes, dry_run)
    return changes


def _load(path: Path, section: str) -> dict[str, Any]:
    if not path.exists():
        return {"_meta": {"versions": []}, section: {}}
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _before(version: str, versions: Iterable[str]) -> str | None:
    older = [known for known in versions if number(known) < number(version)]
    return max(older, key=number) if older else None


def _stored(snapshot: Snapshot) -> Snapshot:
    """Without what is only of use while comparing."""
    return {name: {k: v for k, v in entry.items() if k != "instead"} for name, entry in snapshot.items()}


def compare(before: Snapshot, now: Snapshot, table: str) -> Difference:
    """What changed from one version to the next."""
    difference = Difference(sorted(set(now) - set(before)), sorted(set(before) - set(now)))
    for name in sorted(set(before) & set(now)):
        rows = _changed(before[name], now[name])
        if rows:
            difference.changed[name] = rows
        said = now[name].get("instead")
        if said and said != name and said in now and before[name].get("deprecated") is not True:
            difference.renamed.append((name, said, True))
    if table != "messages.json":
        difference.renamed += _perhaps_renamed(difference, before, now)
    return difference


def _changed(before: Entry, now: Entry) -> list[str]:
    rows = []
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if old == new or key in ("meaning", "instead"):
            continue
        if isinstance(old, list) and isinstance(new, list):
            added, lost = [v for v in new if v not in old], [v for v in old if v not in new]
            parts = [f"+{_short(v)}" for v in added] + [f"-{_short(v)}" for v in lost]
            rows.append(f"{key} {' '.join(parts)}")
        else:
            rows.append(f"{key} {_short(old)} -> {_short(new)}")
    return rows


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + "..."


def _perhaps_renamed(difference: Difference, before: Snapshot, now: Snapshot) -> list[tuple[str, str, bool]]:
    found = []
    for old in difference.gone:
        fitting = [new for new in difference.new if before[old].get("kind") == now[new].get("kind")]
        near = difflib.get_close_matches(old, fitting, 1, ALIKE_NAMES)
        if near:
            found.append((old, near[0], False))
    return found


# -- messages -----------------------------------------------------------------------------------------------------


def _messages(version: str, texts: Texts, document: Mapping[str, Any], changes: Changes) -> Snapshot:
    """Which spellings of every known message the release prints; a spelling that changed its words is learnt."""
    table = document["messages"]
    versions = document["_meta"]["versions"]
    others = [known for known in versions if known != version]
    nearest = version if version in versions else _before(version, others) or (others[0] if others else None)
    last = expand(table, [nearest])[nearest] if nearest else {}
    spelled: dict[str, set[str]] = {}
    for history in table.values():
        for entry in history.values():
            for text in (*((entry or {}).get("says") or ()), *((entry or {}).get("returned") or ())):
                spelled.setdefault(key_of(text), set()).add(text)
    fresh = [t for t in texts.templates if t.key not in spelled and t.level not in ("DEBUG", "text")]
    changes.not_tracked = sum(t.level == "ERROR" or t.level.startswith("exception:") for t in fresh)
    snapshot: Snapshot = {}
    for name, history in table.items():
        entry = _message(name, history, last.get(name), texts, fresh, changes)
        if entry is not None:
            snapshot[name] = entry
    return snapshot


def _message(
    name: str,
    history: Mapping[str, Entry | None],
    last: Entry | None,
    texts: Texts,
    fresh: list[Template],
    changes: Changes,
) -> Entry | None:
    entry: Entry = {}
    lost: list[str] = []
    spellings = [text for key in ("says", "returned") for text in _in_order(history, key)]
    for key in ("says", "returned"):
        kept = []
        for text in _in_order(history, key):
            said = texts.says(text, spellings)
            if said is None:  # too short to be looked for: as in the version before
                said = last is not None and text in last.get(key, ())
                changes.untold.append(name)
            if said:
                kept.append(text)
            elif last is not None and text in last.get(key, ()):
                lost.append(text)
        if kept:
            entry[key] = kept
    base = last or next((change for change in reversed(list(history.values())) if change), {})
    for text in lost:
        reworded = _reworded(text, base.get("level", ""), fresh)
        if reworded is not None and reworded.text not in entry.get("says", ()):
            entry.setdefault("says", []).append(reworded.text)
            fresh.remove(reworded)
    if not entry:
        return None
    for key in ("level", "topic"):
        value = next((change[key] for change in history.values() if change and change.get(key)), None)
        entry[key] = base.get(key, value)
    return entry


def _in_order(history: Mapping[str, Entry | None], key: str) -> list[str]:
    """Every spelling that any version has, in a stable order."""
    return sorted({text for change in history.values() if change for text in change.get(key) or ()})


def _reworded(text: str, level: str, fresh: list[Template]) -> Template | None:
    """The new text of the release that is this one in other words, if there is one."""
    same = [t for t in fresh if t.level == level or level.partition(":")[0] == t.level.partition(":")[0]]
    wanted, best, ratio = key_of(text), None, ALIKE
    words = set(wanted.lower().split())
    for candidate in same[:_MOST_COMPARED]:
        own = set(candidate.key.lower().split())
        if not fixed_parts(candidate.text):
            continue  # nothing to look for in a log
        if len(words & own) * 2 < max(len(words), len(own)):
            continue
        alike = difflib.SequenceMatcher(None, wanted, candidate.key, autojunk=False).ratio()
        if alike > ratio:
            best, ratio = candidate, alike
    return best


# -- renames ------------------------------------------------------------------------------------------------------


def _note_renames(path: Path, changes: Changes, dry_run: bool) -> None:
    """Adds what the sources themselves call a successor; a likeness of names is only reported."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"renames": []}
    rows = document["renames"]
    known = {(row["kind"], row["old"]) for row in rows}
    kinds: Mapping[str, str] = {"flags.json": "flag", "environment.json": "variable", "metrics.json": "metric"}
    for table, kind in kinds.items():
        for old, new, certain in changes.tables[table].renamed:
            if certain and (kind, old) not in known:
                rows.append({"kind": kind, "old": old, "new": new})
    rows.sort(key=lambda row: (row["kind"], row["old"]))
    text = '{"renames": [\n' + ",\n".join(" " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n]}\n"
    if not dry_run and (not path.exists() or path.read_text(encoding="utf-8") != text):
        path.write_text(text, encoding="utf-8")
        changes.written.append(path.name)


def message_entry(level: str, topic: str, texts: Iterable[tuple[str, str]]) -> Entry:
    """An entry of the table of messages from (level, text) pairs: what is printed, and what is only returned."""
    entry: Entry = {"level": level, "topic": topic}
    for key, silent in (("says", False), ("returned", True)):
        found = sorted({text for own, text in texts if (own in SILENT_LEVELS) == silent})
        if found:
            entry[key] = found
    return entry


Report = Callable[[str], None]
