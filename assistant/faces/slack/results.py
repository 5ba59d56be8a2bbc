"""What a tool found, as blocks, pictures and files. A result that has no drawing of its own is shown as its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.elements import Piece, fixed, header, rich
from tools.redaction import clean, redact

if TYPE_CHECKING:
    from knowledge.catalog import Catalog
    from tools.registry import Action

_MOST_VALUE = 300
_MOST_TEXT = 2800


def result_pieces(action: Action, result: Any, catalog: Catalog, lang: str) -> list[Piece]:
    """The blocks for a result."""
    return [header(f"📋 {action.title}"), rich(fixed("\n".join(_lines(result)), _MOST_TEXT))]


def result_file(action: Action, result: Any, lang: str, *, whole: bool) -> Iterator[tuple[str, bytes, str]]:
    """Files that belong to a result: name, content, title. ``whole`` asks for the result itself as well."""
    text = redact(clean(json.dumps(result, ensure_ascii=False, indent=1)))
    if whole or len("\n".join(_lines(result))) > _MOST_TEXT:
        yield f"{action.name}.json", text.encode(), action.title


def _lines(result: Any) -> Iterator[str]:
    """The fields of a result that say something, one a line, lists by their entries."""
    if not isinstance(result, Mapping):
        yield _short(result)
        return
    for name, value in result.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list):
            yield f"{name}:"
            yield from (f"  - {_short(entry)}" for entry in value[:8])
            if len(value) > 8:
                yield f"  … {len(value) - 8}"
        else:
            yield f"{name}: {_short(value)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = redact(clean(text)).replace("\n", " ")
    return text if len(text) <= _MOST_VALUE else text[: _MOST_VALUE - 1] + "…"
