"""`search_knowledge`: causes, sections of the documents and a site's own runbooks, by words, error text or id."""

from __future__ import annotations

import asyncio
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from tools.registry import Context, action

if TYPE_CHECKING:
    from knowledge.retrieve import Retriever

_preparing = threading.Lock()


class SearchInput(BaseModel):
    """What to look for."""

    query: Annotated[str, Field(min_length=1, max_length=600, description="words, an error text, or an id")]
    language: Annotated[
        Literal["en", "zh"] | None, Field(description="of the answer; that of the query unless given")
    ] = None
    limit: Annotated[int, Field(ge=1, le=20)] = 5


class Found(BaseModel):
    """One hit. ``kind`` is ``cause``, ``section`` (of our documents) or ``site`` (your own runbooks)."""

    kind: Literal["cause", "section", "site"]
    id: str
    title: str
    excerpt: str
    uri: str | None = None


class SearchOutput(BaseModel):
    """Hits, best first, causes before sections."""

    hits: list[Found]


@lru_cache(maxsize=4)
def _prepared(folder: str) -> Retriever:
    from knowledge.catalog import load
    from knowledge.documents import site_sections
    from knowledge.retrieve import Retriever

    return Retriever(load(), site=list(site_sections(Path(folder))) if folder else ())


def retriever(folder: str = "") -> Retriever:
    """The index over causes, documents and the runbooks in ``folder``, made once. Raises ``OSError``."""
    with _preparing:
        return _prepared(folder)


def search(query: str, language: str | None, limit: int, folder: str = "") -> list[Found]:
    """The best hits of every kind. Raises ``OSError`` where ``folder`` cannot be read."""
    from knowledge.text import language_of
    from tools.redaction import clean

    words = clean(query)
    wanted = language or language_of(words)
    found: list[Found] = []
    for kind, hits in retriever(folder).search_kinds(words, limit, wanted):
        for hit in hits:
            uri = f"vllm-kb://causes/{hit.id}" if kind == "cause" else None
            if kind == "section":
                uri = f"vllm-kb://documents/{wanted}/{hit.id.partition('#')[0]}"
            found.append(Found(kind=kind, id=hit.id, title=hit.title, excerpt=hit.excerpt, uri=uri))
    return found


@action(name="search_knowledge", title="Search causes and documents", effect="reads", deadline_s=20)
async def search_knowledge(given: SearchInput, context: Context) -> SearchOutput:
    """Search the troubleshooting knowledge about vLLM (causes, documents, your runbooks) in English or Chinese.

    Use it for "how does X work" and to read about a cause that a diagnosis named; for a log or a symptom use diagnose.
    """
    hits = await asyncio.to_thread(search, given.query, given.language, given.limit, context.runbooks)
    return SearchOutput(hits=hits)
