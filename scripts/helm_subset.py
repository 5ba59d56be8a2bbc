"""Render the chart without Helm: the small part of its template language that this chart keeps to, and nothing else.

It knows ``if``, ``range``, ``end``, ``.Values``, ``.Release``, ``printf``, ``add``, ``quote`` and ``toJson``, with Go's
meaning of truth and of ``{{-``. Whatever else a template says is an error here, so what this renders, Helm renders alike;
that a chart passes here does not say that a release installs.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "vllm-diagnose"
_ACTION = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*(-?)\}\}(\s*)", re.DOTALL)


class TemplateError(Exception):
    """Something that this renderer does not know, or a value that is not there."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values over values, as Helm lays them."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def render(
    values: Mapping[str, Any] | None = None, release: str = "assistant", namespace: str = "ops"
) -> dict[str, str]:
    """The text of every template by file name, with ``values`` over the chart's own."""
    base = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    root = {
        "Values": merged(base, values or {}),
        "Release": {"Name": release, "Namespace": namespace},
    }
    return {path.name: _text(path, root) for path in sorted((CHART / "templates").glob("*.yaml"))}


def documents(values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every object that the chart makes."""
    return [one for text in render(values).values() for one in yaml.safe_load_all(text) if one]


def _text(path: Path, root: Mapping[str, Any]) -> str:
    source, parts, place = path.read_text("utf-8"), [], 0
    for found in _ACTION.finditer(source):
        before, left, action, right, after = found.groups()
        parts.append(source[place : found.start()] + ("" if left else before))
        parts.append(("do", action))  # type: ignore[arg-type]
        parts.append("" if right else after)
        place = found.end()
    parts.append(source[place:])
    try:
        text, rest = _block(list(parts), root, root)
    except (KeyError, ValueError) as error:
        raise TemplateError(f"{path.name}: {error}") from None
    if rest:
        raise TemplateError(f"{path.name}: an end too many")
    return text


def _block(parts: list[Any], root: Any, dot: Any) -> tuple[str, list[Any]]:
    """The text up to the block's end, and what stands behind it."""
    out: list[str] = []
    while parts:
        part = parts.pop(0)
        if isinstance(part, str):
            out.append(part)
            continue
        word, _, rest = part[1].partition(" ")
        if word == "end":
            return "".join(out), parts
        if word == "if":
            inner, after = _block(list(parts), root, dot)
            parts = after
            out.append(inner if _value(rest, root, dot) else "")
        elif word == "range":
            items, after = _value(rest, root, dot), []
            for item in items:
                inner, after = _block(list(parts), root, item)
                out.append(inner)
            parts = after if items else _block(list(parts), root, None)[1]
        else:
            out.append(_shown(_value(part[1], root, dot)))
    return "".join(out), []


def _value(expression: str, root: Any, dot: Any) -> Any:
    first, *pipes = [step.strip() for step in expression.split("|")]
    value = _call(shlex.split(first, posix=False), root, dot)
    for name in pipes:
        if name == "quote":
            value = json.dumps(_shown(value), ensure_ascii=False)
        elif name == "toJson":
            value = json.dumps(value)
        else:
            raise TemplateError(f"{name!r} is not known here")
    return value


def _call(words: list[str], root: Any, dot: Any) -> Any:
    if words[0] == "printf":
        pattern, *given = [_term(word, root, dot) for word in words[1:]]
        if re.sub(r"%s", "", pattern).count("%"):
            raise TemplateError(f"{pattern!r}: only %s is known here")
        return pattern % tuple(_shown(value) for value in given)
    if words[0] == "add":
        return sum(int(_term(word, root, dot)) for word in words[1:])
    if len(words) != 1:
        raise TemplateError(f"{words[0]!r} is not known here")
    return _term(words[0], root, dot)


def _term(word: str, root: Any, dot: Any) -> Any:
    if word == ".":
        return dot
    if word.startswith('"'):
        return json.loads(word)
    if re.fullmatch(r"\d+", word):
        return int(word)
    if not re.fullmatch(r"(\.\w+)+", word) or not word.startswith((".Values.", ".Release.")):
        raise TemplateError(f"{word!r} is not known here")
    value = root
    for name in word[1:].split("."):
        value = value[name]
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        raise TemplateError("an object is written without toJson")
    return str(value)


if __name__ == "__main__":
    everything = {"serviceMonitor": {"enabled": True}, "nodeTools": {"enabled": True}}
    sys.stdout.write("\n---\n".join(render(everything if "--everything" in sys.argv else None).values()))
