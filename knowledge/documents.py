"""The troubleshooting documents, cut into sections that can be found and cited."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent / "documents"
LANGUAGES = ("en", "zh")
#: A site's own file is read up to this many characters, and its folder up to this many files.
MOST_CHARACTERS = 400_000
MOST_FILES = 2_000

_HEADING = re.compile(r"^(#{1,4}) +(.*?)(?: *\{#([a-z0-9-]+)\})? *$")
_NOT_SLUG = re.compile(r"[^a-z0-9\u3400-\u9fff]+")


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a document. ``document`` is its slug (a path for a site's own); ``language`` is empty for a site's own."""

    document: str
    anchor: str
    language: str
    title: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.document}#{self.anchor}" if self.anchor else self.document


def cut(document: str, language: str, markdown: str) -> Iterator[Section]:
    """The sections of a Markdown text, one a heading; headings inside code blocks are text."""
    title, anchor, lines, top, fenced = document, "", [], "", False  # type: str, str, list[str], str, bool
    for line in markdown[:MOST_CHARACTERS].splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        found = None if fenced else _HEADING.match(line)
        if found is None:
            lines.append(line)
            continue
        if any(part.strip() for part in lines):
            yield Section(document, anchor, language, title, "\n".join(lines).strip())
        level, heading, given = len(found.group(1)), found.group(2).strip(), found.group(3)
        if level == 1:
            top = heading
        title = heading if level == 1 or not top else f"{top}: {heading}"
        anchor = "" if level == 1 else given or _NOT_SLUG.sub("-", heading.lower()).strip("-")
        lines = []
    if any(part.strip() for part in lines):
        yield Section(document, anchor, language, title, "\n".join(lines).strip())


def own_sections(root: Path = ROOT) -> Iterator[Section]:
    """The project's documents in both languages."""
    for language in LANGUAGES:
        for path in sorted((root / language).glob("*.md")):
            yield from cut(path.stem, language, path.read_text(encoding="utf-8"))


def site_sections(folder: Path) -> Iterator[Section]:
    """A site's own Markdown files below ``folder``. Raises ``OSError`` where the folder cannot be read."""
    if not folder.is_dir():
        raise NotADirectoryError(20, "is no folder of Markdown files", str(folder))
    for number, path in enumerate(sorted(folder.rglob("*.md"))):
        if number >= MOST_FILES:
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from cut(path.relative_to(folder).as_posix(), "", file.read(MOST_CHARACTERS))
