"""What ``get_kwargs(Config)`` of a release makes of a configuration class: one set of argparse settings per field.

vLLM derives arguments from dataclass fields since 0.8.3 (``get_kwargs`` in ``vllm/engine/arg_utils.py``). The rules
changed over time; which of them a release has is read from its own function.
"""

from __future__ import annotations

import ast
from typing import Any

from knowledge.sync.evaluate import ClassRef, Evaluator, Outside, Unknown
from knowledge.sync.hints import Hint, hints_of, literal_values

#: Stands for parsers that only matter by what they accept.
JSON = Outside("json.loads")
JSON_OR_TEXT = Outside("union_dict_and_str")
HUMAN = Outside("human_readable_int")
BOOLEAN = Outside("argparse.BooleanOptionalAction")


class FieldRules:
    """The rules of one release, read from the text of its ``get_kwargs``."""

    def __init__(self, source: str, evaluate: Evaluator) -> None:
        self._evaluate = evaluate
        start = source.find("def _compute_kwargs(")
        text = source[start if start >= 0 else source.find("def get_kwargs(") :]
        self._optional_value = '["nargs"] = "?"' in text
        self._open_literals = "metavar" in source
        self._dataclasses = "is_dataclass" in source
        self._text_or_dict = "union_dict_and_str" in source
        self._human = _human_names(text)

    def of(self, cls: ClassRef) -> dict[str, dict[str, Any]]:
        """Field name -> argparse settings (``default``, ``type``, ``action``, ``choices``, ``metavar``, ``nargs``)."""
        return {name: self._settings(name, ref, node) for name, (ref, node) in fields_of(cls, self._evaluate).items()}

    def _settings(self, name: str, ref: ClassRef, node: ast.AnnAssign) -> dict[str, Any]:
        hints = hints_of(node.annotation, ref.module, self._evaluate)
        kinds = {hint.kind for hint in hints}
        settings: dict[str, Any] = {"default": self._evaluate.field_default(node.value, ref.module)}
        group = next((hint for kind in ("tuple", "list", "set") for hint in hints if hint.kind == kind), None)
        config = next((hint for hint in hints if hint.kind == "dataclass"), None)
        literal = literal_values(hints)
        if config is not None and self._dataclasses:
            settings.update(type=JSON, config=config.name)
        elif self._optional_value and kinds == {"bool", "str", "none"}:
            settings.update(type=Outside("str"), nargs="?", const=True)
        elif "bool" in kinds:
            settings["action"] = BOOLEAN
        elif literal:
            self._literal(settings, literal, "open" in kinds or ("str" in kinds and self._open_literals))
        elif group is not None:
            self._group(settings, group)
        elif "int" in kinds:
            settings["type"] = HUMAN if name in self._human else Outside("int")
        elif "float" in kinds:
            settings["type"] = Outside("float")
        elif "dict" in kinds:
            mixed = self._text_or_dict and ("str" in kinds or "other" in kinds)
            settings["type"] = JSON_OR_TEXT if mixed else JSON
        else:
            settings["type"] = Outside("str")
            if config is not None:
                settings["config"] = config.name
        return settings

    def _literal(self, settings: dict[str, Any], values: list[Any], is_open: bool) -> None:
        settings["type"] = Outside(type(values[0]).__name__)
        settings["metavar" if is_open else "choices"] = sorted(values, key=str)

    def _group(self, settings: dict[str, Any], group: Hint) -> None:
        kinds = [hint.kind for hint in group.inner]
        values = literal_values(list(group.inner))
        plain = next((kind for kind in kinds if kind in ("int", "float", "str")), "str")
        settings["type"] = Outside(plain if len(kinds) < 2 else "str")
        if values:
            self._literal(settings, values, "open" in kinds)
        settings["nargs"] = "+"


def fields_of(cls: ClassRef, evaluate: Evaluator) -> dict[str, tuple[ClassRef, ast.AnnAssign]]:
    """The dataclass fields of a class and its ancestors, in the order of ``dataclasses.fields``."""
    found: dict[str, tuple[ClassRef, ast.AnnAssign]] = {}
    for ref in reversed(evaluate.bases(cls)):
        for node in ref.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if any(name in ast.dump(node.annotation) for name in ("'InitVar'", "'ClassVar'")):
                continue
            found[node.target.id] = (ref, node)
    return found


def field_names(cls: ClassRef, evaluate: Evaluator) -> list[str]:
    """The names of the fields that can be given as keys of the class's JSON."""
    return [name for name in fields_of(cls, evaluate) if not name.startswith("_")]


def known(value: Any) -> bool:
    """Whether a value is plain data all the way down."""
    if isinstance(value, (list, tuple)):
        return all(known(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and known(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def source_of(value: Any) -> str | None:
    """The source text of a value that is not known, where there is one."""
    return value.text if isinstance(value, Unknown) else None


def _human_names(text: str) -> frozenset[str]:
    """The arguments that take ``1k`` and ``2M``: named in a set, or compared one by one, depending on the release."""
    names = set()
    for line in text.split("def ", 2)[1].splitlines() if "def " in text else ():
        stripped = line.strip()
        if stripped.startswith('"') and stripped.endswith('",') and stripped[1:-2].isidentifier():
            names.add(stripped[1:-2])
        if "name ==" in stripped and '"' in stripped:
            names.add(stripped.split('"')[1])
        if " name in " in stripped or "if name in" in stripped:
            names.update(part for part in stripped.split('"')[1::2] if part.isidentifier())
    return frozenset(names) if "human_readable_int" in text else frozenset()
