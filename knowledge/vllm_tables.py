"""What vLLM has in which version: the tables below ``knowledge/vllm``, for the checker and the authors' tools."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from knowledge.sources import ROOT

Range = tuple[str, str]


@lru_cache(maxsize=4)
def _table(root: Path, name: str, key: str) -> dict[str, Any]:
    return json.loads((root / "vllm" / name).read_text(encoding="utf-8"))[key]  # type: ignore[no-any-return]


def versions(root: Path = ROOT) -> list[str]:
    """The versions that were examined, oldest first."""
    return list(_table(root, "flags.json", "_meta")["versions"])


def flag_range(flag: str, root: Path = ROOT) -> Range | None:
    """First and last examined version whose ``vllm serve`` knows ``flag`` (or its alias, or its ``--no-`` form)."""
    flags = _table(root, "flags.json", "flags")
    parent = flag.split(".", 1)[0]
    for name, entry in flags.items():
        no_form = entry.get("no_form") or {}
        if parent == name or parent in entry.get("aliases", ()):
            return entry["first"], entry["last"]
        if isinstance(no_form, dict) and no_form.get("flag") == parent:
            return no_form.get("first", entry["first"]), entry["last"]
    return None


def variable_range(name: str, root: Path = ROOT) -> Range | None:
    """First and last examined version that reads a ``VLLM_`` variable."""
    entry = _table(root, "environment.json", "env_vars").get(name)
    return (entry["first"], entry["last"]) if entry else None
