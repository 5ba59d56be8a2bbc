"""The texts that a release can print: log calls, exceptions, and answers to refused requests, as templates.

A template is compared by its fixed words: what is inserted (``{name}``, ``%s``, ``%.2f``) counts as one place, and white
space as one blank, because formats and names of variables change while the message stays.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from knowledge.sync.tree import SourceTree, parse

_LEVELS = frozenset(
    "debug info warning error exception critical warn info_once warning_once debug_once error_once".split()
)
#: Shorter texts tell nothing; longer ones are whole help texts.
_SHORTEST, _LONGEST = 12, 2_000
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*[\d*]*(?:\.[\d*]+)?[sdrfgxXeEiuc]")
_FOLDERS_OF_MODELS = ("model_executor/models/", "transformers_utils/configs/", "benchmarks/", "third_party/")
_SHARED_BY_MODELS = (
    "utils.py",
    "registry.py",
    "interfaces.py",
    "adapters.py",
    "module_mapping.py",
    "base.py",
    "vision.py",
)


@dataclass(frozen=True, slots=True)
class Template:
    """One text of a release: its ``level`` (INFO, WARNING, ..., ``exception:ValueError``, ``text`` for others)."""

    text: str
    level: str
    file: str

    @property
    def key(self) -> str:
        return key_of(self.text)


def key_of(template: str) -> str:
    """What two spellings of one text have in common: words, with ``{}`` for whatever is inserted."""
    plain = template.replace("{{", "\x01").replace("}}", "\x02")
    plain = re.sub(r"\{[^{}]*\}", "{}", plain).replace("\x01", "{").replace("\x02", "}")
    plain = _PERCENT.sub("{}", plain).replace("%%", "%")
    return " ".join(re.sub(r"(?:\{\}\s*)+", "{} ", plain).split())


@dataclass(frozen=True, slots=True)
class Texts:
    """What a release can say: whole templates, and every piece of text of its sources for messages made of several."""

    templates: list[Template]
    pieces: str
    keys: frozenset[str]

    def says(self, template: str, siblings: Iterable[str] = ()) -> bool | None:
        """Whether the release can print ``template``; ``None`` where its fixed parts are too short to tell.

        A template that is not there as a whole may be built from pieces. It is not when a sibling, another spelling
        of the same message, is there as a whole and holds those pieces.
        """
        if key_of(template) in self.keys:
            return True
        parts = fixed_parts(template)
        whole = [key for key in map(key_of, siblings) if key in self.keys]
        if parts and any(all(part in key for part in parts) for key in whole):
            return False
        return all(part in self.pieces for part in parts) if parts else None


def fixed_parts(template: str) -> list[str]:
    """The longest fixed parts of a template, those long enough to be looked for.

    Sentences are parts of their own: a source that joins a message from several pieces joins whole sentences.
    """
    parts = [part.strip() for part in re.split(r"\{\}|(?<=[.!?]) ", key_of(template))]
    return sorted((part for part in parts if len(part) >= _SHORTEST), key=len)[-4:]


def read_messages(tree: SourceTree) -> Texts:
    """Every text that the sources log, raise or return as an error, each once, and all their other text."""
    found: dict[tuple[str, str], Template] = {}
    pieces: set[str] = set()
    for path in tree.files():
        relative = path.relative_to(tree.root).as_posix()
        if _is_aside(relative.removeprefix("vllm/")):
            continue
        body = parse(path.read_text(encoding="utf-8", errors="replace"))
        if body is None:
            continue
        for node in ast.walk(body):
            if isinstance(node, ast.Constant):
                if isinstance(node.value, str) and len(node.value) >= _SHORTEST:
                    pieces.add(" ".join(node.value.split()))
            else:
                for template in _of_node(node, relative):
                    found.setdefault((template.key, template.level), template)
    return Texts(list(found.values()), "\n".join(sorted(pieces)), frozenset(key for key, _ in found))


def _is_aside(relative: str) -> bool:
    """Files of single models, whose texts nobody tracks; the helpers that all models share are read."""
    if not relative.startswith(_FOLDERS_OF_MODELS):
        return False
    return not relative.startswith("model_executor/models/") or relative.rpartition("/")[2] not in _SHARED_BY_MODELS


def _of_node(node: ast.AST, file: str) -> Iterator[Template]:
    if isinstance(node, ast.Call):
        level = _level(node)
        first = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "message"), None)
        text = _template(first) if level and first is not None else None
        if text and _PERCENT.search(text) and len(node.args) > 1:
            text = _filled(text, [_name(argument) for argument in node.args[1:]])
        if level and text:
            yield Template(text, level, file)
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        name = node.exc.func.attr if isinstance(node.exc.func, ast.Attribute) else getattr(node.exc.func, "id", "")
        text = _template(node.exc.args[0])
        if text:
            yield Template(text, f"exception:{name}", file)
    elif isinstance(node, (ast.Assign, ast.Return)) and isinstance(
        node.value, (ast.JoinedStr, ast.Constant, ast.BinOp)
    ):
        text = _template(node.value)
        if text and " " in text:
            yield Template(text, "text", file)


def _level(node: ast.Call) -> str | None:
    function = node.func
    if not isinstance(function, ast.Attribute):
        name = getattr(function, "id", "")
        return "text" if name in ("create_error_response", "print") else None
    holder = function.value.attr if isinstance(function.value, ast.Attribute) else getattr(function.value, "id", "")
    if function.attr in _LEVELS and "log" in holder.lower():
        plain = function.attr.removesuffix("_once").upper()
        return {"WARN": "WARNING", "EXCEPTION": "ERROR", "CRITICAL": "ERROR"}.get(plain, plain)
    if function.attr == "warn" and holder == "warnings":
        return "WARNING"
    return "text" if function.attr in ("create_error_response", "append", "error", "exit") else None


def _template(node: ast.AST) -> str | None:
    text = _pieces(node)
    return text if text is not None and _SHORTEST <= len(text) <= _LONGEST else None


def _pieces(node: ast.AST, formatted: bool = False) -> str | None:
    """The template that an expression builds; ``formatted`` says that braces in its texts are places already."""
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, str):
            return None
        return node.value if formatted else node.value.replace("{", "{{").replace("}", "}}")
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            if isinstance(value, ast.Constant):
                parts.append(str(value.value).replace("{", "{{").replace("}", "}}"))
            elif isinstance(value, ast.FormattedValue):
                parts.append("{" + _name(value.value) + "}")
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _pieces(node.left, formatted), _pieces(node.right, formatted)
        return None if left is None and right is None else (left or "{value}") + (right or "{value}")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        left = _pieces(node.left)
        return _filled(left, []) if left is not None else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "strip"):
        return _pieces(node.func.value, node.func.attr == "format")
    return None


def _filled(text: str, names: list[str]) -> str:
    """``%s`` and its like as places, named after what is inserted where that is known."""
    left = iter(names)
    return _PERCENT.sub(lambda _: "{" + next(left, "value") + "}", text).replace("%%", "%")


def _name(node: ast.AST) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name if name.isidentifier() else "value"
