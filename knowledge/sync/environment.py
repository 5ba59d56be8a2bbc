"""The environment variables of a release: ``environment_variables`` in ``vllm/envs.py`` (there since 0.4.2)."""

from __future__ import annotations

import ast
from typing import Any

from knowledge.history import Entry, Snapshot
from knowledge.sync.evaluate import Evaluator, FunctionRef
from knowledge.sync.fields import known
from knowledge.sync.tree import Module, SourceTree

_TABLE = "environment_variables"
#: Helpers of ``vllm/envs.py`` that take (name, default, choices).
_CHOOSERS = ("env_with_choices", "env_list_with_choices", "env_set_with_choices")


def read_environment(tree: SourceTree) -> Snapshot:
    """Name -> ``default`` (what vLLM takes when the variable is unset), or ``default_from`` where that is computed."""
    module = tree.module("vllm.envs")
    table = module.names.get(_TABLE) if module is not None else None
    if module is None or not isinstance(table, ast.Dict):
        return {}
    evaluate = Evaluator(tree)
    declared = _declared(module, evaluate)
    found: Snapshot = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found[key.value] = _entry(value, module, evaluate, declared.get(key.value))
    return found


def _declared(module: Module, evaluate: Evaluator) -> dict[str, Any]:
    """The defaults that the module declares for type checkers; used where the code itself is too clever."""
    return {
        name: evaluate(node, module)
        for name, node in module.late.items()
        if isinstance(node, ast.expr) and name.upper() == name
    }


def _entry(node: ast.expr, module: Module, evaluate: Evaluator, declared: Any) -> Entry:
    entry: Entry = {}
    body: ast.expr = node.body if isinstance(node, ast.Lambda) else node
    if isinstance(body, ast.Call) and getattr(body.func, "id", "") in _CHOOSERS:
        value = evaluate(body.args[1], module) if len(body.args) > 1 else None
        choices = evaluate(body.args[2], module) if len(body.args) > 2 else None
        if isinstance(choices, list) and choices and known(choices):
            entry["choices"] = sorted(map(str, choices))
    else:
        value = evaluate(body, module)
        if isinstance(value, FunctionRef):
            value = evaluate.body_value(value, [], ast.unparse(body))
    if known(value):
        if value is not None and value != "":
            entry["default"] = value
    elif known(declared) and declared is not None:
        entry["default"] = declared
    else:
        entry["default_from"] = ast.unparse(body)[:200]
    return entry
