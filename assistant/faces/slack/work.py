"""One order under way: who asked, where its message stands, and the words to say something there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from assistant.faces.slack.elements import Piece, paragraph, rich, words
from assistant.faces.slack.line import Line, Speaker
from assistant.store.database import StoreError
from assistant.store.orders import LostOrderError
from tools import registry
from tools.registry import ActionError

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

    from assistant.faces.slack.desk import Desk
    from assistant.faces.slack.files import Fetcher
    from assistant.security.roles import Principal
    from assistant.service import Service
    from assistant.store.orders import Held

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Means:
    """What every order is carried out with."""

    service: Service
    speaker: Speaker
    fetcher: Fetcher


class Work:
    """An order under way. ``line`` is where its own message stands, ``who`` the person with their role."""

    def __init__(
        self,
        means: Means,
        desk: Desk,
        order: Mapping[str, Any],
        held: Held | None,
        client: AsyncWebClient,
        who: Principal,
    ) -> None:
        self.service = means.service
        self.catalog = means.service.catalog
        self.speaker = means.speaker
        self.fetcher = means.fetcher
        self.client = client
        self.who = who
        self.order = dict(order)
        self.held = held
        self.line = Line.of(order["line"])
        self.lang: Language = "zh" if order.get("lang") == "zh" else "en"
        self._desk = desk
        self._turn = asyncio.Lock()

    def word(self, key: str, **values: object) -> str:
        """A sentence in the language of the order."""
        return self.catalog.word(key, self.lang, **values)

    def told(self, error: Exception | str) -> str:
        """What an error says, in the language of the order."""
        return self.catalog.told(str(error), self.lang)

    def title(self, action: str) -> str:
        """What an action is called; its name where this program does not know it."""
        try:
            return self.catalog.tool(action, registry.get(action).title, self.lang)
        except ActionError:
            return action

    async def show(self, blocks: Sequence[Piece], text: str) -> None:
        """The order's message as it shall be now; where it stands is kept, so that a restart edits the same one."""
        line = await self.speaker.show(self.client, self.line, blocks, text)
        if line != self.line:
            self.line = line
            try:
                await self.keep(line=line.to_json())
            except LostOrderError:
                raise
            except StoreError:
                pass  # a restart would begin a new message, which is better than no answer now

    async def say(self, key: str, **values: object) -> None:
        """One sentence as the order's message. Where the order has none, only the person sees it."""
        text = self.word(key, **values)
        if self.order.get("quiet"):
            await self.whisper_text(text)
        else:
            await self.show([rich(paragraph(words(text)))], text)

    async def whisper(self, key: str, **values: object) -> None:
        """One sentence for the person alone."""
        await self.whisper_text(self.word(key, **values))

    async def whisper_text(self, text: str) -> None:
        """Finished words for the person alone."""
        await self.whisper_blocks([rich(paragraph(words(text)))], text)

    async def whisper_blocks(self, blocks: Sequence[Piece], text: str) -> None:
        """Blocks for the person alone."""
        await self.speaker.whisper(self.client, replace(self.line, user=str(self.order["line"]["user"])), blocks, text)

    async def keep(self, **changed: Any) -> None:
        """Go on holding the order, with what changed in it. Raises ``LostOrderError`` and ``StoreError``."""
        async with self._turn:
            self.order.update(changed)
            if self.held is not None:
                self.held = await self.service.in_thread(
                    self._desk.orders.hold, self.held, self._desk.owner, self._desk.hold_s, self.order
                )
