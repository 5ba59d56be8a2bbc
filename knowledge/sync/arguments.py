"""The arguments of ``vllm serve``: walks what builds the parser, in every generation of that machinery.

0.4 to 0.8 call ``parser.add_argument`` by hand for each argument; since 0.8.3 arguments come from the fields of
configuration classes (:mod:`knowledge.sync.fields`), the frontend's since 0.10. The walk follows calls that take the
parser, keeps dictionaries of settings, and takes both branches of a test that it cannot decide.
"""

from __future__ import annotations

import ast
import contextlib
import re
from dataclasses import dataclass, field
from typing import Any

from knowledge.history import Entry, Snapshot
from knowledge.sync.evaluate import ClassRef, Evaluator, FunctionRef, Member, Outside, Unknown, bind
from knowledge.sync.fields import HUMAN, JSON, JSON_OR_TEXT, FieldRules, known, source_of
from knowledge.sync.tree import Module, Named, SourceTree

_MOST_CALLS = 400
_MOST_DEPTH = 12
#: Where ``make_arg_parser`` has lived: 0.4 to 0.28, 0.29 to 0.32, 0.33 on; and where the commands are.
_MAKERS = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
_COMMANDS = ("vllm.entrypoints.cli.serve", "vllm.scripts")
_PARSERS = ("vllm/utils/argparse_utils.py", "vllm/utils/__init__.py", "vllm/utils.py")
_JSON_PARSERS = ("json.loads", "nullable_kvs", "from_cli", "model_validate_json", "validate_json", "parse_dataclass")
_INSTEAD = re.compile(r"(?:[Uu]se|favor of|replaced by)[^.]{0,20}?[`'\"]*(--[a-z][a-z0-9-]*(?:\.[a-z_]+)?)")
_HUMAN_PARSERS = ("human_readable_int", "human_readable_int_or_auto")


@dataclass(slots=True)
class Parser:
    """Collects what is added; argument groups share their parser."""

    added: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)


class _Returned(Exception):  # noqa: N818  (a way out of a walk, no error)
    def __init__(self, value: Any) -> None:
        self.value = value


class _Walker:
    """Executes function bodies as far as they are about parsers and their settings."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self.evaluate = Evaluator(tree)
        self.evaluate.call_hook = self.call
        self.rules = FieldRules(tree.text("vllm/engine/arg_utils.py"), self.evaluate)
        self.main: Parser | None = None
        self._calls = 0
        self._depth = 0

    def call(self, function: FunctionRef, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A call of one of the release's functions: followed when it gets a parser or a dictionary of settings."""
        name = getattr(function.node, "name", "")
        if name in ("get_kwargs", "_compute_kwargs") and args and isinstance(args[0], ClassRef):
            return self.rules.of(args[0])
        if name in ("optional_type", "parse_type") and args:
            return args[0]
        concerned = any(isinstance(value, (Parser, dict)) for value in (*args, *kwargs.values()))
        if isinstance(function.node, ast.Lambda) or not concerned:
            return self.evaluate.body_value(function, args, name or "lambda")
        if self._calls >= _MOST_CALLS or self._depth >= _MOST_DEPTH:
            return Unknown(name)
        self._calls += 1
        self._depth += 1
        try:
            self.block(function.node.body, function.module, self._parameters(function, args, kwargs))
        except _Returned as result:
            return result.value
        finally:
            self._depth -= 1
        return None

    def _parameters(self, function: FunctionRef, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        node = function.node
        names = [a.arg for a in node.args.args]
        decorators = {getattr(d, "id", "") for d in getattr(node, "decorator_list", ())}
        scope: dict[str, Any] = {"__owner__": function.owner}
        for parameter, default in zip(reversed(names), reversed(node.args.defaults), strict=False):
            scope[parameter] = self.evaluate(default, function.module)
        if names and names[0] in ("self", "cls") and "staticmethod" not in decorators:
            scope[names.pop(0)] = function.owner or Unknown("self")
        scope.update(zip(names, args, strict=False))
        scope.update(kwargs)
        return scope

    # -- statements -----------------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt], module: Module, scope: dict[str, Any]) -> None:
        for node in body:
            self.statement(node, module, scope)

    def statement(self, node: ast.stmt, module: Module, scope: dict[str, Any]) -> None:
        if isinstance(node, ast.Return):
            raise _Returned(self.value(node.value, module, scope))
        if isinstance(node, ast.Expr):
            self.value(node.value, module, scope)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            value = self.value(node.value, module, scope)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._assign(target, value, module, scope)
        elif isinstance(node, ast.AugAssign):
            pass  # settings are only added to in their help texts
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Subscript):
                    holder, key = self._place(target, module, scope)
                    if isinstance(holder, dict):
                        holder.pop(key, None)
        elif isinstance(node, ast.If):
            test = self.value(node.test, module, scope)
            if isinstance(test, (Unknown, Outside)) or test:
                self.block(node.body, module, scope)
            if isinstance(test, (Unknown, Outside)) or not test:
                self.block(node.orelse, module, scope)
        elif isinstance(node, ast.For):
            self._loop(node, module, scope)
        elif isinstance(node, (ast.With, ast.Try)):
            self.block(node.body, module, scope)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, module, scope)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own = FunctionRef(module, node) if isinstance(node, ast.FunctionDef) else ClassRef(module, node)
            scope[node.name] = own

    def _loop(self, node: ast.For, module: Module, scope: dict[str, Any]) -> None:
        try:
            items = self.evaluate.items(self.value(node.iter, module, scope))
        except TypeError:
            return
        for item in items:
            scope.update(bind(node.target, list(item) if isinstance(item, tuple) else item))
            self.block(node.body, module, scope)

    def _import(self, node: ast.Import | ast.ImportFrom, module: Module, scope: dict[str, Any]) -> None:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm"):
            for alias in node.names:
                target = self.tree.module(node.module)
                found = self.tree.find(target, alias.name) if target is not None else None
                scope[alias.asname or alias.name] = self.evaluate.named(found, alias.name)

    def _assign(self, target: ast.AST, value: Any, module: Module, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Subscript):
            holder, key = self._place(target, module, scope)
            if isinstance(holder, dict) and not isinstance(key, Unknown):
                holder[key] = value
        else:
            scope.update(bind(target, value))

    def _place(self, target: ast.Subscript, module: Module, scope: dict[str, Any]) -> tuple[Any, Any]:
        return self.value(target.value, module, scope), self.value(target.slice, module, scope)

    # -- expressions ----------------------------------------------------------------------------------------------

    def value(self, node: ast.AST | None, module: Module, scope: dict[str, Any]) -> Any:
        """The value of an expression; calls on parsers and settings are carried out."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            done, value = self._method(node, node.func, module, scope)
            if done:
                return value
        return self.evaluate(node, module, scope)

    def _method(self, node: ast.Call, func: ast.Attribute, module: Module, scope: dict[str, Any]) -> tuple[bool, Any]:
        owner = self.value(func.value, module, scope)
        if isinstance(owner, Parser):
            return True, self._on_parser(owner, node, func.attr, module, scope)
        args = [self.value(part, module, scope) for part in node.args if not isinstance(part, ast.Starred)]
        if isinstance(owner, (dict, list)) and func.attr in ("update", "pop", "append", "remove", "setdefault"):
            kwargs = {k.arg: self.value(k.value, module, scope) for k in node.keywords if k.arg}
            try:
                return True, getattr(owner, func.attr)(*args, **kwargs)
            except (KeyError, ValueError, TypeError):
                return True, None
        if func.attr == "add_parser":
            named = args[0] if args else None
            parser = Parser()
            if named == "serve" or ast.unparse(node.args[0]) == "self.name":
                self.main = parser
            return True, parser
        if isinstance(func.value, ast.Call) and getattr(func.value.func, "id", "") == "super":
            own = scope.get("__owner__")
            if isinstance(own, ClassRef):
                for base in self.evaluate.bases(own)[1:]:
                    found = next((n for n in base.node.body if getattr(n, "name", "") == func.attr), None)
                    if isinstance(found, ast.FunctionDef):
                        return True, self.call(FunctionRef(base.module, found, base), args, {})
            return True, None
        if isinstance(owner, ClassRef):
            method = self.evaluate.class_attribute(owner, func.attr)
            if isinstance(method, FunctionRef):
                kwargs = {k.arg: self.value(k.value, module, scope) for k in node.keywords if k.arg}
                return True, self.call(method, args, kwargs)
        return False, None

    def _on_parser(self, owner: Parser, node: ast.Call, name: str, module: Module, scope: dict[str, Any]) -> Any:
        if name in ("add_argument_group", "add_mutually_exclusive_group"):
            return owner
        if name != "add_argument":
            return None
        names: list[Any] = []
        for part in node.args:
            if isinstance(part, ast.Starred):
                found = self.value(part.value, module, scope)
                names.extend(found if isinstance(found, list) else [])
            else:
                names.append(self.value(part, module, scope))
        settings: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value, module, scope)
            if keyword.arg is not None:
                settings[keyword.arg] = value
                if keyword.arg == "type":
                    settings["type_text"] = ast.unparse(keyword.value)[:200]
            elif isinstance(value, dict):
                settings.update(value)
        owner.added.append(([name for name in names if isinstance(name, str)], settings))
        return None


# -- from what was added to the table -----------------------------------------------------------------------------


def read_arguments(tree: SourceTree) -> Snapshot:
    """Every argument of ``vllm serve`` of a release, as entries of the table of flags.

    Raises nothing: a release without a parser that is found gives an empty table, which the caller reports.
    """
    walker = _Walker(tree)
    parser = _main_parser(walker)
    dotted = any("dict_args" in tree.text(path) for path in _PARSERS)
    found: Snapshot = {}
    for names, settings in parser.added:
        flags = [name for name in names if name.startswith("-")]
        if not flags or settings.get("action") in ("help", "version"):
            continue
        long = [name for name in flags if name.startswith("--")]
        main = long[0] if long else flags[0]
        short = [name for name in flags if not name.startswith("--")]
        found[main] = _entry(main, [*long[1:], *short], settings)
        if dotted and found[main]["kind"] == "json":
            found[main]["dotted"] = True
    return found


def _main_parser(walker: _Walker) -> Parser:
    """The parser of ``serve`` as its command builds it, or as ``make_arg_parser`` does in releases without one."""
    for name in _COMMANDS:
        module = walker.tree.module(name)
        if module is None:
            continue
        for node in ast.walk(module.body):
            if isinstance(node, ast.FunctionDef) and node.name in ("subparser_init", "main"):
                with contextlib.suppress(_Returned):
                    walker.block(node.body, module, {"self": Unknown("self")})
                if walker.main is not None and len(walker.main.added) > 20:
                    return walker.main
    for name in _MAKERS:
        module = walker.tree.module(name)
        found = walker.tree.find(module, "make_arg_parser") if module is not None else None
        if isinstance(found, Named) and isinstance(found.node, ast.FunctionDef):
            parser = Parser()
            if not found.node.args.args:  # 0.4: it makes the parser itself
                scope = {"FlexibleArgumentParser": Outside("parser"), "argparse": Outside("argparse")}
                return _own_parser(walker, found, scope)
            walker.call(FunctionRef(found.module, found.node), [parser], {})
            return parser
    return Parser()


def _own_parser(walker: _Walker, found: Named, scope: dict[str, Any]) -> Parser:
    parser = Parser()
    for statement in getattr(found.node, "body", ()):
        if isinstance(statement, ast.Assign) and "ArgumentParser(" in ast.unparse(statement.value):
            scope.update(bind(statement.targets[0], parser))
            continue
        try:
            walker.statement(statement, found.module, scope)
        except _Returned:
            break
    return parser


def _entry(main: str, aliases: list[str], settings: dict[str, Any]) -> Entry:
    entry: Entry = {"kind": _kind(settings)}
    dest = settings.get("dest")
    if isinstance(dest, str) and dest != main.lstrip("-").replace("-", "_"):
        entry["python"] = dest
    if aliases:
        entry["aliases"] = sorted(aliases)
    _default(entry, settings)
    choices = settings.get("choices") or settings.get("metavar")
    values = [item.value if isinstance(item, Member) else item for item in choices or ()] if _listed(choices) else None
    if values is not None and all(known(value) for value in values):
        entry["choices"] = sorted({str(v): v for v in values if v is not None}.values(), key=str)
        if entry["kind"] in ("str", "int"):
            entry["kind"] = "choice"
        if not _listed(settings.get("choices")):
            entry["open_choices"] = True
    action = settings.get("action")
    if isinstance(action, Outside) and action.name.endswith("BooleanOptionalAction"):
        entry["no_form"] = f"--no-{main[2:]}"
    if isinstance(action, ClassRef) and action.name == "StoreBoolean":
        entry["takes_literal_bool"] = True
    if entry["kind"] == "list":
        element = _named_type(settings.get("type"))
        entry["element"] = element if element in ("int", "float") else "str"
        if action == "append":
            entry["repeated"] = True
    if _type_name(settings) in _HUMAN_PARSERS:
        entry["accepts_human"] = True
    if isinstance(settings.get("config"), str):
        entry["config"] = settings["config"]
    if settings.get("deprecated") is True or _says_deprecated(settings.get("help")):
        entry["deprecated"] = True
        instead = _INSTEAD.search(str(settings.get("help") or ""))
        if instead:
            entry["instead"] = instead.group(1)
    return entry


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _says_deprecated(text: Any) -> bool:
    return isinstance(text, str) and (
        text.lstrip("[*_ ").lower().startswith("deprecated") or " is deprecated" in text[:80] or "(DEPRECATED" in text
    )


def _default(entry: Entry, settings: dict[str, Any]) -> None:
    value = settings.get("default")
    if isinstance(value, Member):
        value = value.value
    if value is None and settings.get("action") == "store_true":
        value = False
    if isinstance(value, list):
        value = [item.value if isinstance(item, Member) else item for item in value]
    if isinstance(value, Outside) or value is None:
        return
    if known(value):
        entry["default"] = value
    elif source_of(value):
        entry["default_from"] = source_of(value)


def _kind(settings: dict[str, Any]) -> str:
    action, kind = settings.get("action"), settings.get("type")
    if action in ("store_true", "store_false") or (isinstance(action, ClassRef) and action.name == "StoreBoolean"):
        return "bool"
    if isinstance(action, Outside) and action.name.endswith("BooleanOptionalAction"):
        return "bool"
    if settings.get("nargs") == "?" and "const" in settings:
        return "optional-value"
    if settings.get("nargs") in ("+", "*") or isinstance(settings.get("nargs"), int) or action == "append":
        return "list"
    if kind in (JSON, JSON_OR_TEXT) or _type_name(settings) in _JSON_PARSERS:
        return "json"
    if kind == HUMAN or _type_name(settings) in _HUMAN_PARSERS:
        return "int"
    named = _named_type(kind)
    return named if named in ("int", "float") else "str"


def _named_type(kind: Any) -> str:
    return kind.name if isinstance(kind, Outside) else ""


def _type_name(settings: dict[str, Any]) -> str:
    kind = settings.get("type")
    if isinstance(kind, FunctionRef):
        return str(getattr(kind.node, "name", "lambda"))
    if isinstance(kind, Outside):
        return kind.name
    text = str(settings.get("type_text", ""))
    return text.rpartition(".")[2].rstrip(")") if isinstance(kind, (Unknown, ClassRef)) else text
