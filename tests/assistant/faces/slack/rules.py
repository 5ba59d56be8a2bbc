"""What Slack refuses in a message or a form, written down from its documentation, independently of the program.

Sources: docs.slack.dev/reference/block-kit (blocks, elements, composition objects), docs.slack.dev/reference/methods,
slack_sdk 3.47 models. That blocks of more than about 13,200 characters together are refused was observed by users.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_TOTAL = 13_200
_IN_MESSAGE = {"section", "header", "context", "divider", "actions", "rich_text", "image", "file", "markdown", "table"}
_IN_MODAL = {"section", "header", "context", "divider", "actions", "rich_text", "image", "input"}
_RICH = {"rich_text_section", "rich_text_list", "rich_text_preformatted", "rich_text_quote"}
_STYLES = {"bold", "italic", "strike", "code"}


def problems(blocks: Any, *, modal: bool = False) -> list[str]:
    """What is wrong with the blocks, empty when Slack takes them."""
    return list(_problems(blocks, modal))


def _problems(blocks: Any, modal: bool) -> Iterator[str]:
    if not isinstance(blocks, list) or (not blocks and not modal):
        yield "no blocks"
        return
    if len(blocks) > (100 if modal else 50):
        yield f"{len(blocks)} blocks"
    if not modal and len(json.dumps(blocks, ensure_ascii=False)) > MOST_TOTAL:
        yield "msg_blocks_too_long"
    identifiers = [block["block_id"] for block in blocks if "block_id" in block]
    if len(set(identifiers)) != len(identifiers):
        yield "a block_id twice"
    if sum(block.get("type") == "table" for block in blocks) > 1:
        yield "more than one table"
    for place, block in enumerate(blocks):
        for problem in _block(block, modal):
            yield f"blocks[{place}] ({block.get('type')}): {problem}"


def _block(block: Mapping[str, Any], modal: bool) -> Iterator[str]:
    kind = block.get("type")
    if kind not in (_IN_MODAL if modal else _IN_MESSAGE):
        yield "no such block here"
        return
    if len(block.get("block_id", "x")) > 255 or block.get("block_id") == "":
        yield "block_id"
    if kind == "header":
        yield from _text(block.get("text"), 150, ("plain_text",))
    elif kind == "section":
        if "text" not in block and "fields" not in block:
            yield "neither text nor fields"
        if "text" in block:
            yield from _text(block["text"], 3000, ("plain_text", "mrkdwn"))
        if len(block.get("fields", ())) > 10:
            yield "fields"
        for field in block.get("fields", ()):
            yield from _text(field, 2000, ("plain_text", "mrkdwn"))
    elif kind == "context":
        if not 1 <= len(block.get("elements", ())) <= 10:
            yield "context elements"
        for element in block.get("elements", ()):
            if element.get("type") != "image":
                yield from _text(element, 2000, ("plain_text", "mrkdwn"))
    elif kind == "actions":
        elements = block.get("elements", ())
        if not 1 <= len(elements) <= 25:
            yield "actions elements"
        names = [element.get("action_id") for element in elements]
        if len(set(names)) != len(names):
            yield "an action_id twice"
        for element in elements:
            yield from _element(element)
    elif kind == "rich_text":
        if not block.get("elements"):
            yield "empty rich text"
        for element in block.get("elements", ()):
            yield from _rich(element)
    elif kind == "input":
        yield from _text(block.get("label"), 2000, ("plain_text",))
        if "hint" in block:
            yield from _text(block["hint"], 2000, ("plain_text",))
        yield from _element(block.get("element") or {})
    elif kind == "markdown" and not 1 <= len(block.get("text", "")) <= 12_000:
        yield "markdown text"


def _text(text: Any, most: int, kinds: Sequence[str]) -> Iterator[str]:
    if not isinstance(text, Mapping) or text.get("type") not in kinds:
        yield f"a text object of {kinds} is missing"
        return
    if not isinstance(text.get("text"), str) or not 1 <= len(text["text"]) <= most:
        yield f"text of {len(text.get('text') or '')} characters, 1 to {most} are taken"
    unknown = set(text) - ({"type", "text", "emoji"} if text["type"] == "plain_text" else {"type", "text", "verbatim"})
    if unknown:
        yield f"unknown {unknown}"


def _element(element: Mapping[str, Any]) -> Iterator[str]:
    kind = element.get("type")
    if not 1 <= len(element.get("action_id", "")) <= 255:
        yield "action_id"
    if kind == "button":
        yield from _text(element.get("text"), 75, ("plain_text",))
        if len(element.get("value", "")) > 2000 or len(element.get("url", "")) > 3000:
            yield "button value or url"
        if element.get("style", "primary") not in ("primary", "danger"):
            yield "button style"
        if "confirm" in element:
            yield from _confirm(element["confirm"])
    elif kind == "static_select":
        yield from _text(element.get("placeholder"), 150, ("plain_text",))
        options = element.get("options", ())
        if not 1 <= len(options) <= 100:
            yield "select options"
        if len({option.get("value") for option in options}) != len(options):
            yield "an option value twice"
        for option in options:
            yield from _text(option.get("text"), 75, ("plain_text", "mrkdwn"))
            if not 1 <= len(option.get("value", "")) <= 150:
                yield "option value"
            if "description" in option:
                yield from _text(option["description"], 75, ("plain_text",))
    elif kind == "plain_text_input":
        if not 1 <= element.get("max_length", 3000) <= 3000:
            yield "max_length"
        if len(element.get("initial_value", "")) > element.get("max_length", 3000):
            yield "initial_value"
        if "placeholder" in element:
            yield from _text(element["placeholder"], 150, ("plain_text",))
    else:
        yield f"no such element: {kind}"


def _confirm(confirm: Mapping[str, Any]) -> Iterator[str]:
    yield from _text(confirm.get("title"), 100, ("plain_text",))
    yield from _text(confirm.get("text"), 300, ("plain_text", "mrkdwn"))
    yield from _text(confirm.get("confirm"), 30, ("plain_text",))
    yield from _text(confirm.get("deny"), 30, ("plain_text",))


def _rich(element: Mapping[str, Any]) -> Iterator[str]:
    kind = element.get("type")
    if kind not in _RICH:
        yield f"no such rich text: {kind}"
        return
    if kind == "rich_text_list":
        if element.get("style") not in ("bullet", "ordered") or not 0 <= element.get("indent", 0) <= 8:
            yield "list style or indent"
        if not element.get("elements"):
            yield "an empty list"
        for row in element.get("elements", ()):
            if row.get("type") != "rich_text_section":
                yield "a list holds sections only"
            else:
                yield from _rich(row)
        return
    if not element.get("elements"):
        yield "rich text without runs"
    for run in element.get("elements", ()):
        if run.get("type") == "text":
            if not isinstance(run.get("text"), str) or not run["text"]:
                yield "an empty run"
            if set(run.get("style", {})) - _STYLES:
                yield "run style"
            if kind == "rich_text_preformatted" and "style" in run:
                yield "a style in preformatted text"
        elif run.get("type") not in ("link", "emoji", "user", "channel", "broadcast"):
            yield f"no such run: {run.get('type')}"


def view_problems(view: Any) -> list[str]:
    """What is wrong with a modal."""
    if not isinstance(view, Mapping) or view.get("type") != "modal":
        return ["no modal"]
    found = list(_text(view.get("title"), 24, ("plain_text",)))
    for name in ("submit", "close"):
        if name in view:
            found += _text(view[name], 24, ("plain_text",))
    if len(view.get("private_metadata", "")) > 3000:
        found.append("private_metadata")
    if not 1 <= len(view.get("callback_id", "")) <= 255:
        found.append("callback_id")
    if any(block.get("type") == "input" for block in view.get("blocks", ())) and "submit" not in view:
        found.append("inputs without submit")
    return found + problems(view.get("blocks"), modal=True)


def live_runs(blocks: Any) -> list[str]:
    """Everything in blocks that Slack would turn into a mention, a link or markup."""
    found: list[str] = []
    if isinstance(blocks, Mapping):
        if blocks.get("type") in ("mrkdwn", "link", "user", "channel", "broadcast", "usergroup", "markdown"):
            found.append(json.dumps(blocks, ensure_ascii=False)[:200])
        for value in blocks.values():
            found += live_runs(value)
    elif isinstance(blocks, list):
        for value in blocks:
            found += live_runs(value)
    return found
