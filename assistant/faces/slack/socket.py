"""Slack over a socket that this process opens: for places that nobody outside can reach."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from assistant.faces.slack.face import opened
from assistant.running import opened as opened_service

if TYPE_CHECKING:
    from slack_bolt.adapter.socket_mode.async_base_handler import AsyncBaseSocketModeHandler

    from assistant.faces.slack.workspaces import Workspaces
    from assistant.settings import Settings

#: Seconds between two tries to connect, growing to the last one.
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class SocketError(Exception):
    """Slack does not let this process in. The message is a sentence."""


async def run(settings: Settings) -> None:
    """Serve Slack until SIGINT or SIGTERM. Raises :class:`SocketError`, ``StoreError`` and ``KnowledgeError``."""
    from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with opened_service(settings) as service:
        await service.start()
        async with opened(settings, service) as face:
            if problem := await face.workspaces.introduce():
                raise SocketError(problem)
            handler = AsyncSocketModeHandler(
                face.app,
                settings.text("slack.app_token"),
                logger=face.workspaces.logger,
                web_client=face.workspaces.new_client(None),
                proxy=settings.text("outbound.proxy") or None,
            )
            try:
                await _connect(face.workspaces, settings.text("slack.app_token"), handler, stop)
                if not stop.is_set():
                    print("vllm-diagnose is connected to Slack", file=sys.stderr, flush=True)
                await stop.wait()
            finally:
                await handler.close_async()  # type: ignore[no-untyped-call]


async def _connect(
    workspaces: Workspaces, token: str, handler: AsyncBaseSocketModeHandler, stop: asyncio.Event
) -> None:
    """Connect, again and again where Slack does not answer; a refused token ends it.

    The library tries again for ever, whatever the reason; so the token is tried here first.
    """
    from slack_sdk.errors import SlackApiError, SlackClientError

    tries = 0
    while not stop.is_set():
        try:
            await workspaces.new_client(None).apps_connections_open(app_token=token)
            await handler.connect_async()  # type: ignore[no-untyped-call]
            return
        except SlackApiError as error:
            word = error.response.get("error", "no reason given")
            if word != "ratelimited":
                raise SocketError(f"Slack refuses slack.app_token: {word}.") from None
        except (SlackClientError, OSError, TimeoutError) as error:
            print(f"vllm-diagnose: Slack does not answer ({error or 'not in time'}); trying again", file=sys.stderr)
        pause = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
        tries += 1
        try:
            async with asyncio.timeout(pause):
                await stop.wait()
        except TimeoutError:
            continue
