"""An incident in the form in which it is kept: without secrets, its diagnosis and evidence as JSON text.

Nothing here knows a database, so that whoever read the incident can prepare what then only has to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assistant.store.texts import plain_text, to_json

_MAX_QUESTION = 200_000


@dataclass(frozen=True, slots=True)
class Kept:
    """One revision of an incident. ``diagnosis`` and ``evidence`` are JSON; ``cause`` is there where the verdict is one."""

    id: str
    revision: int
    language: str
    target: str | None
    verdict: str
    cause: str | None
    diagnosis: str
    evidence: str
    question: str


def as_kept(
    incident: str,
    revision: int,
    diagnosis: Mapping[str, Any],
    evidence: Sequence[Any],
    *,
    question: str = "",
    clean: Callable[[str], str] | None = None,
) -> Kept:
    """What is kept of a diagnosis; ``clean`` is applied to every text in it."""
    found = list(evidence)
    if clean is not None:
        diagnosis, found, question = everywhere([diagnosis, found, question], clean)
    whole = {**diagnosis, "incident": incident, "revision": revision}
    causes = whole.get("causes") or []
    first = causes[0] if whole.get("verdict") == "cause" and isinstance(causes[0], Mapping) else {}
    return Kept(
        id=incident,
        revision=revision,
        language=str(whole.get("language") or "en"),
        target=None if whole.get("target") is None else plain_text(str(whole["target"]), 2000),
        verdict=str(whole.get("verdict") or "unknown"),
        cause=first.get("id"),
        diagnosis=to_json(whole),
        evidence=to_json(found),
        question=plain_text(question, _MAX_QUESTION),
    )


def everywhere(value: Any, clean: Callable[[str], str]) -> Any:
    """``value`` with every text in it cleaned, keys left alone. The same text is cleaned once: names repeat a lot."""
    done: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, str):
            found = done.get(node)
            if found is None:
                found = done[node] = clean(node)
            return found
        if isinstance(node, Mapping):
            return {str(key): walk(part) for key, part in node.items()}
        if isinstance(node, list | tuple):
            return [walk(part) for part in node]
        return node

    return walk(value)
