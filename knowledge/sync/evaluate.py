"""What an expression of the sources is worth, as far as the text alone tells.

Values are Python's own (numbers, strings, lists, dictionaries) where they are known; classes, functions and modules
of the release are references; everything else is :class:`Unknown` and keeps its source text. Environment variables
are taken as unset, since defaults are asked for.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from knowledge.sync.tree import Imported, Module, Named, SourceTree

_MOST_DEPTH = 40
_MOST_ITEMS = 5_000
_LONGEST = 20_000
_BINARY: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitOr: operator.or_, ast.LShift: operator.lshift,
}  # fmt: skip
_COMPARE: Mapping[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b,
}  # fmt: skip
#: Methods of plain values that may be called: they look, or make a new value of bounded size.
_METHODS = frozenset(
    "get keys values items lower upper strip lstrip rstrip split splitlines replace startswith endswith removeprefix "
    "removesuffix join union copy title isdigit".split()
)
_ENUMS = ("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that only running the code would tell."""

    text: str


@dataclass(frozen=True, slots=True)
class ClassRef:
    """A class of the release."""

    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A function of the release, or one of its lambdas; ``owner`` is the class of a method."""

    module: Module
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    owner: ClassRef | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """Something of another library, by its dotted name: ``json.loads``, ``argparse.BooleanOptionalAction``."""

    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an enumeration."""

    name: str
    value: Any


class Evaluator:
    """Evaluates expressions of one release. ``scope`` holds the local names of the place that is looked at."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self._depth = 0
        #: Called for calls of the release's own functions; set by those who walk function bodies.
        self.call_hook: Callable[[FunctionRef, list[Any], dict[str, Any]], Any] | None = None

    def __call__(self, node: ast.AST | None, module: Module, scope: Mapping[str, Any] | None = None) -> Any:
        """The value of ``node``; :class:`Unknown` where it cannot be told. Never raises."""
        if node is None:
            return None
        if self._depth > _MOST_DEPTH:
            return Unknown(_text(node))
        self._depth += 1
        try:
            method = getattr(self, f"_{type(node).__name__.lower()}", None)
            return method(node, module, scope or {}) if method else Unknown(_text(node))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError):
            return Unknown(_text(node))
        finally:
            self._depth -= 1

    # -- names ----------------------------------------------------------------------------------------------------

    def named(self, found: Named | Module | None, text: str) -> Any:
        """The value of a definition."""
        if isinstance(found, Module):
            return found
        if found is None:
            return Unknown(text)
        if isinstance(found.node, ast.ClassDef):
            return ClassRef(found.module, found.node)
        if isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return FunctionRef(found.module, found.node)
        return self(found.node, found.module)

    def _name(self, node: ast.Name, module: Module, scope: Mapping[str, Any]) -> Any:
        if node.id in scope:
            return scope[node.id]
        bound = module.names.get(node.id) or module.late.get(node.id)
        if isinstance(bound, Imported) and not bound.module.startswith("vllm"):
            return Outside(f"{bound.module}.{bound.attribute}" if bound.attribute else bound.module)
        found = self.tree.find(module, node.id)
        if found is not None:
            return self.named(found, node.id)
        return Outside(node.id) if node.id in _BUILTINS else Unknown(node.id)

    def _attribute(self, node: ast.Attribute, module: Module, scope: Mapping[str, Any]) -> Any:
        base = self(node.value, module, scope)
        if isinstance(base, Outside):
            name = f"{base.name}.{node.attr}"
            return _CONSTANTS.get(name, Outside(name))
        if isinstance(base, Module):
            return self.named(self.tree.find(base, node.attr), _text(node))
        if isinstance(base, ClassRef):
            return self.class_attribute(base, node.attr)
        if isinstance(base, Member) and node.attr in ("value", "name"):
            return base.value if node.attr == "value" else base.name
        return Unknown(_text(node))

    def bases(self, cls: ClassRef) -> list[ClassRef]:
        """The class and its ancestors that belong to the release, nearest first."""
        order: list[ClassRef] = []
        queue = [cls]
        while queue and len(order) < 30:
            current = queue.pop(0)
            order.append(current)
            found = [self(base, current.module) for base in current.node.bases]
            queue.extend(base for base in found if isinstance(base, ClassRef) and base not in order)
        return order

    def is_enum(self, cls: ClassRef) -> bool:
        """Whether the class is an enumeration, also by a base of another library."""
        names = {_last(base) for ref in self.bases(cls) for base in ref.node.bases}
        return bool(names & set(_ENUMS))

    def members(self, cls: ClassRef) -> list[Member]:
        """The members of an enumeration in order; ``auto()`` in a text enumeration is the lower-case name."""
        found = []
        for node in cls.node.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if not name.startswith("_"):
                    value = self(node.value, cls.module)
                    if isinstance(node.value, ast.Call) and _last(node.value.func) == "auto":
                        value = name.lower()
                    found.append(Member(name, value))
        return found

    def class_attribute(self, cls: ClassRef, name: str) -> Any:
        """The value of ``Class.name``: a member, a default, a method, or what a base class has."""
        if self.is_enum(cls):
            if name == "__members__":
                return {member.name: member for member in self.members(cls)}
            for member in self.members(cls):
                if member.name == name:
                    return member
        for ref in self.bases(cls):
            for node in ref.node.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                    return self.field_default(node.value, ref.module)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                    return self.field_default(node.value, ref.module)
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return FunctionRef(ref.module, node, cls)
        return Unknown(f"{cls.name}.{name}")

    def field_default(self, node: ast.AST | None, module: Module) -> Any:
        """The default of a dataclass field: ``field(default_factory=list)`` is an empty list."""
        if isinstance(node, ast.Call) and _last(node.func) in ("field", "Field"):
            given = {k.arg: k.value for k in node.keywords if k.arg}
            if "default" in given:
                return self(given["default"], module)
            if "default_factory" in given:
                return self.call(self(given["default_factory"], module), [], {}, _text(given["default_factory"]) + "()")
            return self(node.args[0], module) if node.args else None
        return self(node, module)

    # -- expressions ----------------------------------------------------------------------------------------------

    def _constant(self, node: ast.Constant, module: Module, scope: Mapping[str, Any]) -> Any:
        return node.value

    def _list(self, node: ast.List | ast.Tuple | ast.Set, module: Module, scope: Mapping[str, Any]) -> Any:
        items: list[Any] = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                items.extend(self.items(self(element.value, module, scope)))
            else:
                items.append(self(element, module, scope))
        return items

    _tuple = _set = _list

    def _dict(self, node: ast.Dict, module: Module, scope: Mapping[str, Any]) -> Any:
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                inner = self(value, module, scope)
                if not isinstance(inner, dict):
                    return Unknown(_text(node))
                found.update(inner)
            else:
                found[_key(self(key, module, scope))] = self(value, module, scope)
        return found

    def _joinedstr(self, node: ast.JoinedStr, module: Module, scope: Mapping[str, Any]) -> Any:
        pieces = [
            value.value if isinstance(value, ast.Constant) else self(value.value, module, scope)  # type: ignore[attr-defined]
            for value in node.values
        ]
        if any(isinstance(piece, (Unknown, Outside)) for piece in pieces):
            return Unknown(_text(node))
        return "".join(str(piece) for piece in pieces)[:_LONGEST]

    def _unaryop(self, node: ast.UnaryOp, module: Module, scope: Mapping[str, Any]) -> Any:
        value = self(node.operand, module, scope)
        if isinstance(value, Unknown):
            return Unknown(_text(node))
        return -value if isinstance(node.op, ast.USub) else not value if isinstance(node.op, ast.Not) else +value

    def _binop(self, node: ast.BinOp, module: Module, scope: Mapping[str, Any]) -> Any:
        left, right = self(node.left, module, scope), self(node.right, module, scope)
        apply = _BINARY.get(type(node.op))
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int) and 0 <= right <= 64:
            return left**right
        if apply is None or isinstance(left, Unknown) or isinstance(right, Unknown):
            return Unknown(_text(node))
        if isinstance(node.op, ast.LShift) and right > 64:
            return Unknown(_text(node))
        if isinstance(node.op, ast.Mult) and isinstance(left, (str, list)) | isinstance(right, (str, list)):
            return Unknown(_text(node))
        return apply(left, right)

    def _boolop(self, node: ast.BoolOp, module: Module, scope: Mapping[str, Any]) -> Any:
        value: Any = None
        for part in node.values:
            value = self(part, module, scope)
            if isinstance(value, Unknown):
                return Unknown(_text(node))
            if bool(value) != isinstance(node.op, ast.And):
                return value
        return value

    def _compare(self, node: ast.Compare, module: Module, scope: Mapping[str, Any]) -> Any:
        left = self(node.left, module, scope)
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self(part, module, scope)
            if isinstance(right, Outside) and right.name == "os.environ":
                return isinstance(kind, ast.NotIn)  # variables are taken as unset
            if isinstance(left, Unknown) or isinstance(right, Unknown):
                return Unknown(_text(node))
            if not _COMPARE[type(kind)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp, module: Module, scope: Mapping[str, Any]) -> Any:
        test = self(node.test, module, scope)
        if isinstance(test, Unknown):
            return Unknown(_text(node))
        return self(node.body if test else node.orelse, module, scope)

    def _lambda(self, node: ast.Lambda, module: Module, scope: Mapping[str, Any]) -> Any:
        return FunctionRef(module, node)

    def _subscript(self, node: ast.Subscript, module: Module, scope: Mapping[str, Any]) -> Any:
        base = self(node.value, module, scope)
        key = self(node.slice, module, scope)
        if isinstance(base, (list, dict, str)) and not isinstance(key, Unknown):
            return base[_key(key) if isinstance(base, dict) else key]
        return Unknown(_text(node))

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, module: Module, scope: Any) -> Any:
        if len(node.generators) != 1:
            return Unknown(_text(node))
        loop = node.generators[0]
        found = []
        for item in self.items(self(loop.iter, module, scope)):
            inner = {**scope, **bind(loop.target, item)}
            tests = [self(test, module, inner) for test in loop.ifs]
            if any(isinstance(test, Unknown) for test in tests):
                return Unknown(_text(node))
            if all(tests):
                found.append(self(node.elt, module, inner))
        return found

    _setcomp = _generatorexp = _listcomp

    def items(self, value: Any) -> list[Any]:
        """What iterating over ``value`` gives. Raises ``TypeError`` where that is not known."""
        if isinstance(value, ClassRef) and self.is_enum(value):
            return list(self.members(value))
        if isinstance(value, (list, tuple, dict, str)):
            return list(value)[:_MOST_ITEMS]
        raise TypeError(f"{value!r} cannot be iterated")

    # -- calls ----------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, module: Module, scope: Mapping[str, Any]) -> Any:
        args: list[Any] = []
        for part in node.args:
            if isinstance(part, ast.Starred):
                args.extend(self.items(self(part.value, module, scope)))
            else:
                args.append(self(part, module, scope))
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self(keyword.value, module, scope)
            if keyword.arg is not None:
                kwargs[keyword.arg] = value
            elif isinstance(value, dict):
                kwargs.update(value)
        name = _last(node.func)
        if name == "cast" and len(args) == 2:
            return args[1]
        if name in ("get_args", "get_field"):
            found = self._typing_call(name, node, module, scope, args)
            if found is not None:
                return found
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            base = self(node.func.value, module, scope)
            if isinstance(base, (str, dict, list)):
                if any(isinstance(arg, Unknown) for arg in args):
                    return Unknown(_text(node))
                result = getattr(base, node.func.attr)(*args, **kwargs)
                return list(result) if node.func.attr in ("keys", "values", "items") else result
        return self.call(self(node.func, module, scope), args, kwargs, _text(node))

    def _typing_call(self, name: str, node: ast.Call, module: Module, scope: Any, args: list[Any]) -> Any:
        from knowledge.sync.hints import hints_of, literal_values

        if name == "get_args":
            return literal_values(hints_of(node.args[0], module, self))
        if len(args) >= 2 and isinstance(args[0], ClassRef):
            return self.class_attribute(args[0], args[1])
        return None

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any], text: str) -> Any:
        """The result of calling ``function``: builtins that are known, the environment, or the hook's answer."""
        if isinstance(function, Outside):
            known = _BUILTIN_CALLS.get(function.name)
            if function.name in ("os.getenv", "os.environ.get"):
                return args[1] if len(args) > 1 else kwargs.get("default")
            if known is None or any(isinstance(arg, (Unknown, Outside, FunctionRef)) for arg in args):
                return Unknown(text)
            if function.name in ("list", "tuple", "sorted", "set", "frozenset") and args:
                items = self.items(args[0])
                return sorted(items, key=str) if function.name == "sorted" else list(items)
            return known(*args, **kwargs)
        if isinstance(function, FunctionRef):
            if self.call_hook is not None:
                return self.call_hook(function, args, kwargs)
            return self.body_value(function, args, text)
        if isinstance(function, ClassRef) and self.is_enum(function) and args:
            return next((m for m in self.members(function) if m.value == args[0]), Unknown(text))
        return Unknown(text)

    def body_value(self, function: FunctionRef, args: list[Any], text: str) -> Any:
        """The value of a lambda, or of a function whose first ``return`` can be told."""
        node = function.node
        names = [a.arg for a in node.args.args]
        scope = dict(zip(names, args, strict=False))
        if isinstance(node, ast.Lambda):
            return self(node.body, function.module, scope)
        for statement in node.body:
            if isinstance(statement, ast.Return):
                return self(statement.value, function.module, scope)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                scope[statement.targets[0].id] = self(statement.value, function.module, scope)
            elif isinstance(statement, ast.If):
                test = self(statement.test, function.module, scope)
                branch = statement.body if test is True else statement.orelse
                if isinstance(test, Unknown):
                    return Unknown(text)
                found = next((s for s in branch if isinstance(s, ast.Return)), None)
                if found is not None:
                    return self(found.value, function.module, scope)
        return Unknown(text)


def bind(target: ast.AST, value: Any) -> dict[str, Any]:
    """The names that assigning ``value`` to ``target`` binds."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (list, tuple)):
        pairs = zip(target.elts, value, strict=False)
        return {name: inner for element, part in pairs for name, inner in bind(element, part).items()}
    return {}


def _join(*parts: str) -> str:
    return "/".join(parts)


_BUILTIN_CALLS: Mapping[str, Callable[..., Any]] = {
    "int": int, "float": float, "bool": bool, "str": str, "len": len, "min": min, "max": max, "list": list,
    "tuple": list, "set": list, "frozenset": list, "sorted": sorted, "dict": dict, "os.path.join": _join,
    "os.path.expanduser": lambda path: path,
}  # fmt: skip
#: Constants of the standard library that defaults are made of (ssl.CERT_NONE is 0 since Python 3.6).
_CONSTANTS: Mapping[str, Any] = {"ssl.CERT_NONE": 0, "ssl.CERT_OPTIONAL": 1, "ssl.CERT_REQUIRED": 2}
_BUILTINS = frozenset({*_BUILTIN_CALLS, "super", "isinstance", "hasattr", "getattr", "range", "object", "type"})


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.AST) -> str:
    try:
        return ast.unparse(node)[:300]
    except (ValueError, RecursionError):
        return "?"
