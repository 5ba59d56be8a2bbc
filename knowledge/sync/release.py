"""One release as the tables see it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knowledge.history import Snapshot
from knowledge.sync.arguments import read_arguments
from knowledge.sync.environment import read_environment
from knowledge.sync.evaluate import ClassRef, Evaluator
from knowledge.sync.fields import field_names
from knowledge.sync.messages import Texts, read_messages
from knowledge.sync.metrics import read_metrics
from knowledge.sync.tree import Named, SourceError, SourceTree

#: A vLLM release has more of each than this; fewer means that its sources were not understood.
_FEWEST_FLAGS, _FEWEST_METRICS, _FEWEST_TEXTS = 30, 8, 100
_VERSION = re.compile(r"^(?:__version__|version) = (?:version = )?[\"']([^\"']{1,60})[\"']", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Release:
    """What was read. ``stated_version`` is what the sources call themselves, where they do."""

    flags: Snapshot
    fields: Snapshot
    environment: Snapshot
    metrics: Snapshot
    texts: Texts
    stated_version: str | None


def read_release(root: Path, report: Callable[[str], None] = lambda text: None) -> Release:
    """Reads the release whose package ``vllm`` lies below ``root``; nothing of it is run.

    Raises :class:`SourceError` where the sources are missing or so different that the tables would be wrong.
    """
    tree = SourceTree(root)
    report("arguments")
    flags = read_arguments(tree)
    if len(flags) < _FEWEST_FLAGS:
        raise SourceError(
            f"Only {len(flags)} arguments of `vllm serve` were found in {root}; the way this release declares them is "
            "not known yet (knowledge/sync/arguments.py)."
        )
    fields = _fields(flags, tree)
    report("environment variables")
    environment = read_environment(tree)
    report("metrics")
    metrics = read_metrics(tree)
    if len(metrics) < _FEWEST_METRICS:
        raise SourceError(f"Only {len(metrics)} metrics were found in {root} (knowledge/sync/metrics.py).")
    report("messages")
    texts = read_messages(tree)
    if len(texts.templates) < _FEWEST_TEXTS:
        raise SourceError(f"Only {len(texts.templates)} messages were found in {root} (knowledge/sync/messages.py).")
    return Release(flags, fields, environment, metrics, texts, _stated(tree))


def _fields(flags: Snapshot, tree: SourceTree) -> Snapshot:
    """Class -> the keys of its JSON, for every class that an argument takes."""
    evaluate = Evaluator(tree)
    found: Snapshot = {}
    for entry in flags.values():
        name = entry.get("config")
        if name is None or name in found:
            continue
        cls = _class(name, tree)
        if cls is not None:
            found[name] = {"fields": field_names(cls, evaluate)}
    return found


def _class(name: str, tree: SourceTree) -> ClassRef | None:
    module = tree.module("vllm.engine.arg_utils")
    found = tree.find(module, name) if module is not None else None
    if found is None:
        config = tree.module("vllm.config")
        found = tree.find(config, name) if config is not None else None
    if isinstance(found, Named) and isinstance(found.node, ast.ClassDef):
        return ClassRef(found.module, found.node)
    return None


def _stated(tree: SourceTree) -> str | None:
    for name in ("vllm/_version.py", "vllm/version.py"):
        found = _VERSION.search(tree.text(name))
        if found:
            return found.group(1)
    return None
