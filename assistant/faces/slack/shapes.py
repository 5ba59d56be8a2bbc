"""Whether a body has the form of what Slack sends, before anything takes its parts for granted.

Slack signs what it sends, so this is about what it may change one day, and about whoever learns the secret: odd input
is refused with 400 and is no mistake of ours. Only the parts that Bolt and the listeners reach into are looked at.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

_TABLES = frozenset(
    "container view enterprise event state item bot_profile previous_message metadata assistant_thread function_data "
    "interactivity workflow_step".split()
)
#: A table in one kind of payload, a text in another: an id, or the text of a button and the button's text object.
_EITHER = frozenset(("team", "channel", "message", "user", "text", "value", "name"))
_LISTS = frozenset(("actions", "authorizations", "blocks", "files", "response_urls", "elements"))
_TEXTS = frozenset(
    "type callback_id action_id block_id team_id enterprise_id channel_id user_id id command trigger_id response_url ts "
    "thread_ts subtype bot_id event_id message_ts private_metadata username context_team_id context_enterprise_id".split()
)
_DEEPEST = 40


def is_sound(body: str, content_type: str) -> bool:
    """Whether ``body`` can be what Slack sends with this content type."""
    if content_type.partition(";")[0].strip().lower() == "application/json":
        return _is_event(body)
    fields = parse_qs(body)
    if "payload" not in fields:
        return "ssl_check" in fields or "command" in fields
    return _is_event(fields["payload"][0])


def _is_event(text: str) -> bool:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(table, dict) and isinstance(table.get("type"), str) and _is_fitting(table, _DEEPEST)


def _is_fitting(table: dict[str, Any], deepest: int) -> bool:
    if deepest == 0 or not all(
        _has_its_kind(name, value, deepest) for name, value in table.items() if value is not None
    ):
        return False
    typed = [table[name] for name in ("event", "view") if name in table]
    if table.get("type") == "event_callback" and not typed or not all(isinstance(part, dict) for part in typed):
        return False
    acts = table.get("actions", [{"type": "", "name": ""}])
    named = bool(acts) and all("action_id" in act or "name" in act for act in acts)
    return named and all(isinstance(part.get("type"), str) for part in (*typed, *acts))


def _has_its_kind(name: str, value: Any, deepest: int) -> bool:
    if isinstance(value, dict):
        return name not in _LISTS | _TEXTS and _is_fitting(value, deepest - 1)
    if name in _LISTS:
        return isinstance(value, list) and all(
            isinstance(part, dict) and _is_fitting(part, deepest - 1) for part in value
        )
    if name in _TABLES:
        return False
    if name in _TEXTS | _EITHER and not isinstance(value, str):
        return False
    return not isinstance(value, str) or _can_be_kept(value)


def _can_be_kept(text: str) -> bool:
    """Half of a surrogate pair is no text: it could neither be kept nor sent on."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
