"""Markdown as HTML that is safe whoever wrote it: no HTML passes, links lead to http, https or this server only."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_ANCHOR = re.compile(r"\s*\{#([a-z0-9-]{1,80})\}\s*$")
_NOT_SLUG = re.compile(r"[^a-z0-9\u3400-\u9fff]+")
_LINK = re.compile(r"(?:https?://|/(?!/)|#)[^\s\\]*", re.IGNORECASE)


def rendered(markdown: str, causes: frozenset[str] = frozenset()) -> tuple[Markup, list[tuple[str, str]]]:
    """The text as HTML, and its second-level headings as (anchor, title).

    An id of a cause between back-ticks becomes a link to its runbook.
    """
    parser = _parser()
    tokens = parser.parse(markdown)
    headings = _anchored(tokens)
    _linked(tokens, causes)
    # markdown-it escapes everything that is text, and was told to let no HTML through
    drawn = parser.renderer.render(tokens, parser.options, {})
    # what is wider than the page scrolls, and whoever has no mouse has to get there
    return Markup(drawn.replace("<pre>", '<pre tabindex="0">')), headings  # noqa: S704


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 20}).enable("table")
    parser.disable(["image", "html_block", "html_inline"])  # a picture would be a request to somewhere else
    parser.validateLink = _may_lead_to  # type: ignore[method-assign]
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _may_lead_to(url: str) -> bool:
    return _LINK.fullmatch(url.strip()) is not None


def _table_open(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    return '<div class="wide" tabindex="0"><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _anchored(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give headings their anchors, written or made; returns those of the second level."""
    found: list[tuple[str, str]] = []
    for place, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        inline = tokens[place + 1]
        written = _ANCHOR.search(inline.content)
        title = _ANCHOR.sub("", inline.content).strip()
        anchor = written[1] if written else _NOT_SLUG.sub("-", title.lower()).strip("-")
        if written and inline.children and inline.children[-1].type == "text":
            last = inline.children[-1]
            last.content = _ANCHOR.sub("", last.content)
        if anchor:
            token.attrSet("id", anchor)
        if token.tag == "h2":
            found.append((anchor, title.replace("`", "")))
    return found


def _linked(tokens: Sequence[Token], causes: frozenset[str]) -> None:
    from markdown_it.token import Token

    for token in tokens:
        if not token.children:
            continue
        children: list[Token] = []
        for child in token.children:
            if child.type == "code_inline" and child.content in causes:
                opening = Token("link_open", "a", 1, attrs={"href": f"/runbooks/{child.content}"})
                children += [opening, child, Token("link_close", "a", -1)]
                continue
            if child.type == "link_open" and str(child.attrGet("href") or "").startswith("http"):
                child.attrSet("rel", "noopener noreferrer nofollow")
            children.append(child)
        token.children = children
