"""Alerts in Slack: one message for a group of alerts, changed in place, with what happens to it in its thread.

Whoever groups alerts and diagnoses them knows nothing of Slack: it calls :meth:`SlackChannel.post` and keeps the
reference that comes back, with which any replica finds the message again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from assistant.faces.slack.answer import Shown, answer_message
from assistant.faces.slack.drawing import draw, fitted, pages
from assistant.faces.slack.elements import actions, link
from assistant.faces.slack.line import Line, UnreachableError
from assistant.faces.slack.talks import FACE, Talk
from assistant.readers import ReadersError
from assistant.security.roles import Principal, Role
from assistant.store.database import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slack_sdk.web.async_client import AsyncWebClient

    from assistant.faces.slack.elements import Piece
    from assistant.faces.slack.face import Face
    from assistant.render.blocks import Block

ALERTS = Principal("slack:alerts", "alerts", Role.viewer)
#: Seconds for what goes below the message. Whoever works on alerts waits 20 s for all of it, and a message whose place
#: it does not learn would be posted again.
_BELOW_S = 8.0
_log = logging.getLogger("vllm_diagnose.slack")


class Message(Protocol):
    """What is said about a group of alerts: the whole message as blocks, its one line, and its incident."""

    @property
    def title(self) -> str:
        """One line, for notifications."""

    @property
    def event(self) -> str:
        """``opened``, ``updated``, ``resolved`` or ``rest``."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The message."""

    @property
    def url(self) -> str:
        """Where more about it is."""

    @property
    def incident(self) -> str | None:
        """The incident that was kept of it."""


class SlackChannel:
    """The channel ``slack.alert_channel``; ``TEAM/CHANNEL`` where the app is installed in several workspaces.

    What Slack does not take is raised as ``refusal``, an exception that is made from a sentence. Once the message itself
    is there nothing is raised any more: what belongs below it and did not get there comes with the next news.
    """

    name = "slack"

    def __init__(self, face: Face, *, refusal: type[Exception] = UnreachableError) -> None:
        self._face = face
        self._team, _, self._channel = face.settings.text("slack.alert_channel").rpartition("/")
        self._refusal = refusal
        if not self._channel:
            raise ValueError("slack.alert_channel is not set")

    async def post(self, message: Message) -> str:
        """A new message, with the diagnosis and its buttons in its thread; returns the reference."""
        drawn = list(draw(message.blocks))
        first, rest = self._whole(drawn, message), pages(drawn)[1:]
        try:
            client = await self._client()
            # Buttons and mentions in the thread name the workspace, so that the talk has to know it too.
            line = Line(self._team or await self._home(), self._channel, "")
            line = await self._face.speaker.show(client, line, first, message.title)
        except UnreachableError as error:
            raise self._refusal(str(error)) from None
        await self._below(client, line, message, rest[:2])
        return f"{line.team}/{line.channel}/{line.ts}"

    async def update(self, reference: str, message: Message) -> None:
        """The message as it is now; that it is over is also said in the thread, where people were talking."""
        team, channel, ts = reference.split("/", 2)
        line = Line(team, channel, "", ts=ts)
        try:
            client = await self._client()
            now = self._whole(list(draw(message.blocks)), message)
            await self._face.speaker.show(client, line, now, message.title)
        except UnreachableError as error:
            raise self._refusal(str(error)) from None
        await self._below(client, line, message, pages(draw(message.blocks))[:1] if message.event == "resolved" else [])

    def _whole(self, drawn: Sequence[Piece], message: Message) -> list[Piece]:
        """The message as far as one holds it, with the way to the page where people outside reach it."""
        settings = self._face.settings
        if not settings.text("server.public_url"):
            return fitted([], drawn, [])
        label = self._face.service.catalog.word("slack-open", settings.text("language") or "en")
        return fitted([], drawn, [actions("alert", [link("visit", label, message.url)])])

    async def _below(self, client: AsyncWebClient, line: Line, message: Message, said: Sequence[list[Piece]]) -> None:
        """Further messages in the thread, and the diagnosis where it is not there yet."""
        try:
            async with asyncio.timeout(_BELOW_S):
                for page in said:
                    await self._face.speaker.below(client, line, page, message.title)
                await self._answer(client, line, message)
        except (UnreachableError, TimeoutError) as error:
            _log.warning("The thread of an alert lacks something. %s", error or "Slack did not answer in time.")

    async def _answer(self, client: AsyncWebClient, first: Line, message: Message) -> None:
        """The diagnosis once in the thread of the message, as a talk that anybody there goes on with."""
        service = self._face.service
        if message.incident is None:
            return
        line = Line(first.team, first.channel, "", thread=first.ts)
        try:
            if await service.in_thread(service.conversations.at, FACE, line.place, 1):
                return
            answered = await service.incident(ALERTS, message.incident)
            talk = Talk(answered.diagnosis.language, line)
            begun = await service.in_thread(
                lambda: service.conversations.begin(FACE, line.place, talk.to_json(), incident=message.incident)
            )
        except (StoreError, ReadersError, TimeoutError):
            return  # the message itself is there; the diagnosis can be asked for
        drawn = answer_message(answered.diagnosis, service.catalog, Shown(begun.id, begun.revision))
        await self._face.speaker.show(client, line, *drawn)

    async def _home(self) -> str:
        try:
            return await self._face.workspaces.home()
        except (OSError, TimeoutError) as error:
            raise UnreachableError(f"Slack does not answer: {error or 'not in time'}.") from None

    async def _client(self) -> AsyncWebClient:
        client = await self._face.workspaces.of(self._team)
        if client is None:
            raise UnreachableError("The app is not installed in a workspace of Slack.")
        return client
