"""Turns the knowledge files into the one compiled file that the program loads.

python -m knowledge.compiler      # writes knowledge/_compiled.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from knowledge.catalog import COMPILED
from knowledge.conditions import is_pure_talk, needs, particular
from knowledge.errors import KnowledgeError
from knowledge.search import ConceptReader, build_index
from knowledge.shapes import Concept
from knowledge.sources import ROOT, cause_files, cause_id, merge_messages, merged_files, read_yaml
from knowledge.text import normalise
from knowledge.versions import release
from knowledge.vllm_tables import telling, variable_range, versions

_CAUSE_KEYS = (
    "title", "severity", "begins", "explanation", "ruled_out", "explains", "near", "fixes", "check", "collect", "sources", "draft",
)  # fmt: skip


def inline_message(cause: str, index: int) -> str:
    """The id of the message that a cause file gives by ``prints`` in its signal ``index``."""
    return f"{cause.replace('/', '-')}-prints-{index}"


def _signal(raw: dict[str, Any], cause: str, index: int) -> dict[str, Any]:
    """One form for all ways to write a signal: a key for traces, a weight, and a condition or symptoms."""
    if "symptoms" in raw:
        return {
            "key": "symptoms",
            "weight": "strong",
            "symptoms": {k: list(v or ()) for k, v in raw["symptoms"].items()},
        }
    if "message" in raw:
        key, when = f"message:{raw['message']}", {"message": raw["message"]}
    elif "prints" in raw:
        name = inline_message(cause, index)
        key, when = f"message:{name}", {"message": name}
    elif "said" in raw:
        key, when = "said:" + "+".join(raw["said"]), {"all": [{"said": concept} for concept in raw["said"]]}
    else:
        when = raw["when"]
        key = "when:" + json.dumps(when, sort_keys=True, ensure_ascii=False)[:80]
    signal = {"key": key, "weight": raw["weight"], "when": when, "needs": sorted(needs(when))}
    if "group" in raw:
        signal["group"] = raw["group"]
    return signal


def compile_cause(path: Path, root: Path = ROOT) -> dict[str, Any]:
    """One cause file as it goes into the compiled file."""
    data = read_yaml(path).data
    if not isinstance(data, dict):
        raise KnowledgeError(f"{path}: a cause file is a mapping of keys; see CONTRIBUTING")
    try:
        return {
            "id": cause_id(path, root),
            "signals": [_signal(s, cause_id(path, root), i) for i, s in enumerate(data["signals"])],
            "messages": {
                inline_message(cause_id(path, root), i): {"kind": "failure", "says": s["prints"], "source": "cause"}
                for i, s in enumerate(data["signals"])
                if "prints" in s
            },
            **{key: data[key] for key in _CAUSE_KEYS if key in data},
            "sources": [{k: str(v) for k, v in s.items()} for s in data["sources"]],
        }
    except (KeyError, TypeError) as error:
        raise KnowledgeError(f"{path}: not a complete cause ({error!r}); run `vllm-diagnose kb check`") from None


def compile_knowledge(root: Path = ROOT) -> dict[str, Any]:
    """Reads every knowledge file below ``root``. Raises :class:`KnowledgeError` at the first that cannot be used."""
    causes = [compile_cause(path, root) for path in cause_files(root)]
    concepts: dict[str, dict[str, Any]] = {}
    for path in merged_files("concepts", root):
        for name, raw in (read_yaml(path).data or {}).items():
            if name in concepts:
                raise KnowledgeError(f"{path}: the concept {name!r} is defined twice; rename or merge one")
            entry: dict[str, Any] = {
                "patterns": [_at_word_start(p) for p in raw.get("en", ())]
                + [_not_inside_words(p) for p in raw.get("zh", ())]
            }
            if "means" in raw:
                entry["means"] = raw["means"]
            if raw.get("denial"):
                entry["denial"] = True
            concepts[name] = entry
    reader = ConceptReader({k: Concept(k, tuple(c["patterns"])) for k, c in concepts.items()})
    sentences = [
        (cause["id"], sentence)
        for cause in causes
        for signal in cause["signals"]
        if "symptoms" in signal
        for rows in signal["symptoms"].values()
        for sentence in rows
    ]
    index = build_index(sentences, reader)
    _weigh_talk(causes, sentences, reader)
    for cause in causes:  # the sentences themselves are only needed by the index
        for signal in cause["signals"]:
            if "symptoms" in signal:
                signal["symptoms"] = {}
    messages = merge_messages(root)
    for cause in causes:
        messages.update(cause.pop("messages"))
    calibration = root / "calibration.json"
    compiled: dict[str, Any] = {
        "causes": causes,
        "messages": messages,
        "concepts": concepts,
        "observables": read_yaml(root / "observables.yaml").data,
        "intents": {name: _with_versions(entry, root) for name, entry in read_yaml(root / "intents.yaml").data.items()},
        "gpu_events": {
            f"xid-{row['xid']}" if row.get("xid") is not None else f"sxid-{row['sxid']}": {
                "name": row["name"],
                "meaning": {"en": row["en"], "zh": row["zh"]},
                "action": row["action"],
                "cause": row.get("cause"),
            }
            for row in read_yaml(root / "gpu_events.yaml").data
        },
        "defects": {
            name: {**entry, **({"needs": sorted(needs(entry["when"]))} if "when" in entry else {})}
            for name, entry in read_yaml(root / "defects.yaml").data.items()
        },
        "styles": json.dumps(
            {"versions": versions(root), "lines": read_yaml(root / "line_styles.yaml").data, "messages": telling(root)},
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
        ),
        "tree": read_yaml(root / "tree.yaml").data,
        "sentences": read_yaml(root / "sentences.yaml").data,
        "symptoms": json.dumps(
            {
                "causes": index.causes,
                "postings": index.postings,
                "inverse_frequency": {term: round(value, 4) for term, value in index.inverse_frequency.items()},
            },
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
        ),
        "calibration": json.loads(calibration.read_text(encoding="utf-8")) if calibration.exists() else {},
    }
    text = json.dumps(compiled, ensure_ascii=False, sort_keys=True, default=str)
    compiled["digest"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return compiled


def _weigh_talk(causes: list[dict[str, Any]], sentences: list[tuple[str, str]], reader: ConceptReader) -> None:
    """Gives every signal that rests on words its share: how particular these ideas are to the cause."""
    said_by: dict[str, list[frozenset[str]]] = {}
    for cause, sentence in sentences:
        said_by.setdefault(cause, []).append(reader.read(normalise(sentence)))
    for entry in causes:
        for signal in entry["signals"]:
            if is_pure_talk(signal):
                wanted = [part["said"] for part in signal["when"]["all"]]
                signal["share"] = particular(wanted, entry["id"], entry.get("near", ()), said_by)


def _with_versions(intent: dict[str, Any], root: Path) -> dict[str, Any]:
    """Adds since which version, and until which, vLLM reads the variable of an intent."""
    name = intent.get("variable", "")
    found = variable_range(name, root) if name.startswith("VLLM_") else None
    if found is None:
        return intent
    table = versions(root)
    later = table[table.index(found[1]) + 1 :]
    # The table of variables begins with 0.4.2; what is there from its start is taken to be older.
    since = "0.0" if release(found[0]) <= (0, 4, 2, 0) else found[0]
    return {**intent, "since": since, **({"until": later[0]} if later else {})}


def _at_word_start(pattern: str) -> str:
    return rf"\b(?:{pattern})" if pattern[:1].isalnum() or pattern[:1] == "(" else pattern


def _not_inside_words(pattern: str) -> str:
    """A Chinese pattern whose Latin words do not begin within a longer one: ``top_?[pk]`` is not in "stopped".

    Words of Chinese know no boundary, and names are written with ``_`` or a digit before them; so what must not stand
    before a Latin letter with which the pattern begins is another letter.
    """
    made: list[str] = []
    groups: list[bool] = []  # whether nothing can stand before them
    begins = True
    for piece in _PIECES.findall(pattern):
        if piece[0] == "(":
            groups.append(begins)
        elif piece == "|":
            begins = groups[-1] if groups else True
        elif piece[0] == ")":
            begins = groups.pop() and piece[1:] in ("?", "*")
        elif begins and piece.isascii() and piece.isalpha():
            made.append("(?:^|[^a-z])")
            begins = False
        elif piece not in ("^", "?", "*", "+"):
            begins = False
        made.append(piece)
    return "".join(made)


#: The pieces of a pattern: escapes, classes, groups with their options, ends of groups with what follows, characters.
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?[a-zA-Z-]*:)?|\)[?*]?|.", re.DOTALL)


def write(compiled: dict[str, Any], root: Path = ROOT) -> Path:
    """Replaces the compiled file in one step; a reader never sees half of it. Raises ``OSError`` where it cannot."""
    target = root / COMPILED.name
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(
            json.dumps(compiled, ensure_ascii=False, separators=(",", ":"), default=str), encoding="utf-8"
        )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    print(f"compiled the knowledge into {write(compile_knowledge())}")
