"""What Slack sends, turned into orders. The same listeners serve HTTP and Socket Mode.

A listener does three things: it reads what came, redacts what people wrote before anything is kept, and acknowledges.
Work happens at the :class:`~assistant.faces.slack.desk.Desk`. Only forms are opened from here, because the permission
for that lives three seconds.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from assistant.faces.slack import forms
from assistant.faces.slack.answer import read_value
from assistant.faces.slack.elements import fallback
from assistant.faces.slack.files import files_in
from assistant.faces.slack.line import Line
from assistant.faces.slack.text import readable
from knowledge.text import language_of
from tools.redaction import clean

if TYPE_CHECKING:
    from slack_bolt.async_app import AsyncApp

    from assistant.faces.slack.desk import Desk
    from assistant.service import Service

COMMAND = "/vllm-diagnose"
SHORTCUT = "diagnose_message"
#: A button that leads to a page; Slack opens it, and wants to hear that the click arrived.
VISIT = "visit"
#: Events that are subscribed to.
EVENTS = ("app_mention",)
_SUBCOMMANDS = ("help", "status", "memory", "runbook", "nccl")
_PRESSES = re.compile(r"^(?:next|path|report|language|back|over|worked|failed|choose|answer:\d+|run:\d+)$")
_CALLS = re.compile(r"^(?:agree|leave|stop|pick:\d+)$")
_OPENS = re.compile(r"^(?:open|details)$")
_MOST_TEXT = 100_000
_log = logging.getLogger("vllm_diagnose.slack")


def listen(app: AsyncApp, service: Service, desk: Desk) -> None:
    """Register every listener on a Bolt application."""
    inbox = Inbox(service, desk)
    app.command(COMMAND)(inbox.command)
    app.shortcut({"callback_id": SHORTCUT, "type": "message_action"})(inbox.shortcut)
    for event in EVENTS:
        app.event(event)(inbox.event)
    app.action(_PRESSES)(inbox.press)
    app.action(_CALLS)(inbox.call)
    app.action(_OPENS)(inbox.open_form)
    app.action(VISIT)(inbox.visit)
    for callback in (forms.ASK, forms.MORE, forms.VALUE):
        app.view(callback)(inbox.submitted)


class Inbox:
    """The listeners."""

    def __init__(self, service: Service, desk: Desk) -> None:
        self._service = service
        self._desk = desk
        self._default: str = service.settings.text("language") or "en"

    async def command(self, ack: Any, body: Mapping[str, Any], client: Any) -> None:
        """``/vllm-diagnose`` in all its forms."""
        text = self._clean(str(body.get("text") or ""))
        line = Line(
            team=_text(body, "team_id"),
            enterprise=_text(body, "enterprise_id"),
            channel=_text(body, "channel_id"),
            user=_text(body, "user_id"),
            url=_text(body, "response_url"),
            url_from=time.time(),
        )
        order: dict[str, Any] = {
            "line": line.to_json(),
            "name": _text(body, "user_name"),
            "lang": self._language(text),
        }
        if not text:
            await ack()
            if self._desk.first(f"form:{_text(body, 'trigger_id')}"):
                view = forms.ask_form(self._service, self._default, {"line": line.to_json()})
                await self._open(client, body, view, line)
            return
        word, _, rest = text.partition(" ")
        name = "help" if text in ("帮助", "?") else word.lower()
        if name in _SUBCOMMANDS and is_form(name, rest.strip()):
            kind = {"help": "help", "status": "status", "runbook": "runbook"}.get(name, "command")
            order |= {"kind": kind, "command": name, "text": rest.strip(), "quiet": kind != "command"}
        elif (target := self._target(text)) is not None:
            order |= {"kind": "diagnose", "text": "", "target": target}
        else:
            order |= {"kind": "diagnose", "text": text}
        await self._desk.accept(f"command:{_text(body, 'trigger_id')}", order)
        await ack()

    async def shortcut(self, ack: Any, body: Mapping[str, Any]) -> None:
        """ "Diagnose this message": its words, its files, answered in its thread."""
        message = body.get("message") or {}
        text = self._clean(readable(str(message.get("text") or "")))
        channel = _inner(body, "channel", "id")
        line = Line(
            team=_inner(body, "team", "id"),
            enterprise=_inner(body, "enterprise", "id"),
            channel=channel,
            user=_inner(body, "user", "id"),
            thread=str(message.get("thread_ts") or message.get("ts") or ""),
            url=_text(body, "response_url"),
            url_from=time.time(),
        )
        order = {
            "kind": "diagnose",
            "line": line.to_json(),
            "name": _inner(body, "user", "username") or _inner(body, "user", "name"),
            "home": _inner(body, "user", "team_id"),
            "lang": self._language(text),
            "text": text,
            "files": [asdict(file) for file in files_in(message)],
        }
        await self._desk.accept(f"shortcut:{_text(body, 'trigger_id')}", order)
        await ack()

    async def event(self, ack: Any, body: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """A mention, in a thread or not."""
        if event.get("bot_id") or not event.get("user"):
            await ack()
            return
        text = self._clean(readable(str(event.get("text") or "")))
        thread = str(event.get("thread_ts") or "")
        line = Line(
            team=_text(body, "team_id"),
            enterprise=_text(body, "enterprise_id"),
            channel=_text(event, "channel"),
            user=_text(event, "user"),
            thread=thread or _text(event, "ts"),
        )
        order: dict[str, Any] = {
            "kind": "diagnose",
            "line": line.to_json(),
            "home": _text(event, "user_team") or _text(event, "team"),
            "lang": self._language(text),
            "text": text,
            "files": [asdict(file) for file in files_in(event)],
            "thread_of": thread,
        }
        if text.lower() in ("help", "帮助", "?"):
            order |= {"kind": "help", "quiet": True}
        await self._desk.accept(f"event:{_text(body, 'event_id')}", order)
        await ack()

    async def press(self, ack: Any, body: Mapping[str, Any], action: Mapping[str, Any]) -> None:
        """A button or a menu under an answer."""
        value = str(action.get("value") or "")
        if chosen := action.get("selected_option"):
            # A menu's options have no room for the talk; its block has.
            talk = str(action.get("block_id") or "").partition(":")[2]
            value = f"{talk}{chosen.get('value', '')}"
        await self._act(ack, body, action, {"kind": "press", "value": value})

    async def call(self, ack: Any, body: Mapping[str, Any], action: Mapping[str, Any]) -> None:
        """A button that belongs to no talk: about a call of a tool, a job, a list of causes."""
        name = str(action.get("action_id") or "").partition(":")[0]
        kind = {"agree": "agree", "leave": "agree", "stop": "stop", "pick": "pick"}[name]
        await self._act(ack, body, action, {"kind": kind, "value": str(action.get("value") or "")})

    async def _act(
        self, ack: Any, body: Mapping[str, Any], action: Mapping[str, Any], order: Mapping[str, Any]
    ) -> None:
        line = _clicked(body)
        name = str(action.get("action_id") or "")
        label = _inner(action, "text", "text") or _inner(action.get("selected_option") or {}, "text", "text")
        if order["kind"] == "pick":
            line = replace(line, ts="")  # the list was for one person; the steps become a message of their own
        whole = {
            **order,
            "action": name,
            "line": line.to_json(),
            "name": _inner(body, "user", "username") or _inner(body, "user", "name"),
            "home": _inner(body, "user", "team_id"),
            "lang": language_of(label) if label else self._default,
            "quiet": True,
        }
        trigger = _text(body, "trigger_id") or f"{action.get('action_ts')}:{line.user}:{name}"
        await self._desk.accept(f"press:{trigger}", whole)
        await ack()

    async def visit(self, ack: Any) -> None:
        """A button that led to a page."""
        await ack()

    async def open_form(self, ack: Any, body: Mapping[str, Any], action: Mapping[str, Any], client: Any) -> None:
        """A button that opens a form: an answer in one's own words, or more details."""
        await ack()
        if not self._desk.first(f"form:{_text(body, 'trigger_id')}"):
            return
        value, line = str(action.get("value") or ""), _clicked(body)
        try:
            talk, revision, question = read_value(value)
        except ValueError:
            return
        # The language of the message: the store is not asked before the form is open.
        lang = language_of(_inner(action, "text", "text"))
        metadata = {"line": line.to_json(), "talk": talk, "revision": revision, "question": question}
        if action.get("action_id") == "open":
            view = forms.value_form(self._service, lang, question, metadata)
        else:
            view = forms.more_form(self._service, lang, metadata)
        await self._open(client, body, view, line)

    async def submitted(self, ack: Any, body: Mapping[str, Any], view: Mapping[str, Any]) -> None:
        """A form that was sent."""
        try:
            metadata = forms.metadata_of(view)
            line = replace(Line.of(metadata["line"]), user=_inner(body, "user", "id"), team=_inner(body, "team", "id"))
        except (ValueError, KeyError, TypeError):
            await ack()
            return
        lang = "zh" if metadata.get("lang") == "zh" else "en"
        given = {name: self._clean(text) for name, text in forms.filled(view).items()}
        callback = str(view.get("callback_id"))
        if not any(given.values()) or (callback == forms.ASK and not (given.keys() & {"text", "log", "target"})):
            await ack(response_action="errors", errors={"text": self._service.catalog.word("slack-form-empty", lang)})
            return
        order: dict[str, Any] = {
            "line": line.to_json(),
            "name": _inner(body, "user", "username") or _inner(body, "user", "name"),
            "home": _inner(body, "user", "team_id"),
            "lang": lang,
        }
        if callback == forms.VALUE:
            value = (
                f"{metadata.get('talk')}:{metadata.get('revision')}:{metadata.get('question')}={given.get('text', '')}"
            )
            order |= {"kind": "press", "action": "answer:0", "value": value, "quiet": True}
        else:
            order |= {"kind": "diagnose", **given}
            order["lang"] = self._language(given.get("text", "")) if given.get("text") else lang
            if callback == forms.MORE:
                order |= {"talk": metadata.get("talk"), "lang": lang}
        # A view has one id for its life and is sent once; its state is part of the key because errors let it go again.
        digest = hashlib.sha256(repr(sorted(given.items())).encode("utf-8", "replace")).hexdigest()[:16]
        await self._desk.accept(f"view:{view.get('id')}:{digest}", order)
        await ack()

    async def _open(self, client: Any, body: Mapping[str, Any], view: Mapping[str, Any], line: Line) -> None:
        from slack_sdk.errors import SlackApiError, SlackClientError

        try:
            await client.views_open(trigger_id=_text(body, "trigger_id"), view=view)
        except (SlackClientError, OSError, TimeoutError) as error:
            word = error.response.get("error") if isinstance(error, SlackApiError) else type(error).__name__
            _log.warning("A form could not be opened: %s.", word)
            text = self._service.catalog.word("slack-expired", self._default)
            try:
                await client.chat_postEphemeral(channel=line.channel, user=line.user, text=fallback(text))
            except (SlackClientError, OSError, TimeoutError):
                return

    def _clean(self, text: str) -> str:
        """As it may be kept and shown: bounded, without control characters and secrets."""
        return self._service.clean(text[:_MOST_TEXT]).strip()

    def _language(self, text: str) -> str:
        set_by_site = self._service.settings.text("language")
        return set_by_site or (language_of(text) if text else self._default)

    def _target(self, text: str) -> str | None:
        """The configured target that a single word names, by its name or its address."""
        if len(text.split()) != 1:
            return None
        word = clean(readable(text)).rstrip("/")
        for name, target in self._service.targets.items():
            if word == name or word == target.address.rstrip("/"):
                return name
        return None


def is_form(name: str, rest: str) -> bool:
    """Whether what follows makes it a form of the command; "memory grows all day" and "NCCL hangs" are questions."""
    if name == "nccl":
        return not rest or rest[0] in "-—0123456789"
    if name == "memory":
        return not rest or len(rest.split()) == 1 or " -" in rest or " —" in rest
    return name == "runbook" or not rest


def _clicked(body: Mapping[str, Any]) -> Line:
    """The message that a button stands in, with the fresh response_url of the click."""
    container = body.get("container") or {}
    seen_by_one = bool(container.get("is_ephemeral"))
    return Line(
        team=_inner(body, "team", "id"),
        enterprise=_inner(body, "enterprise", "id"),
        channel=_inner(body, "channel", "id") or str(container.get("channel_id") or ""),
        user=_inner(body, "user", "id"),
        thread=str(container.get("thread_ts") or ""),
        ts="" if seen_by_one else str(container.get("message_ts") or ""),
        url=_text(body, "response_url"),
        url_from=time.time(),
    )


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    return value[:2000] if isinstance(value, str) else ""


def _inner(table: Mapping[str, Any], name: str, inner: str) -> str:
    part = table.get(name)
    return _text(part, inner) if isinstance(part, Mapping) else ""
