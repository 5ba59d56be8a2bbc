"""Logs that were put into Slack: which of a message's files they are, and their bytes, from Slack's hosts alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assistant.faces.slack.workspaces import is_slack
from tools.addresses import AddressError, Allowance, Policy
from tools.outbound import Limits, Outbound, OutboundError
from tools.redaction import clean

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

MOST_FILES = 10
_FETCH_S = 60.0
_TEXT = re.compile(
    r"text/|application/(?:json|x-ndjson|jsonl|octet-stream|gzip|x-gzip|zstd|x-zstd|x-yaml|yaml|toml|binary)\b|$"
)
_PAGE = re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """A file as Slack describes it: ``size`` in bytes."""

    name: str
    size: int
    kind: str
    url: str
    mode: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that was not read: the key of the sentence that says why."""

    name: str
    sentence: str


def files_in(message: Mapping[str, Any]) -> list[File]:
    """The files of a message or an event, as far as they can be logs."""
    found: list[File] = []
    for entry in message.get("files") or ():
        if not isinstance(entry, Mapping):
            continue
        url = str(entry.get("url_private_download") or entry.get("url_private") or "")
        size = entry.get("size")
        name = clean(str(entry.get("name") or entry.get("title") or "file"))[:120]
        kind = str(entry.get("mimetype") or "")
        if url and _TEXT.match(kind):
            found.append(
                File(name, size if isinstance(size, int) else 0, kind, url, str(entry.get("mode") or "hosted"))
            )
    return found


class Fetcher:
    """Fetches files of a workspace with the bot's token."""

    def __init__(self, api_url: str, policy: Policy, most_bytes: int) -> None:
        self._api_url = api_url
        self._policy = policy
        self._most = most_bytes

    async def fetch(
        self, client: AsyncWebClient, files: Iterable[File]
    ) -> tuple[list[tuple[str, bytes]], list[Unread]]:
        """The contents by name, and what was not read."""
        read: list[tuple[str, bytes]] = []
        unread: list[Unread] = []
        for file in files:
            if len(read) + len(unread) >= MOST_FILES:
                unread.append(Unread(file.name, "slack-file-many"))
                break
            got = await self._one(str(client.token), file)
            if isinstance(got, bytes):
                read.append((file.name, got))
            else:
                unread.append(Unread(file.name, got))
        return read, unread

    async def _one(self, token: str, file: File) -> bytes | str:
        if file.mode in ("external", "tombstone", "hidden_by_limit") or not is_slack(file.url, self._api_url):
            return "slack-file-elsewhere"
        if file.size > self._most:
            return "slack-file-large"
        try:
            policy = self._policy.allowing(Allowance.of(file.url))
            limits = Limits(deadline_s=_FETCH_S, max_bytes=self._most, max_decompressed_bytes=self._most)
            async with Outbound(policy, limits=limits) as out:
                reply = await out.get(file.url, headers={"Authorization": f"Bearer {token}"})
        except OutboundError as error:
            return "slack-file-large" if error.kind == "size" else "slack-file-unreachable"
        except AddressError:
            return "slack-file-elsewhere"
        # Without the right to read a file Slack sends its page for signing in, with status 200.
        signs_in = "html" not in file.kind and _PAGE.match(reply.body[:200]) is not None
        if reply.status != 200 or signs_in:
            return "slack-file-forbidden"
        return reply.body
