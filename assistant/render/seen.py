"""Earlier incidents with the same cause as blocks, for every face that shows a diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assistant.diagnosis.model import Language
from assistant.render.blocks import Block, Heading, Item, Quotation, Text
from knowledge.catalog import Catalog


def seen_before_blocks(rows: Sequence[Mapping[str, Any]], catalog: Catalog, lang: Language) -> Iterator[Block]:
    """``rows`` as a diagnosis' ``seen_before`` holds them. What a person wrote is quoted and not said."""
    word = catalog.word
    if rows:
        yield Heading(word("heading-seen-before", lang))
    for row in rows:
        date = str(row["date"])[:10]
        if row["target"]:
            title = word("seen-before", lang, date=date, target=row["target"])
        else:
            title = word("seen-before-anywhere", lang, date=date)
        body: list[Block] = []
        if row["fix"]:
            body.append(Quotation(word("seen-before-fix", lang), str(row["fix"])))
        elif row["helped"] in ("yes", "no"):
            key = "seen-before-confirmed" if row["helped"] == "yes" else "seen-before-wrong"
            body.append(Text(word(key, lang), "quiet"))
        yield Item(title, (str(row["incident"]),), tuple(body))
