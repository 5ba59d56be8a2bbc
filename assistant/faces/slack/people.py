"""Who a Slack user is here: whether they may ask, and with which role."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from assistant.security.roles import Principal, Role

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

    from assistant.settings import Settings

#: Seconds for which the members of a user group are remembered.
REMEMBER_S = 300.0
#: Seconds that asking for them may take; nobody is an operator because Slack is slow.
ASK_S = 3.0
_GROUP = re.compile(r"S[A-Z0-9]{6,20}")


class NotAllowedError(Exception):
    """Somebody may not ask here. ``sentence`` is the key of what to say."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class People:
    """The allow-lists and roles of the settings. Groups are asked for when they are needed, and remembered."""

    def __init__(self, settings: Settings) -> None:
        self._channels = frozenset(settings["slack.channels"])
        self._users = frozenset(settings["slack.users"])
        self._operators = frozenset(settings["slack.operators"])
        self._members: dict[str, tuple[float, frozenset[str]]] = {}

    async def principal(
        self, client: AsyncWebClient, *, team: str, channel: str, user: str, name: str = "", home: str = ""
    ) -> Principal:
        """Who asks; raises :class:`NotAllowedError`. ``home`` is the user's own workspace where Slack states it.

        A channel shared with another company brings its members in; they are nobody here unless they are listed.
        """
        if self._channels and channel and channel not in self._channels:
            raise NotAllowedError("slack-not-this-channel")
        guest = bool(home) and bool(team) and home != team
        listed = await self._among(client, user, self._users) if self._users else not guest
        if not listed or not user:
            raise NotAllowedError("slack-not-you")
        operator = await self._among(client, user, self._operators)
        role = Role.operator if operator else Role.viewer
        return Principal(f"slack:{team}:{user}"[:200], (name or user)[:80], role)

    async def _among(self, client: AsyncWebClient, user: str, listed: frozenset[str]) -> bool:
        if user in listed:
            return True
        for group in sorted(listed):
            if _GROUP.fullmatch(group) and user in await self._group(client, group):
                return True
        return False

    async def _group(self, client: AsyncWebClient, group: str) -> frozenset[str]:
        """The members of a group; when Slack does not say, those that were known, and nobody otherwise."""
        from slack_sdk.errors import SlackClientError

        known = self._members.get(group)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        try:
            async with asyncio.timeout(ASK_S):
                said = await client.usergroups_users_list(usergroup=group)
            members = frozenset(str(user) for user in said.get("users") or ())
        except (SlackClientError, OSError, TimeoutError):
            return known[1] if known is not None else frozenset()
        self._members[group] = (time.monotonic() + REMEMBER_S, members)
        return members
