"""What can be read: runbooks of every cause at stable addresses, a site's own Markdown, and the documents."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup
from starlette.responses import Response

from assistant.faces.web.prose import rendered
from assistant.faces.web.visit import PageError, environment
from assistant.runbooks import runbook
from knowledge.catalog import load
from knowledge.documents import LANGUAGES, MOST_CHARACTERS, MOST_FILES, ROOT
from tools.redaction import clean

if TYPE_CHECKING:
    from assistant.faces.web.visit import Lang, Visit

_VERSION = re.compile(r"v?\d{1,3}\.\d{1,3}(?:\.\d{1,3})?[A-Za-z0-9.+-]{0,24}")
_TITLE = re.compile(r"^# +(.*?)(?: *\{#[a-z0-9-]+\})? *$", re.MULTILINE)
_PLACE = re.compile(r"\{\w*\}")
_MOST_HITS = 12


async def runbooks(visit: Visit) -> Response:
    """Every cause by area, the documents, the site's own; or what a search finds."""
    service, asked = visit.service, visit.field("q", 600)
    folder = service.settings.text("runbooks_folder")
    hits: list[tuple[Any, str]] = []
    own, problem = await service.in_thread(_site_titles, folder)
    if asked:
        from tools.knowledge_search import search

        try:
            found = await service.in_thread(search, asked, visit.lang, _MOST_HITS, folder)
        except OSError as error:
            raise PageError(503, visit.word("web-error-folder", why=error.strerror or error)) from None
        hits = [(hit, _where(hit.kind, hit.id, visit.lang)) for hit in found]
    areas: dict[str, list[Any]] = {}
    for cause in service.catalog.causes.values():
        areas.setdefault(cause.area, []).append(cause)
    return visit.page(
        "runbooks.html",
        title=visit.word("web-runbooks"),
        q=asked,
        hits=hits,
        areas=sorted(areas.items(), key=lambda row: (row[0] == "normal", row[0])),
        documents=[(slug, titles[visit.lang]) for slug, titles in documents().items()],
        own=own,
        problem=visit.word("web-error-folder", why=problem) if problem else "",
    )


async def one_runbook(visit: Visit) -> Response:
    """The steps of one cause for a version: what `runbook_url` of an alert leads to."""
    given = visit.request.path_params
    version = visit.field("vllm_version", 40)
    if version and not _VERSION.fullmatch(version):
        raise PageError(422, visit.word("web-error-version", given=clean(version)))
    found = _steps(f"{given['area']}/{given['slug']}", visit.lang, version or None)
    if found is None:
        raise PageError(404, visit.word("web-error-no-runbook", name=clean(f"{given['area']}/{given['slug']}")[:120]))
    title, body = found
    return visit.page("page.html", title=title, body=body)


async def site_runbook(visit: Visit) -> Response:
    """One of the site's own Markdown files, whoever may have written it."""
    service = visit.service
    folder = service.settings.text("runbooks_folder")
    name = visit.request.path_params["name"]
    text = await service.in_thread(_site_text, folder, name)
    if text is None:
        raise PageError(404, visit.word("web-error-no-runbook", name=clean(name)[:120]))
    body, headings = await service.in_thread(rendered, clean(text), frozenset(service.catalog.causes))
    title = _TITLE.search(text)
    return visit.page(
        "document.html",
        title=clean(title[1])[:200] if title else name,
        body=body,
        headings=headings,
        kicker=visit.word("heading-found-site"),
        label=name,
        others=[],
    )


async def document(visit: Visit) -> Response:
    """One of the troubleshooting documents."""
    given = visit.request.path_params
    found = _document(given["lang"], given["slug"])
    if found is None:
        raise PageError(404, visit.word("web-error-no-document", name=clean(given["slug"])[:120]))
    title, body, headings = found
    return visit.page(
        "document.html",
        title=title,
        body=body,
        headings=headings,
        kicker=visit.word("heading-found-section"),
        label="",
        others=[(slug, titles[visit.lang]) for slug, titles in documents().items()],
        here=given["slug"],
        other_document=f"/documents/{'zh' if given['lang'] == 'en' else 'en'}/{given['slug']}",
        document_lang=given["lang"],
    )


@lru_cache(maxsize=1)
def documents() -> dict[str, dict[str, str]]:
    """The title of every document in both languages, by its slug."""
    found: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        for path in sorted((ROOT / language).glob("*.md")):
            title = _TITLE.search(path.read_text(encoding="utf-8"))
            found.setdefault(path.stem, {})[language] = title[1] if title else path.stem
    return {slug: titles for slug, titles in found.items() if len(titles) == len(LANGUAGES)}


@lru_cache(maxsize=128)
def _document(language: str, slug: str) -> tuple[str, Markup, list[tuple[str, str]]] | None:
    if language not in LANGUAGES or slug not in documents():
        return None
    text = (ROOT / language / f"{slug}.md").read_text(encoding="utf-8")
    body, headings = rendered(text, frozenset(load().causes))
    return documents()[slug][language], body, headings


@lru_cache(maxsize=2048)
def _steps(identifier: str, language: Lang, version: str | None) -> tuple[str, Markup] | None:
    """A runbook drawn; knowledge does not change while a process lives, so that an alert storm costs nothing."""
    catalog = load()
    found = runbook(catalog, identifier, language, version)
    if found is None:
        return None

    def word(key: str, **values: object) -> str:
        return catalog.word(key, language, **values)

    # what a program prints differs in these places
    found["signs"] = [_PLACE.sub("…", sign) for sign in found["signs"]]
    near = [(name, catalog.causes[name].title[language]) for name in catalog.causes[identifier].near]
    sources = [(source, _source_address(source, language)) for source in found["sources"]]
    drawn = (
        environment()
        .get_template("runbook.html")
        .render(w=word, lang=language, book=found, near=near, sources=sources, version=version)
    )
    return found["title"], Markup(drawn)  # noqa: S704 (our own template, escaped by it)


def _source_address(source: dict[str, Any], language: str) -> str:
    if source.get("url"):
        return str(source["url"])
    if source.get("document") in documents():
        section = f"#{source['section']}" if source.get("section") else ""
        return f"/documents/{language}/{source['document']}{section}"
    return ""


def _where(kind: Literal["cause", "section", "site"], identifier: str, lang: str) -> str:
    from urllib.parse import quote

    name, _, anchor = identifier.partition("#")
    below = f"#{anchor}" if anchor else ""
    if kind == "cause":
        return f"/runbooks/{name}"
    return f"/documents/{lang}/{name}{below}" if kind == "section" else f"/runbooks/site/{quote(name)}{below}"


def _site_files(folder: str) -> dict[str, Path]:
    """The files that may be shown, by name. A link that leads out of the folder is none of them. Raises ``OSError``."""
    if not folder:
        return {}
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotADirectoryError(20, "is no folder of Markdown files", folder)
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.md"))[:MOST_FILES]:
        if path.is_file() and path.resolve().is_relative_to(root):
            found[path.relative_to(root).as_posix()] = path
    return found


def _site_titles(folder: str) -> tuple[list[tuple[str, str]], str]:
    found = []
    try:
        for name, path in _site_files(folder).items():
            with path.open(encoding="utf-8", errors="replace") as file:
                title = _TITLE.search(file.read(4000))
            found.append((name, clean(title[1])[:200] if title else name))
    except OSError as error:
        return found, error.strerror or str(error)
    return found, ""


def _site_text(folder: str, name: str) -> str | None:
    path = _site_files(folder).get(name)
    if path is None:
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MOST_CHARACTERS)
