"""Reads the knowledge files as they are written: YAML with the line of every key, and vLLM's own message table.

Used by the compiler and the checker only; the running program loads the compiled file (:mod:`knowledge.catalog`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from knowledge.errors import KnowledgeError

ROOT = Path(__file__).resolve().parent

#: The kind a vLLM message has when no YAML entry says otherwise, by the level in vLLM's source.
KIND_OF_LEVEL = {"ERROR": "failure", "WARNING": "warning", "INFO": "state", "DEBUG": "state", "http-error": "request"}
#: Levels of texts that vLLM never prints by themselves.
SILENT_LEVELS = ("return", "reason")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file: its data, and the line (from 1) of every key and list item by its path."""

    path: Path
    data: Any
    lines: dict[Key, int] = field(repr=False)

    @property
    def name(self) -> str:
        """The path below ``knowledge/``, as shown to people."""
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else str(self.path)

    def line_of(self, key: Key) -> int:
        """The line of ``key``, or of its nearest ancestor that stands in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def _mark_lines(node: yaml.Node, at: Key, lines: dict[Key, int]) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key_node, value_node in node.value:
            key = key_node.value
            if key in seen:
                raise KnowledgeError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice; keep one")
            seen.add(key)
            lines[(*at, key)] = key_node.start_mark.line + 1
            _mark_lines(value_node, (*at, key), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, index)] = item.start_mark.line + 1
            _mark_lines(item, (*at, index), lines)


def read_yaml(path: Path, *, with_lines: bool = False) -> Document:
    """Reads one YAML file. Raises :class:`KnowledgeError` with the file and line where it is no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader, the C one where it is built)
        lines: dict[Key, int] = {}
        if with_lines:
            node = yaml.compose(text, Loader=_Loader)
            if node is not None:
                _mark_lines(node, (), lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise KnowledgeError(f"{path}:{line}: this is not valid YAML ({getattr(error, 'problem', error)})") from None
    except KnowledgeError as error:
        raise KnowledgeError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{path}: cannot be read: {error}") from None
    return Document(path, data, lines)


def cause_id(path: Path, root: Path = ROOT) -> str:
    """The id that a cause's path gives: ``causes/memory/x.yaml`` is ``memory/x``, ``normal/x.yaml`` is ``normal/x``."""
    parts = path.relative_to(root).with_suffix("").parts
    return "/".join(parts[1:] if parts[0] == "causes" else parts)


def cause_files(root: Path = ROOT) -> Iterator[Path]:
    yield from sorted((root / "causes").glob("*/*.yaml"))
    yield from sorted((root / "normal").glob("*.yaml"))


def merged_files(folder: str, root: Path = ROOT) -> list[Path]:
    return sorted((root / folder).glob("*.yaml"))


def vllm_messages(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """vLLM's own messages in all versions as entries of a message file: id -> {kind, says, source}."""
    table = json.loads((root / "vllm" / "messages.json").read_text(encoding="utf-8"))
    entries: dict[str, dict[str, Any]] = {}
    for name, history in table["messages"].items():
        changes = [change for change in history.values() if change]
        level = next(change["level"] for change in reversed(changes) if change.get("level"))
        # The newest spellings first: the reader tries them in this order.
        says = [text for change in reversed(changes) for text in change.get("says") or ()]
        kind = "failure" if level.startswith("exception") else KIND_OF_LEVEL.get(level, "warning")
        entries[name] = {
            "kind": kind,
            "says": list(dict.fromkeys(says)),
            "source": "vllm",
            "silent": level in SILENT_LEVELS,
        }
    return entries


def merge_messages(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """All messages: vLLM's table with what the YAML files add to it, then everybody else's."""
    merged = vllm_messages(root)
    for path in merged_files("messages", root):
        for message_id, entry in (read_yaml(path).data or {}).items():
            known = merged.get(message_id)
            if known is None:
                merged[message_id] = {"source": "vllm", **entry, "says": list(entry.get("says", []))}
                continue
            known["says"] = list(dict.fromkeys([*known["says"], *entry.get("says", [])]))
            known["silent"] = False
            for key in ("kind", "captures", "source"):
                if key in entry:
                    known[key] = entry[key]
    return {k: v for k, v in merged.items() if not v.pop("silent", False)}
