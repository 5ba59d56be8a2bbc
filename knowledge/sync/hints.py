"""Type annotations as sets of simple hints: what a configuration field takes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from knowledge.sync.evaluate import ClassRef, Evaluator, Member, Unknown
from knowledge.sync.tree import Module, Named

_MOST_DEPTH = 20
_PLAIN = {"bool": "bool", "int": "int", "float": "float", "str": "str"}
_GROUPS = {
    "list": "list", "List": "list", "Sequence": "list", "tuple": "tuple", "Tuple": "tuple", "set": "set", "Set": "set",
    "frozenset": "set", "dict": "dict", "Dict": "dict", "Mapping": "dict", "MutableMapping": "dict",
}  # fmt: skip
_TRANSPARENT = ("Annotated", "SkipValidation", "Required", "NotRequired", "Final", "Optional")


@dataclass(frozen=True, slots=True)
class Hint:
    """One alternative of an annotation. ``kind``: bool, int, float, str, none, literal, list, tuple, set, dict,
    dataclass, open (others than the literals too), or other. ``values`` of a literal, ``inner`` of a group, ``name`` of a class."""

    kind: str
    values: tuple[Any, ...] = ()
    inner: tuple[Hint, ...] = ()
    name: str = ""
    variadic: bool = True  # a tuple of any length


def hints_of(node: ast.AST | None, module: Module, evaluate: Evaluator, depth: int = 0) -> list[Hint]:
    """The alternatives of an annotation, followed through aliases."""
    if node is None or depth > _MOST_DEPTH:
        return []
    deeper = depth + 1
    if isinstance(node, ast.Constant):
        if node.value is None:
            return [Hint("none")]
        if isinstance(node.value, str):
            try:
                inner = ast.parse(node.value, mode="eval").body
            except (SyntaxError, ValueError):
                return [Hint("other", name=node.value[:80])]
            return hints_of(inner, module, evaluate, deeper)
        return [Hint("other")]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return hints_of(node.left, module, evaluate, deeper) + hints_of(node.right, module, evaluate, deeper)
    if isinstance(node, ast.Subscript):
        return _subscript(node, module, evaluate, deeper)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if name in _PLAIN:
        return [Hint(_PLAIN[name])]
    if name in _GROUPS and isinstance(node, ast.Name):
        return [Hint(_GROUPS[name])]
    return _named(node, name, module, evaluate, deeper)


def _named(node: ast.AST, name: str, module: Module, evaluate: Evaluator, depth: int) -> list[Hint]:
    if isinstance(node, ast.Name):
        found = evaluate.tree.find(module, node.id)
    elif isinstance(node, ast.Attribute):
        base = evaluate(node.value, module)
        found = evaluate.tree.find(base, node.attr) if isinstance(base, Module) else None
    else:
        return [Hint("other")]
    if name in module.late and name in module.names:
        # A name that type checkers know more about: any text is accepted, and these are the values that are known.
        precise = evaluate.tree.find_late(module, name)
        if precise is not None:
            if isinstance(precise.node, ast.ClassDef):
                return [_class(ClassRef(precise.module, precise.node), evaluate)]
            return [*hints_of(precise.node, precise.module, evaluate, depth), Hint("open")]
    if not isinstance(found, Named):
        return [Hint("other", name=name)]
    if isinstance(found.node, ast.ClassDef):
        return [_class(ClassRef(found.module, found.node), evaluate)]
    if isinstance(found.node, (ast.Subscript, ast.Name, ast.BinOp, ast.Attribute)):
        return hints_of(found.node, found.module, evaluate, depth)
    return [Hint("other", name=name)]


def _class(cls: ClassRef, evaluate: Evaluator) -> Hint:
    names = {
        _last(base.value if isinstance(base, ast.Subscript) else base)
        for ref in evaluate.bases(cls)
        for base in ref.node.bases
    }
    if names & {"dict", "Dict", "UserDict"}:
        return Hint("dict")
    decorated = {_last(d.func if isinstance(d, ast.Call) else d) for d in cls.node.decorator_list}
    if decorated & {"dataclass", "config"}:
        return Hint("dataclass", name=cls.name)
    return Hint("other", name=cls.name)


def _subscript(node: ast.Subscript, module: Module, evaluate: Evaluator, depth: int) -> list[Hint]:
    name = _last(node.value)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        values: list[Any] = []
        for part in parts:
            value = evaluate(part, module)
            if isinstance(value, Unknown) or not isinstance(part, (ast.Constant, ast.UnaryOp, ast.Attribute)):
                values.extend(literal_values(hints_of(part, module, evaluate, depth)))
            else:
                values.append(value.value if isinstance(value, Member) else value)
        return [Hint("literal", tuple(values))]
    if name == "Union":
        return [hint for part in parts for hint in hints_of(part, module, evaluate, depth)]
    if name == "Optional":
        return [*hints_of(parts[0], module, evaluate, depth), Hint("none")]
    if name in _TRANSPARENT:
        return hints_of(parts[0], module, evaluate, depth)
    if name in _GROUPS:
        kind = _GROUPS[name]
        inner = () if kind == "dict" else tuple(hints_of(parts[0], module, evaluate, depth))
        ellipsis = any(isinstance(part, ast.Constant) and part.value is ... for part in parts)
        return [Hint(kind, inner=inner, variadic=kind != "tuple" or ellipsis)]
    return [Hint("other", name=name)]


def literal_values(hints: list[Hint]) -> list[Any]:
    """The values of every literal among the hints."""
    return [value for hint in hints if hint.kind == "literal" for value in hint.values]


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
