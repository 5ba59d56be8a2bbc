"""The knowledge as one object, loaded from the compiled file in a few milliseconds.

``load()`` takes ``knowledge/_compiled.json`` where it is at least as new as every file it was made from, and compiles
anew otherwise (a working tree that somebody edits); an installed package carries the compiled file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from knowledge.shapes import (
    ByDefault,
    Cause,
    Concept,
    Defect,
    Exclusion,
    Fix,
    GpuEvent,
    Intent,
    Message,
    Observable,
    Signal,
    Source,
    Spelling,
    Tree,
    TreeNode,
    Words,
)
from knowledge.telling import told

ROOT = Path(__file__).resolve().parent
COMPILED = ROOT / "_compiled.json"
_FOLDERS = ("causes", "normal", "messages", "concepts", "vllm", "text_data")
_FILES = (
    "defects.yaml",
    "line_styles.yaml",
    "gpu_events.yaml",
    "observables.yaml",
    "intents.yaml",
    "tree.yaml",
    "sentences.yaml",
)


@dataclass(frozen=True, slots=True)
class SymptomIndex:
    """Prepared retrieval over the symptom sentences: see :mod:`knowledge.search`."""

    causes: tuple[str, ...]  # the cause of each sentence
    postings: Mapping[str, Sequence[tuple[int, float]]]  # term -> (sentence, weight in its unit vector)
    inverse_frequency: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that is known. ``digest`` changes whenever anything that decides an answer changes."""

    digest: str
    causes: Mapping[str, Cause]
    messages: Mapping[str, Message]
    concepts: Mapping[str, Concept]
    meanings: Mapping[str, Mapping[str, str]]  # concept -> {observable: value} that saying it states
    denials: frozenset[str]  # concepts that are heard where somebody says what is in order or not there
    observables: Mapping[str, Observable]
    intents: Mapping[str, Intent]
    gpu_events: Mapping[str, GpuEvent]  # "xid-79", "sxid-20034"
    tree: Tree
    sentences: Mapping[str, Words]
    defects: tuple[Defect, ...]
    styles_json: str  # read when nobody names a version: see assistant.diagnosis.version
    symptoms_json: str  # read when words are to be compared, not before: logs need none of it
    calibration: Mapping[str, Any]

    @property
    def symptoms(self) -> SymptomIndex:
        """The index of the symptom sentences."""
        return _symptoms(self.symptoms_json)

    def observable(self, name: str) -> Observable | None:
        """The declaration of ``name``, or of the family it belongs to."""
        known = self.observables.get(name)
        return known or self.observables.get(name.split(".", 1)[0] + ".*")

    def tool(self, name: str, title: str, lang: str) -> str:
        """The title of a tool in the asked language; ``title``, its own, where it has no other."""
        known = self.sentences.get(f"tool-{name}")
        return known[lang] if known else title

    def word(self, key: str, lang: str, **values: object) -> str:
        """The sentence ``key`` in the asked language, with its places filled."""
        return self.sentences[key][lang].format(**values)

    def told(self, text: str, lang: str) -> str:
        """An error's English sentence in the asked language; see :mod:`knowledge.telling`."""
        return told(text, lang, self.sentences)


@lru_cache(maxsize=4)
def _symptoms(text: str) -> SymptomIndex:
    raw = json.loads(text)
    return SymptomIndex(tuple(raw["causes"]), raw["postings"], raw["inverse_frequency"])


def _fix(raw: Mapping[str, Any]) -> Fix:
    return Fix(
        raw["intent"], raw["why"], raw["impact"], raw.get("value"), raw.get("only_if"), raw.get("price")
    )  # fmt: skip


def _signal(raw: Mapping[str, Any]) -> Signal:
    return Signal(
        raw["key"],
        raw["weight"],
        raw.get("when"),
        {lang: tuple(rows) for lang, rows in raw["symptoms"].items()} if "symptoms" in raw else None,
        raw.get("group"),
        frozenset(raw.get("needs", ())),
        raw.get("share", 1.0),
    )


def _clues(signals: Sequence[Signal]) -> frozenset[str] | None:
    """One name that each signal needs: a message where there is one, because few are there at a time."""
    needed = [signal.needs for signal in signals if signal.when is not None]
    if not all(needed):
        return None
    return frozenset(min(names, key=lambda name: (not name.startswith("message:"), name)) for names in needed)


def _cause(raw: Mapping[str, Any]) -> Cause:
    signals = tuple(_signal(s) for s in raw["signals"])
    return Cause(
        id=raw["id"],
        title=raw["title"],
        severity=raw["severity"],
        begins=raw["begins"],
        explanation=raw["explanation"],
        signals=signals,
        check=raw["check"],
        sources=tuple(Source(**s) for s in raw["sources"]),
        ruled_out=tuple(Exclusion(r["when"], r["because"]) for r in raw.get("ruled_out", ())),
        explains=tuple(raw.get("explains", ())),
        near=tuple(raw.get("near", ())),
        fixes=tuple(_fix(f) for f in raw.get("fixes", ())),
        collect=tuple(raw.get("collect", ())),
        draft=raw.get("draft", False),
        clues=_clues(signals),
    )


def _defect(name: str, raw: Mapping[str, Any]) -> Defect:
    return Defect(
        id=name,
        title=raw["title"],
        kind=raw["kind"],
        since=str(raw["since"]),
        fixed=str(raw["fixed"]),
        work_around=raw["work_around"],
        sources=tuple(Source(**s) for s in raw["sources"]),
        cause=raw.get("cause"),
        when=raw.get("when"),
        needs=frozenset(raw.get("needs", ())),
    )


def _intent(name: str, raw: Mapping[str, Any]) -> Intent:
    spelled = tuple(Spelling(str(s["since"]), s["flag"], s.get("until")) for s in raw.get("spelled", ()))
    plain = (
        "title", "argument", "variable", "since", "until", "value", "command", "command_since", "command_before", "action", "undo", "price", "work_around",
        "direction", "resets", "server_only", "rewrites",
    )  # fmt: skip
    return Intent(
        id=name,
        spelled=spelled,
        removes=tuple(raw.get("removes", ())),
        conflicts=tuple(raw.get("conflicts", ())),
        needs=tuple(raw.get("needs", ())),
        by_default=tuple(ByDefault(str(d["since"]), d["value"], d.get("until")) for d in raw.get("by_default", ())),
        **{k: raw[k] for k in plain if k in raw},
    )


def from_compiled(raw: Mapping[str, Any]) -> Catalog:
    """Builds the catalogue from the compiled data; trusts it."""
    nodes = {
        name: TreeNode(name, n["question"], n["observe"], n.get("next", {})) for name, n in raw["tree"]["nodes"].items()
    }
    return Catalog(
        digest=raw["digest"],
        causes={c["id"]: _cause(c) for c in raw["causes"]},
        messages={
            key: Message(key, m["kind"], tuple(m["says"]), m.get("captures", {}), m.get("source", "vllm"))
            for key, m in raw["messages"].items()
        },
        concepts={key: Concept(key, tuple(c["patterns"])) for key, c in raw["concepts"].items()},
        meanings={key: c["means"] for key, c in raw["concepts"].items() if "means" in c},
        denials=frozenset(key for key, c in raw["concepts"].items() if c.get("denial")),
        observables={
            key: Observable(key, o["type"], tuple(o["from"]), o.get("unit", ""), o.get("ask"), o.get("choices", {}))
            for key, o in raw["observables"].items()
        },
        intents={key: _intent(key, i) for key, i in raw["intents"].items()},
        gpu_events={key: GpuEvent(**row) for key, row in raw["gpu_events"].items()},
        tree=Tree(raw["tree"]["start"], nodes, raw["tree"]["healthy"]),
        sentences=raw["sentences"],
        defects=tuple(_defect(name, d) for name, d in raw["defects"].items()),
        styles_json=raw["styles"],
        symptoms_json=raw["symptoms"],
        calibration=raw["calibration"],
    )


def _is_fresh() -> bool:
    try:
        made = COMPILED.stat().st_mtime_ns
    except OSError:
        return False
    if not (ROOT / "causes").is_dir():
        return True  # an installed package: the compiled file is all there is
    newest = 0
    for folder in _FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            newest = max(newest, path.stat().st_mtime_ns)
    for name in (*_FILES, "calibration.json", "compiler.py", "text.py", "search.py"):
        path = ROOT / name
        if path.exists():
            newest = max(newest, path.stat().st_mtime_ns)
    return made >= newest


@lru_cache(maxsize=1)
def load() -> Catalog:
    """The catalogue of this installation. Raises :class:`knowledge.sources.KnowledgeError` where a file is wrong."""
    if _is_fresh():
        return from_compiled(json.loads(COMPILED.read_bytes()))
    from knowledge.compiler import compile_knowledge, write

    compiled = compile_knowledge()
    with contextlib.suppress(OSError):  # a read-only installation compiles each time; it still answers
        write(compiled)
    return from_compiled(compiled)
