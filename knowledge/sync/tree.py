"""The Python files of one release as parsed modules, and names followed through imports."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: A source file larger than this is generated data, not something that declares arguments.
MOST_SOURCE_BYTES = 4_000_000
#: Files of a release that are looked at; vLLM 0.33.0 has 3,000.
MOST_FILES = 20_000
#: Following a name through more modules than this is a circle.
_MOST_HOPS = 12


class SourceError(Exception):
    """The folder does not hold a release's sources; the message says what is missing."""


@dataclass(slots=True)
class Module:
    """One parsed file. ``names`` are its top-level names; ``late`` those that exist for type checkers only."""

    name: str
    path: Path
    body: ast.Module
    is_package: bool
    names: dict[str, ast.AST | Imported] = field(default_factory=dict)
    late: dict[str, ast.AST | Imported] = field(default_factory=dict)

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Imported:
    """A name that an import binds: ``attribute`` of ``module``, or the module itself."""

    module: str
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """Where a name is defined: a class, a function, or the expression it is assigned."""

    module: Module
    node: ast.AST


class SourceTree:
    """The sources of one release below ``root`` (the folder that holds the package ``vllm``).

    Raises :class:`SourceError` where there is no such package.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / "vllm" / "__init__.py").is_file():
            raise SourceError(f"{root} holds no package vllm (vllm/__init__.py is missing).")
        self._modules: dict[str, Module | None] = {}

    def files(self, *folders: str) -> Iterator[Path]:
        """Every Python file below ``vllm`` (or below these of its folders), in a stable order; links are not followed."""
        seen = 0
        for folder in folders or ("",):
            for path in sorted((self.root / "vllm" / folder).rglob("*.py")):
                if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_SOURCE_BYTES:
                    continue
                seen += 1
                if seen > MOST_FILES:
                    raise SourceError(
                        f"{self.root} holds more than {MOST_FILES} Python files; this is no vLLM release."
                    )
                yield path

    def text(self, relative: str) -> str:
        """The text of a file, or an empty one where the release lacks it."""
        path = self.root / relative
        if not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_SOURCE_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")

    def module(self, name: str) -> Module | None:
        """The module ``name`` (dotted), or ``None`` where the release lacks it or it cannot be parsed."""
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> Module | None:
        if name.partition(".")[0] != "vllm":
            return None
        base = self.root.joinpath(*name.split("."))
        for path, is_package in ((base / "__init__.py", True), (base.with_suffix(".py"), False)):
            if not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_SOURCE_BYTES:
                continue
            body = parse(path.read_text(encoding="utf-8", errors="replace"))
            if body is None:
                return None
            module = Module(name, path, body, is_package)
            _collect(module, body.body, module.names)
            return module
        return None

    def module_of(self, path: Path) -> Module | None:
        """The module of a file below the root."""
        parts = path.relative_to(self.root).with_suffix("").parts
        return self.module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))

    def find(self, module: Module, name: str) -> Named | Module | None:
        """What ``name`` means in ``module``: followed through imports to where it is defined."""
        current, wanted = module, name
        for _ in range(_MOST_HOPS):
            found = current.names.get(wanted) or current.late.get(wanted)
            if found is None:
                return self.module(f"{current.name}.{wanted}") if current.is_package else None
            if not isinstance(found, Imported):
                return Named(current, found)
            target = self.module(found.module)
            if found.attribute is None:
                return target
            if target is None:
                return None
            inner = self.module(f"{found.module}.{found.attribute}")
            if inner is not None and found.attribute not in target.names:
                return inner
            if target is current and wanted == found.attribute:
                return inner
            current, wanted = target, found.attribute
        return None

    def find_late(self, module: Module, name: str) -> Named | None:
        """What ``name`` means to a type checker, where the running program knows less about it."""
        bound = module.late.get(name)
        if isinstance(bound, Imported) and bound.attribute is not None:
            target = self.module(bound.module)
            found = self.find(target, bound.attribute) if target is not None else None
            return found if isinstance(found, Named) else None
        return Named(module, bound) if isinstance(bound, ast.AST) else None


def parse(text: str) -> ast.Module | None:
    """The syntax tree of ``text``, or ``None`` where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _collect(module: Module, body: list[ast.stmt], into: dict[str, ast.AST | Imported]) -> None:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            into[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    into[target.id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            into[node.target.id] = node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:
                into[alias.asname or alias.name.partition(".")[0]] = Imported(
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            _import_from(module, node, into)
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" in ast.dump(node.test):
                _collect(module, node.body, module.late)
                _collect(module, node.orelse, into)
            else:
                _collect(module, node.orelse, into)
                _collect(module, node.body, into)
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                _collect(module, handler.body, into)
            _collect(module, node.body, into)
        elif isinstance(node, ast.With):
            _collect(module, node.body, into)


def _import_from(module: Module, node: ast.ImportFrom, into: dict[str, ast.AST | Imported]) -> None:
    base = node.module or ""
    if node.level:
        parts = module.package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    for alias in node.names:
        if alias.name != "*":
            into[alias.asname or alias.name] = Imported(base, alias.name)
