"""The pieces that Slack draws, and how large each may be.

No text from outside ever goes into Slack's markup: it stands in ``plain_text`` or in ``rich_text`` elements, where
Slack reads no mention, no link and no command. So ``<!channel>`` in a log stays seven letters and two brackets.

Limits: docs.slack.dev/reference/block-kit (blocks, composition objects, elements) and slack_sdk 3.47
(``slack_sdk/models/blocks``). That all blocks of one message together may not have much more than 13,200 characters
(``msg_blocks_too_long``) is not documented; it was observed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

Piece = dict[str, Any]

MOST_BLOCKS = 50
#: Characters of all blocks of a message as they are sent. Below what was observed, because that is no promise.
MOST_MESSAGE = 12_000
MOST_HEADER = 150
MOST_CONTEXT = 2000
MOST_BUTTON = 75
MOST_OPTION = 75
MOST_VALUE = 2000
MOST_TITLE = 24
MOST_LABEL = 2000
MOST_PLACEHOLDER = 150
MOST_INPUT = 3000
MOST_FALLBACK = 3000
#: Characters of one quoted piece or one command in a message; the whole stands in the full report.
MOST_QUOTE = 500
MOST_COMMAND = 2500


def cut(text: str, most: int) -> str:
    """The text with at most ``most`` characters, the last one an ellipsis where something is missing."""
    return text if len(text) <= most else text[: max(most - 1, 0)].rstrip() + "…"


def size(blocks: Sequence[Piece]) -> int:
    """Characters of the blocks as they are sent."""
    return len(json.dumps(blocks, ensure_ascii=False, separators=(",", ":")))


def plain(text: str, most: int) -> Piece:
    """Text that Slack shows as it is. Slack refuses an empty one."""
    return {"type": "plain_text", "text": cut(text, most) or "…", "emoji": False}


def header(text: str) -> Piece:
    """A heading over a message."""
    return {"type": "header", "text": plain(text.replace("\n", " "), MOST_HEADER)}


def quiet(text: str) -> Piece:
    """A small grey line."""
    return {"type": "context", "elements": [plain(text, MOST_CONTEXT)]}


def rich(*elements: Piece) -> Piece:
    """A block of rich text."""
    return {"type": "rich_text", "elements": list(elements)}


def words(text: str, **style: bool) -> Piece:
    """A run of text, with ``bold``, ``italic`` or ``code``."""
    piece: Piece = {"type": "text", "text": text or " "}
    if style:
        piece["style"] = style
    return piece


def prose(text: str, **style: bool) -> list[Piece]:
    """A sentence as runs: what stands between back-ticks in it becomes code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one back-tick has no partner
        return [words(text, **style)]
    runs = [words(part, code=True) if place % 2 else words(part, **style) for place, part in enumerate(parts) if part]
    return runs or [words(" ")]


def paragraph(*runs: Piece) -> Piece:
    """A paragraph inside rich text."""
    return {"type": "rich_text_section", "elements": list(runs)}


def fixed(text: str, most: int) -> Piece:
    """Text to copy, or text from outside, in a box of its own inside rich text."""
    return {"type": "rich_text_preformatted", "elements": [{"type": "text", "text": cut(text, most) or " "}]}


def bullets(rows: Iterable[Sequence[Piece]], *, ordered: bool = False, indent: int = 0) -> Piece:
    """A list inside rich text, each row the runs of one entry."""
    return {
        "type": "rich_text_list",
        "style": "ordered" if ordered else "bullet",
        "indent": indent,
        "elements": [paragraph(*row) for row in rows],
    }


def divider() -> Piece:
    """A line."""
    return {"type": "divider"}


def button(action: str, text: str, value: str, *, style: str = "", confirm: Piece | None = None) -> Piece:
    """A button; ``style`` is ``primary``, ``danger`` or nothing."""
    piece: Piece = {"type": "button", "action_id": action, "text": plain(text, MOST_BUTTON), "value": value}
    if style:
        piece["style"] = style
    if confirm is not None:
        piece["confirm"] = confirm
    return piece


def link(action: str, text: str, url: str) -> Piece:
    """A button that opens an address of our own."""
    return {"type": "button", "action_id": action, "text": plain(text, MOST_BUTTON), "url": url}


def option(value: str, label: str) -> Piece:
    """One choice of a select or of radio buttons."""
    return {"text": plain(label, MOST_OPTION), "value": value}


def select(action: str, placeholder: str, options: Sequence[Piece]) -> Piece:
    """A menu of at most 100 options."""
    return {
        "type": "static_select",
        "action_id": action,
        "placeholder": plain(placeholder, MOST_PLACEHOLDER),
        "options": list(options[:100]),
    }


def actions(identifier: str, elements: Sequence[Piece]) -> Piece:
    """A row of at most 25 buttons and menus."""
    return {"type": "actions", "block_id": identifier, "elements": list(elements[:25])}


def entry(identifier: str, label: str, element: Piece, *, hint: str = "", optional: bool = True) -> Piece:
    """A field of a form."""
    piece: Piece = {
        "type": "input",
        "block_id": identifier,
        "label": plain(label, MOST_LABEL),
        "element": element,
        "optional": optional,
    }
    if hint:
        piece["hint"] = plain(hint, MOST_LABEL)
    return piece


def field(placeholder: str = "", *, lines: bool = False, initial: str = "", most: int = MOST_INPUT) -> Piece:
    """A field for text."""
    piece: Piece = {"type": "plain_text_input", "action_id": "value", "multiline": lines, "max_length": most}
    if placeholder:
        piece["placeholder"] = plain(placeholder, MOST_PLACEHOLDER)
    if initial:
        piece["initial_value"] = cut(initial, most)
    return piece


def form(callback: str, title: str, submit: str, close: str, blocks: Sequence[Piece], metadata: str = "") -> Piece:
    """A modal with fields."""
    return {
        "type": "modal",
        "callback_id": callback,
        "title": plain(title, MOST_TITLE),
        "submit": plain(submit, MOST_TITLE),
        "close": plain(close, MOST_TITLE),
        "private_metadata": metadata,
        "blocks": list(blocks),
    }


def fallback(text: str) -> str:
    """The text for notifications and screen readers. Slack reads markup here, so what would be markup is escaped."""
    escaped = cut(text, MOST_FALLBACK).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped or "…"
