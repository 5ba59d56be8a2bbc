"""The Prometheus metrics of a release, as ``/metrics`` names them.

A metric is a string ``vllm:...`` that names a counter, gauge, histogram or info, either in the call that makes it or as
the key of a table of definitions. prometheus_client exposes a counter under a name that ends in ``_total`` and an info
under one that ends in ``_info``; the table holds those names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knowledge.history import Entry, Snapshot
from knowledge.sync.evaluate import Evaluator, Unknown
from knowledge.sync.tree import Module, SourceTree

_KINDS = ("counter", "gauge", "histogram", "info")
#: A file that declares metrics names one, or fills a table of definitions whose names stand elsewhere.
_MARKS = ("vllm:", "CounterMetadata(", "GaugeMetadata(", "HistogramMetadata(")
#: Files that only read metrics, or declare them for benchmarks.
_READERS = ("benchmarks/", "v1/metrics/reader.py", "entrypoints/serve/utils/orca_metrics.py")
#: Where metrics of the first engine were declared; what is left of the file in 0.11 exports nothing.
_FIRST_ENGINE = ("engine/metrics.py", "engine/metrics_types.py", "engine/async_llm_engine.py")


def read_metrics(tree: SourceTree) -> Snapshot:
    """Exposed name -> ``kind``, ``labels``, ``meaning``, ``engines``, ``hidden``."""
    evaluate = Evaluator(tree)
    found: Snapshot = {}
    first_engine = _has_first_engine(tree)
    for path in tree.files():
        relative = path.relative_to(tree.root / "vllm").as_posix()
        if relative.startswith(_READERS) or (relative in _FIRST_ENGINE and not first_engine):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if not any(word in text for word in _MARKS) or not any(kind in text.lower() for kind in _KINDS):
            continue
        module = tree.module_of(path)
        if module is None:
            continue
        for name, entry in _of_module(module, evaluate, _engine_of(relative, path)):
            known = found.get(name)
            if known is None:
                found[name] = entry
                continue
            known["engines"] = sorted({*known["engines"], *entry["engines"]})
            if entry["engines"] == ["V1"]:
                found[name] = {**known, **{k: v for k, v in entry.items() if k != "engines"}}
    return found


def _has_first_engine(tree: SourceTree) -> bool:
    """Whether the release still runs the V0 engine: its class is defined in ``vllm/engine/llm_engine.py``."""
    return "class LLMEngine" in tree.text("vllm/engine/llm_engine.py")


def _engine_of(relative: str, path: Path) -> str:
    if relative in _FIRST_ENGINE or relative.startswith(("engine/", "spec_decode/")):
        return "V0"
    return "server" if relative.startswith(("entrypoints/", "parser/")) else "V1"


def _of_module(module: Module, evaluate: Evaluator, engine: str) -> Iterator[tuple[str, Entry]]:
    for holder, node in _with_functions(module.body):
        if isinstance(node, ast.Call):
            kind = _kind(node.func)
            for name, meaning in _names_of(node, module, evaluate, holder) if kind else ():
                entry = _entry(node, kind or "", module, evaluate, holder, engine)
                yield _exposed(name, kind or ""), {**entry, **({"meaning": meaning} if meaning else {})}
        else:
            for key, value in _definitions(node):
                made = _kind(value.func) if isinstance(value, ast.Call) else None
                declared = _text_of(key, module, evaluate, holder)
                if made and declared and isinstance(value, ast.Call):
                    entry = _entry(value, made, module, evaluate, holder, engine)
                    own = [label for label in entry.get("labels", ()) if label not in _passed_labels(module)]
                    yield _exposed(declared, made), {**entry, "labels": [*_passed_labels(module), *own]}


def _definitions(node: ast.AST) -> list[tuple[ast.AST | None, ast.expr]]:
    """``{NAME: Metadata(...)}`` and ``definitions[NAME] = Metadata(...)``."""
    if isinstance(node, ast.Dict):
        return list(zip(node.keys, node.values, strict=True))
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        return [(node.targets[0].slice, node.value)]
    return []


def _with_functions(root: ast.AST) -> Iterator[tuple[list[ast.AST], ast.AST]]:
    """Every node with what it stands in, outermost first."""
    stack: list[tuple[list[ast.AST], ast.AST]] = [([], root)]
    while stack:
        holders, node = stack.pop()
        yield holders, node
        inner = (
            [*holders, node]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If, ast.For, ast.With))
            else holders
        )
        stack.extend((inner, child) for child in ast.iter_child_nodes(node))


def _kind(function: ast.AST) -> str | None:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    lowered = name.lower()
    return next((kind for kind in _KINDS if kind in lowered), None)


def _names_of(
    node: ast.Call, module: Module, evaluate: Evaluator, holders: list[ast.AST]
) -> list[tuple[str, str | None]]:
    """The metric that a call makes, or those of the list of (name, meaning) that it is called for in turn."""
    given = next((k.value for k in node.keywords if k.arg == "name"), node.args[0] if node.args else None)
    name = _text_of(given, module, evaluate, holders)
    if name is not None:
        return [(name, None)]
    function = next((h for h in reversed(holders) if isinstance(h, ast.FunctionDef)), None)
    if not isinstance(given, ast.Name) or function is None:
        return []
    rows = [part for part in ast.walk(function) if isinstance(part, ast.Tuple) and len(part.elts) > 1]
    pairs = [(evaluate(row.elts[0], module), evaluate(row.elts[1], module)) for row in rows]
    return [(name, text if isinstance(text, str) else None) for name, text in pairs if _is_name(name)]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("vllm:") and len(value) < 120


def _text_of(node: ast.AST | None, module: Module, evaluate: Evaluator, holders: list[ast.AST]) -> str | None:
    value = evaluate(node, module, _scope(holders, module, evaluate)) if node is not None else None
    return value if _is_name(value) else None


def _scope(holders: list[ast.AST], module: Module, evaluate: Evaluator) -> dict[str, Any]:
    """Names that the functions around a call assign before it, and attributes of the class as ``Class.NAME``."""
    scope: dict[str, Any] = {}
    for holder in holders:
        if not isinstance(holder, ast.FunctionDef):
            continue
        for parameter in holder.args.args:
            if parameter.arg in ("labelnames", "labels"):
                scope[parameter.arg] = _passed_labels(module)
        for node in ast.walk(holder):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = evaluate(node.value, module, scope)
                if value is None or (isinstance(value, Unknown) and node.targets[0].id in scope):
                    continue
                scope[node.targets[0].id] = value
    return scope


def _exposed(name: str, kind: str) -> str:
    if kind == "counter" and not name.endswith("_total"):
        return f"{name}_total"
    return f"{name}_info" if kind == "info" and not name.endswith("_info") else name


def _entry(
    node: ast.Call, kind: str, module: Module, evaluate: Evaluator, holders: list[ast.AST], engine: str
) -> Entry:
    given = {k.arg: k.value for k in node.keywords if k.arg}
    scope = _scope(holders, module, evaluate)
    documented = given.get("documentation", node.args[1] if len(node.args) > 1 else None)
    meaning = evaluate(documented, module, scope) if documented is not None else None
    labels = given.get("labelnames", given.get("extra_labels", node.args[2] if len(node.args) > 2 else None))
    entry: Entry = {"kind": "gauge" if kind == "info" else kind, "engines": [engine]}
    if isinstance(meaning, str):
        entry["meaning"] = " ".join(meaning.split())[:300]
    names = _labels(labels, module, evaluate, scope, holders)
    if names:
        entry["labels"] = names
    if any(isinstance(h, ast.If) and "show_hidden_metrics" in ast.unparse(h.test) for h in holders):
        entry["hidden"] = True
    return entry


def _labels(
    node: ast.AST | None, module: Module, evaluate: Evaluator, scope: dict[str, Any], holders: list[ast.AST]
) -> list[str]:
    value = evaluate(node, module, scope) if node is not None else None
    if isinstance(value, list):
        plain = [item for item in value if isinstance(item, str)]
        if len(plain) == len(value):
            return plain
    attributes = _attributes(holders, module, evaluate)
    if isinstance(node, (ast.List, ast.Tuple)):
        named = [
            attributes.get(part.attr) if isinstance(part, ast.Attribute) else evaluate(part, module, scope)
            for part in node.elts
        ]
        return [name for name in named if isinstance(name, str)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        both = (node.left, node.right)
        return [name for part in both for name in _labels(part, module, evaluate, scope, holders)]
    return []


def _attributes(holders: list[ast.AST], module: Module, evaluate: Evaluator) -> dict[str, Any]:
    """``self.name = "text"`` anywhere in the class around a call."""
    cls = next((h for h in holders if isinstance(h, ast.ClassDef)), None)
    found: dict[str, Any] = {}
    for node in ast.walk(cls) if cls is not None else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            found.setdefault(node.targets[0].attr, evaluate(node.value, module))
    return found


def _passed_labels(module: Module) -> list[str]:
    """The labels that the engine's main logger passes on (``PrometheusStatLogger`` in both generations)."""
    return ["model_name", "engine"] if module.name.startswith(("vllm.v1", "vllm.distributed")) else ["model_name"]
