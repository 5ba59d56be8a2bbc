"""What Slack sends is let through, and what it would not send is not."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from assistant.faces.slack.shapes import is_sound

FORM, JSON = "application/x-www-form-urlencoded", "application/json; charset=utf-8"
CLICK: dict[str, Any] = {
    "type": "block_actions",
    "team": {"id": "T0"},
    "user": {"id": "U0"},
    "channel": {"id": "C0"},
    "enterprise": None,
    "container": {"type": "message", "message_ts": "1.1"},
    "actions": [
        {"type": "button", "action_id": "language", "value": "x", "text": {"type": "plain_text", "text": "中文"}}
    ],
}
FORM_SENT: dict[str, Any] = {
    "type": "view_submission",
    "team": {"id": "T0"},
    "user": {"id": "U0", "username": "ada", "name": "ada"},
    "view": {
        "id": "V0",
        "type": "modal",
        "callback_id": "ask",
        "private_metadata": "{}",
        "title": {"type": "plain_text", "text": "x"},
        "blocks": [
            {"type": "input", "block_id": "text", "element": {"type": "plain_text_input", "action_id": "value"}}
        ],
        "state": {"values": {"text": {"value": {"type": "plain_text_input", "value": "it hangs"}}}},
    },
}
EVENT: dict[str, Any] = {
    "type": "event_callback",
    "team_id": "T0",
    "event": {
        "type": "app_mention",
        "user": "U0",
        "text": "it hangs",
        "ts": "1.1",
        "files": [{"id": "F0", "name": "a"}],
    },
}


def test_what_slack_sends_is_sound() -> None:
    assert is_sound(urlencode({"command": "/vllm-diagnose", "text": ""}), FORM)
    assert is_sound("ssl_check=1", FORM)
    assert is_sound(urlencode({"payload": json.dumps(CLICK)}), FORM)
    assert is_sound(urlencode({"payload": json.dumps(FORM_SENT)}), FORM)
    assert is_sound(json.dumps(EVENT), JSON)
    assert is_sound(json.dumps({"type": "url_verification", "challenge": "x"}), JSON)


@pytest.mark.parametrize(
    "changed",
    [
        {"type": None},
        {"actions": []},
        {"actions": [[]]},
        {"actions": [{"type": "button"}]},
        {"user": 7},
        {"container": "x"},
        {"view": {"id": "V0"}},
        {"channel": {"name": "\ud800"}},
        {"type": {"a": 1}},
        {"type": "event_callback"},
        {"type": "event_callback", "event": None},
    ],
)
def test_what_slack_would_not_send_is_refused(changed: dict[str, Any]) -> None:
    assert not is_sound(urlencode({"payload": json.dumps(CLICK | changed)}), FORM)


@pytest.mark.parametrize("body", ["", "null", "[]", "{", '{"a": 1}', "[" * 50_000, '{"type":' * 50_000])
def test_what_is_no_table_is_refused(body: str) -> None:
    assert not is_sound(body, JSON)
    assert not is_sound(urlencode({"payload": body}), FORM)


def test_what_is_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {"type": "x"}
    for _ in range(100):
        deep = {"type": "x", "state": deep}
    assert not is_sound(json.dumps(deep), JSON)
