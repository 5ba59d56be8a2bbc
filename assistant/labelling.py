"""Judged incidents as labelled ones: what `batch`, `make calibrate` and scripts/measure.py read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from knowledge.catalog import Catalog

_VERDICTS = {"healthy": "fine", "unknown": "other"}
_ID = re.compile(r"[a-z]+/[a-z0-9-]+")


def labelled(
    judged: Iterator[tuple[dict[str, Any], Mapping[str, Any]]], catalog: Catalog, clean: Callable[[str], str]
) -> Iterator[dict[str, Any] | None]:
    """One labelled incident for each that was judged; None for one whose right answer nobody said.

    "yes" labels it with what was found. "partly" and "no" label it only where the comment names a cause by its id.
    ``text`` is the person's words and the quoted evidence in its order, cleaned once more.
    """
    for row, said in judged:
        named = [found for found in _ID.findall(str(said["comment"])) if found in catalog.causes]
        if said["helped"] == "yes":
            label = row["cause"] or _VERDICTS.get(row["verdict"])
        else:
            label = named[0] if named else None
        text = _text(row)
        if label is None or not text.strip():
            yield None
            continue
        case = row["evidence"][0] if row["evidence"] else {}
        yield {
            "id": row["id"],
            "text": clean(text),
            "vllm_version": case.get("vllm_version"),
            "primary": label,
            "also": [found for found in named if found != label],
            "kind": "feedback",
            "helped": said["helped"],
            "found": row["cause"] or row["verdict"],
        }


def _text(row: Mapping[str, Any]) -> str:
    """What is left of an incident: the words, then every quoted line once, as its source has them one after another."""
    lines: list[str] = []
    for case in row["evidence"][:1]:
        facts = sorted(
            case["reading"]["evidence"], key=lambda fact: (fact["origin"]["source"], fact["origin"]["order"])
        )
        lines = [fact["quote"] for fact in facts if fact["quote"] and fact["state"] == "present"]
        words = case["text"] or row["question"]
        return "\n".join([words, *dict.fromkeys(lines)]).strip()
    return str(row["question"])
