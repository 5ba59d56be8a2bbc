"""JSON schemas as small as they can be without becoming wrong: every character is paid for in a model's context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Deeper than this an output's shape is only said to be an object or a list.
MOST_DEPTH = 1


def compact(schema: Mapping[str, Any], *, depth: int | None = None) -> dict[str, Any]:
    """The same schema without titles, null defaults and references; below ``depth`` only the type is kept.

    Leaving a restriction out accepts more and never refuses what the whole schema accepts.
    """
    definitions = schema.get("$defs", {})
    made = _compact(schema, definitions, depth, ())
    return made if isinstance(made, dict) else {"type": "object"}


def _compact(node: Any, definitions: Mapping[str, Any], depth: int | None, seen: tuple[str, ...]) -> Any:
    if not isinstance(node, Mapping):
        return node
    if "$ref" in node:
        name = str(node["$ref"]).rsplit("/", 1)[-1]
        if name in seen:
            return {}
        rest = {key: value for key, value in node.items() if key not in ("$ref", "title")}
        return {**_compact(definitions.get(name, {}), definitions, depth, (*seen, name)), **rest}
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if options and len(options) < len(node["anyOf"]) and len(options) == 1:
        made = _compact(options[0], definitions, depth, seen)
        if isinstance(made.get("type"), str):
            made["type"] = [made["type"], "null"]
            if "enum" in made:
                made["enum"] = [*made["enum"], None]
        if "description" in node:
            made["description"] = node["description"]
        return made
    out: dict[str, Any] = {}
    below = None if depth is None else depth - 1
    for key, value in node.items():
        if key in ("title", "$defs") and not isinstance(value, bool):
            continue
        if key == "default" and value in (None, "", [], {}):
            continue
        if key == "description" and depth is not None:
            continue  # of a result; what it means is said once, in the tool's description
        if key == "properties":
            out[key] = {name: _compact(part, definitions, below, seen) for name, part in value.items()}
        elif key in ("anyOf", "oneOf", "allOf"):
            out[key] = [_compact(part, definitions, depth, seen) for part in value]
        elif key in ("items", "additionalProperties"):
            out[key] = _compact(value, definitions, depth, seen)
        else:
            out[key] = value
    if depth is not None and depth <= 0:
        return {"type": out["type"]} if "type" in out else {}
    return out
