"""Text and JSON as both databases can hold them."""

from __future__ import annotations

import json
from typing import Any


def plain_text(text: str, most: int) -> str:
    """``text`` as both databases can hold it: without NUL and broken surrogates, at most ``most`` characters."""
    return text[:most].replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def to_json(value: Any) -> str:
    """JSON text of pure ASCII."""
    return json.dumps(value, separators=(",", ":"), default=str)


def from_json(text: str | None) -> Any:
    """What :func:`to_json` wrote; None stays None."""
    return None if text is None else json.loads(text)
