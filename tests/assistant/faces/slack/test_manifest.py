"""The shipped manifest: what Slack's schema takes, and exactly what the program uses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from assistant.faces.slack import face, listeners
from tests.assistant.faces.slack.standin import NEEDS

ROOT = Path(__file__).parents[4]
SCHEMA = json.loads((ROOT / "tests/data/slack/manifest.schema.2.0.0.json").read_text("utf-8"))
MANIFEST: dict[str, Any] = yaml.safe_load((ROOT / "deploy/slack/manifest.yaml").read_text("utf-8"))
SOCKET: dict[str, Any] = yaml.safe_load((ROOT / "deploy/slack/manifest-socket.yaml").read_text("utf-8"))


def errors(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(manifest)]


def test_slacks_schema_takes_both() -> None:
    assert errors(MANIFEST) == [] and errors(SOCKET) == []


def test_the_one_for_socket_mode_is_the_same_without_addresses() -> None:
    expected = copy.deepcopy(MANIFEST)
    for command in expected["features"]["slash_commands"]:
        del command["url"]
    del expected["oauth_config"]["redirect_urls"]
    for part in ("event_subscriptions", "interactivity"):
        del expected["settings"][part]["request_url"]
    expected["settings"]["socket_mode_enabled"] = True
    assert expected == SOCKET


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("display_information", "name"), "x" * 36),
        (("display_information", "description"), "x" * 141),
        (("features", "slash_commands", 0, "command"), "/" + "x" * 40),
        (("settings", "interactivity", "is_enabled"), "yes"),
        (("surprise",), 1),
    ],
)
def test_the_schema_refuses_what_slack_would(path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(MANIFEST)
    part: Any = broken
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert errors(broken)


def test_it_lists_exactly_what_is_listened_to() -> None:
    features, settings = MANIFEST["features"], MANIFEST["settings"]
    assert [command["command"] for command in features["slash_commands"]] == [listeners.COMMAND]
    assert [shortcut["callback_id"] for shortcut in features["shortcuts"]] == [listeners.SHORTCUT]
    assert settings["event_subscriptions"]["bot_events"] == list(listeners.EVENTS)
    for table in (settings["event_subscriptions"], settings["interactivity"]):
        assert table["request_url"].endswith(face.EVENTS)
    assert MANIFEST["oauth_config"]["redirect_urls"][0].endswith(face.REDIRECT)


def test_it_asks_for_exactly_the_scopes_in_use() -> None:
    scopes = MANIFEST["oauth_config"]["scopes"]["bot"]
    assert scopes == sorted(scopes) == list(face.SCOPES)
    # A scope has a method that needs it, an event, or: commands themselves, public channels, downloads of files.
    used = {scope for needed in NEEDS.values() for scope in needed}
    used |= {"app_mentions:read", "commands", "chat:write.public", "files:read"}
    assert set(scopes) == used
