"""Where an answer stands in Slack, and how it is changed there.

First choice is a message of the bot, which can be edited as often as needed. Where the bot is no member (a private
channel, somebody's direct messages), the ``response_url`` of the request speaks for it: five times, within half an
hour. When it is used up the message is edited if its place is known, and otherwise the answer goes to the person.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.elements import Piece, fallback, paragraph, rich, words
from assistant.faces.slack.workspaces import is_slack
from tools.addresses import AddressError, Allowance, Policy
from tools.outbound import Limits, Outbound, OutboundError

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

#: docs.slack.dev/interactivity/handling-user-interaction: up to 5 times within 30 minutes. A minute is kept in hand.
URL_USES = 5
URL_S = 29 * 60.0
#: What Slack says where the bot may not speak or may not change a message.
_NOT_THERE = frozenset(
    "not_in_channel channel_not_found is_archived restricted_action no_permission user_is_restricted "
    "restricted_action_thread_only_channel restricted_action_non_threadable_channel "
    "restricted_action_read_only_channel cannot_reply_to_message thread_not_found "
    "message_not_found cant_update_message edit_window_closed external_channel_migrating".split()
)


class UnreachableError(Exception):
    """Slack takes the message nowhere. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Line:
    """A place for one message: ``ts`` once it is there as the bot's own, ``url`` with what is left of it before."""

    team: str
    channel: str
    user: str
    thread: str = ""
    ts: str = ""
    url: str = ""
    url_from: float = 0.0
    url_uses: int = 0
    enterprise: str = ""

    @property
    def root(self) -> str:
        """The message under which this one's thread is."""
        return self.thread or self.ts

    @property
    def place(self) -> str:
        """The thread as conversations name it."""
        return f"{self.team}/{self.channel}/{self.root}"

    def url_is_good(self, now: float) -> bool:
        """Whether Slack still takes something at the URL."""
        return bool(self.url) and self.url_uses < URL_USES and now - self.url_from < URL_S

    def to_json(self) -> dict[str, Any]:
        """The line as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Line:
        """What :meth:`to_json` made."""
        return cls(**{name: table[name] for name in cls.__slots__ if name in table})


class Speaker:
    """Posts and edits. ``policy`` is that of all outgoing connections."""

    def __init__(self, api_url: str, policy: Policy) -> None:
        self._api_url = api_url
        self._policy = policy

    async def show(self, client: AsyncWebClient, line: Line, blocks: Sequence[Piece], text: str) -> Line:
        """Put the message there, or change it; returns the line as it is then. Raises :class:`UnreachableError`."""
        said = _said(blocks, text)
        why = ""
        if line.ts:
            if not (why := await self._call(client, "chat.update", {"channel": line.channel, "ts": line.ts, **said})):
                return line
        elif not line.url_uses:
            at = {"channel": line.channel, **({"thread_ts": line.thread} if line.thread else {})}
            posted = await self._post(client, {**at, **said})
            if isinstance(posted, dict):
                return replace(line, channel=str(posted.get("channel") or line.channel), ts=str(posted["ts"]))
            why = posted
        if line.url_is_good(time.time()):
            sent = {**said, "response_type": "in_channel", "replace_original": bool(line.url_uses or line.ts)}
            refusal = await self._respond(line.url, sent)
            if not refusal:
                return replace(line, url_uses=line.url_uses + 1)
            line, why = replace(line, url_uses=URL_USES), refusal
        # Nothing of the above: to the person alone, who at least gets the answer.
        posted = await self._post(client, {"channel": line.user, **said})
        if isinstance(posted, dict):
            return replace(line, channel=str(posted["channel"]), thread="", ts=str(posted["ts"]))
        raise UnreachableError(f"Slack takes the message nowhere: {why or posted}.")

    async def below(self, client: AsyncWebClient, line: Line, blocks: Sequence[Piece], text: str) -> str:
        """A further message in the thread; its ``ts``. Raises :class:`UnreachableError`."""
        said = _said(blocks, text)
        if line.ts or line.thread:
            posted = await self._post(client, {"channel": line.channel, "thread_ts": line.root, **said})
        else:
            posted = await self._post(client, {"channel": line.user, **said})
        if isinstance(posted, dict):
            return str(posted["ts"])
        raise UnreachableError(f"Slack takes the message nowhere: {posted}.")

    async def whisper(self, client: AsyncWebClient, line: Line, blocks: Sequence[Piece], text: str) -> None:
        """A message that only ``line.user`` sees. That it arrives is not known, so nothing is raised."""
        if line.url_is_good(time.time()):
            sent = {**_said(blocks, text), "response_type": "ephemeral", "replace_original": False}
            if not await self._respond(line.url, sent):
                return
        said = {"channel": line.channel, "user": line.user, **_said(blocks, text)}
        if line.thread:
            said["thread_ts"] = line.thread
        if await self._call(client, "chat.postEphemeral", said):
            await self._post(client, {"channel": line.user, **_said(blocks, text)})

    async def replace_whisper(self, line: Line, text: str) -> None:
        """Put words in the place of the message that only one person saw, so that its buttons are gone."""
        if line.url_is_good(time.time()):
            blocks = [rich(paragraph(words(text)))]
            await self._respond(line.url, {**_said(blocks, text), "replace_original": True})

    async def attach(self, client: AsyncWebClient, line: Line, name: str, content: bytes, title: str) -> bool:
        """A file in the thread; False where Slack does not take it."""
        from slack_sdk.errors import SlackClientError

        if not line.root:
            return False
        try:
            await client.files_upload_v2(
                channel=line.channel, thread_ts=line.root, filename=name, title=title, content=content
            )
        except (SlackClientError, OSError, TimeoutError):
            return False
        return True

    async def _post(self, client: AsyncWebClient, said: Mapping[str, Any]) -> dict[str, Any] | str:
        """The answer of ``chat.postMessage``, or Slack's word for why not."""
        from slack_sdk.errors import SlackApiError, SlackClientError

        try:
            answer = await client.api_call("chat.postMessage", json=dict(said))
        except SlackApiError as error:
            return _word(error)
        except (SlackClientError, OSError, TimeoutError) as error:
            raise UnreachableError(f"Slack does not answer: {error or 'not in time'}.") from None
        return dict(answer.data) if isinstance(answer.data, dict) else "no answer"

    async def _call(self, client: AsyncWebClient, method: str, said: Mapping[str, Any]) -> str:
        """Slack's word for why not, empty when it was done."""
        from slack_sdk.errors import SlackApiError, SlackClientError

        try:
            await client.api_call(method, json=dict(said))
        except SlackApiError as error:
            word = _word(error)
            if word in _NOT_THERE or method == "chat.postEphemeral":
                return word
            raise UnreachableError(f"Slack refuses the message: {word}.") from None
        except (SlackClientError, OSError, TimeoutError) as error:
            raise UnreachableError(f"Slack does not answer: {error or 'not in time'}.") from None
        return ""

    async def _respond(self, url: str, said: Mapping[str, Any]) -> str:
        """Send to a ``response_url``; Slack's word for why not, empty when it was taken."""
        if not is_slack(url, self._api_url):
            return "the response_url is not Slack's"
        try:
            async with Outbound(self._policy.allowing(Allowance.of(url)), limits=Limits(max_bytes=65_536)) as out:
                reply = await out.post(url, dict(said))
        except (OutboundError, AddressError) as error:
            return str(error)
        return "" if reply.status == 200 else f"the response_url answered {reply.status}"


def _said(blocks: Sequence[Piece], text: str) -> dict[str, Any]:
    """What every message carries: nothing in it is looked up, linked or announced."""
    return {
        "blocks": list(blocks),
        "text": fallback(text),
        "unfurl_links": False,
        "unfurl_media": False,
        "parse": "none",
        "link_names": False,
    }


def _word(error: Any) -> str:
    data = error.response.data if hasattr(error.response, "data") else error.response
    return str(data.get("error", "no reason given")) if isinstance(data, Mapping) else "no reason given"
