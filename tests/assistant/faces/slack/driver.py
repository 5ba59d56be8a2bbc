"""Requests as Slack sends and signs them, and a service that they go to."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from assistant.settings import load
from tests.assistant.faces.inside import Inside
from tests.assistant.faces.slack.standin import Message, Slack

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
FOLDER = Path(__file__).parents[3] / "data" / "lab" / "tp2-truncated"
LOG = (FOLDER / "server.log").read_text("utf-8")


def environment(folder: Path, slack: Slack, **more: str) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        "VLLM_DIAGNOSE_SLACK_SIGNING_SECRET": SECRET,
        "VLLM_DIAGNOSE_SLACK_BOT_TOKEN": "xoxb-good",
        "VLLM_DIAGNOSE_SLACK_API_URL": slack.api_url,
        "VLLM_DIAGNOSE_SLACK_OPERATORS": "S0GROUP1",
        **more,
    }


class Served:
    """A service in this process on a real socket."""

    def __init__(self, folder: Path, slack: Slack, **more: str) -> None:
        self.slack = slack
        self._server = Inside(load(environment(folder, slack, **more)))
        self.app = self._server.app
        self.user = User(slack, self._server.address)

    def stop(self) -> None:
        self._server.stop()


class User:
    """Somebody in Slack who types and clicks."""

    def __init__(self, slack: Slack, address: str, user: str = "U0ADA", channel: str = "C0OPEN") -> None:
        self.slack, self.address, self.id, self.channel = slack, address, user, channel
        self.client = httpx.Client(timeout=20)

    def as_(self, user: str, channel: str = "") -> User:
        return User(self.slack, self.address, user, channel or self.channel)

    def command(self, text: str = "", **more: str) -> httpx.Response:
        return self.post(form(self.command_body(text, **more)))

    def command_body(self, text: str = "", **more: str) -> dict[str, str]:
        return {
            "command": "/vllm-diagnose",
            "text": text,
            "team_id": self.slack.team,
            "channel_id": self.channel,
            "user_id": self.id,
            "user_name": self.id.lower(),
            "trigger_id": self.slack.trigger(),
            "response_url": self.slack.url(self.channel, self.id),
            **more,
        }

    def mention(self, text: str, thread: str = "", files: Any = (), **more: Any) -> httpx.Response:
        said = self.slack.say(self.channel, text, self.id, thread, files)
        return self.post(json.dumps(self.mention_body(text, said.ts, thread, files, **more)), kind="application/json")

    def mention_body(self, text: str, ts: str, thread: str = "", files: Any = (), **more: Any) -> dict[str, Any]:
        event = {"type": "app_mention", "user": self.id, "text": f"<@{self.slack.bot_user}> {text}", "ts": ts}
        event |= {"channel": self.channel, "team": self.slack.team}
        if thread:
            event["thread_ts"] = thread
        if files:
            event["files"] = list(files)
        return {
            "type": "event_callback",
            "team_id": self.slack.team,
            "api_app_id": "A0APP",
            "event": event,
            "event_id": f"Ev{secrets.token_hex(5)}",
            "event_time": int(time.time()),
            **more,
        }

    def shortcut(self, message: Message) -> httpx.Response:
        return self.interact(
            {
                "type": "message_action",
                "callback_id": "diagnose_message",
                "trigger_id": self.slack.trigger(),
                "response_url": self.slack.url(self.channel, self.id),
                "channel": {"id": message.channel, "name": "x"},
                "message": {
                    "type": "message",
                    "user": message.user,
                    "ts": message.ts,
                    "text": message.text,
                    "files": message.files,
                },
            }
        )

    def press(self, message: Message, action: str, choice: str = "") -> httpx.Response:
        return self.interact(self.press_body(message, action, choice))

    def press_body(self, message: Message, action: str, choice: str = "") -> dict[str, Any]:
        block, element = find(message.blocks, action)
        act = {"type": element["type"], "action_id": action, "block_id": block["block_id"], "action_ts": "1"}
        if element["type"] == "button":
            act |= {name: element[name] for name in ("value", "text", "url") if name in element}
        else:
            act["selected_option"] = next(o for o in element["options"] if choice in (o["value"], o["text"]["text"]))
        return {
            "type": "block_actions",
            "trigger_id": self.slack.trigger(),
            "response_url": self.slack.url(message.channel, self.id, message),
            "channel": {"id": message.channel, "name": "x"},
            "container": {
                "type": "message",
                "message_ts": message.ts,
                "channel_id": message.channel,
                "is_ephemeral": bool(message.only_for),
                **({"thread_ts": message.thread} if message.thread else {}),
            },
            "actions": [act],
        }

    def submit(self, view: dict[str, Any], **values: str) -> httpx.Response:
        state: dict[str, Any] = {}
        for block in view["blocks"]:
            name, element = block["block_id"], block["element"]
            given = values.get(name)
            if element["type"] == "static_select":
                option = next((o for o in element["options"] if o["value"] == given), None)
                state[name] = {"value": {"type": "static_select", "selected_option": option}}
            else:
                assert given is None or len(given) <= element["max_length"]
                state[name] = {"value": {"type": "plain_text_input", "value": given}}
        return self.interact({"type": "view_submission", "view": {**view, "state": {"values": state}}})

    def interact(self, payload: dict[str, Any]) -> httpx.Response:
        whole = {"team": {"id": self.slack.team}, "api_app_id": "A0APP", **payload}
        whole["user"] = {"id": self.id, "username": self.id.lower(), "team_id": self.slack.team}
        return self.post(form({"payload": json.dumps(whole)}))

    def post(
        self,
        body: str,
        *,
        kind: str = "application/x-www-form-urlencoded",
        at: float = 0.0,
        secret: str = SECRET,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        return self.client.post(
            f"{self.address}/slack/events",
            content=body.encode(),
            headers={"Content-Type": kind, **signed(body, at=at, secret=secret), **(headers or {})},
        )

    # what is there to see

    def answer(self, before: int, seconds: float = 30) -> Message:
        """The newest finished answer after ``before`` messages of the bot in this channel."""

        def finished() -> Message | None:
            rows = self.slack.answers(self.channel)[before:]
            return next((m for m in rows if "about:" in json.dumps(m.blocks)), None)

        found = wait_for(finished, seconds)
        assert isinstance(found, Message)
        return found

    def count(self) -> int:
        return len(self.slack.answers(self.channel))

    def changed(self, message: Message, before: list[Any], seconds: float = 20) -> Message:
        wait_for(lambda: message.blocks is not before, seconds)
        return message


def signed(body: str, *, at: float = 0.0, secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(at or time.time()))
    digest = hmac.new(secret.encode(), f"v0:{stamp}:{body}".encode(), hashlib.sha256).hexdigest()
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={digest}"}


def form(fields: dict[str, str]) -> str:
    return urlencode(fields)


def find(blocks: list[Any], action: str) -> tuple[Any, Any]:
    for block in blocks:
        for element in block.get("elements", ()):
            if element.get("action_id") == action:
                return block, element
    raise AssertionError(f"no {action} among {sorted(buttons(blocks))}")


def buttons(blocks: list[Any]) -> Iterator[str]:
    for block in blocks:
        if block["type"] == "actions":
            for element in block["elements"]:
                yield element["action_id"]


def words(blocks: Any) -> str:
    """Every text in blocks, one a line."""
    found: list[str] = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("text"), str):
                found.append(part["text"])
            for value in part.values():
                look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    look(blocks)
    return "\n".join(found)


def wait_for(look: Callable[[], Any], seconds: float = 20) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")
