"""Slack over HTTP: one route for everything it sends, two for being installed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assistant.faces.slack.shapes import is_sound

if TYPE_CHECKING:
    from fastapi import FastAPI
    from slack_bolt.oauth.async_oauth_flow import AsyncOAuthFlow

    from assistant.faces.app import Shared
    from assistant.faces.slack.face import Face, Replays

#: Bytes of one request. Slack's largest (a form with everything filled in) has some tens of KiB.
MOST_BODY = 1024 * 1024
_log = logging.getLogger("vllm_diagnose.slack")


class Door:
    """The routes, and the face behind them while the server runs."""

    def __init__(self) -> None:
        self.face: Face | None = None
        self.flow: AsyncOAuthFlow | None = None
        self.replays: Replays | None = None

    async def events(self, request: Request) -> Response:
        """Commands, clicks, forms and events. Bolt checks the signature and its time before anything is read."""
        from slack_bolt.adapter.starlette.async_handler import AsyncSlackRequestHandler

        if self.face is None or self.replays is None or not self.face.settings.text("slack.signing_secret"):
            return Response("Slack is not set up here.\n", 404, media_type="text/plain")
        body = await request.body()
        if len(body) > MOST_BODY:
            return Response(status_code=413)
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            return Response(status_code=400)
        if not self._is_signed(request, body):
            return Response(status_code=401)
        if not is_sound(text, request.headers.get("content-type", "")):
            return Response("This has not the form of anything that Slack sends.\n", 400, media_type="text/plain")
        if not self.replays.is_new(request.headers.get("x-slack-signature", "")):
            # Either way nothing is done again. A repetition is Slack's own and has to hear that all is well.
            repeated = bool(request.headers.get("x-slack-retry-num"))
            return Response(status_code=200 if repeated else 401)
        return await AsyncSlackRequestHandler(self.face.app).handle(request)

    def _is_signed(self, request: Request, body: bytes) -> bool:
        """Whether Slack signed this just now. What is not Slack's is not even taken apart."""
        from slack_sdk.signature import SignatureVerifier

        if self.face is None:
            return False
        verifier = SignatureVerifier(self.face.settings.text("slack.signing_secret"))
        signature = request.headers.get("x-slack-signature", "")
        stamp = request.headers.get("x-slack-request-timestamp", "")
        return stamp.isascii() and stamp.isdecimal() and len(stamp) < 20 and verifier.is_valid(body, stamp, signature)

    async def oauth(self, request: Request) -> Response:
        """The page that installs the app, and the way back from Slack."""
        from slack_bolt.adapter.starlette.async_handler import to_async_bolt_request, to_starlette_response

        if self.flow is None or self.face is None:
            return Response("The app cannot be installed from here.\n", 404, media_type="text/plain")
        asked = to_async_bolt_request(request, b"")
        if request.url.path == self.flow.install_path:
            return to_starlette_response(await self.flow.handle_installation(asked))
        answer = to_starlette_response(await self.flow.handle_callback(asked))
        self.face.workspaces.forget()
        return answer


def mount(app: FastAPI, shared: Shared) -> None:
    """Add the routes, and Slack itself where the settings name a way to speak to it.

    With Socket Mode another process listens to Slack; this one then speaks there of alerts alone.
    """
    settings = shared.settings
    door = Door()
    app.router.routes += [
        Route("/slack/events", door.events, methods=["POST"], include_in_schema=False),
        Route("/slack/install", door.oauth, methods=["GET"], include_in_schema=False),
        Route("/slack/oauth_redirect", door.oauth, methods=["GET"], include_in_schema=False),
    ]
    alerts = settings.text("slack.alert_channel")
    if not (settings.text("slack.signing_secret") or alerts):
        return
    if not (settings.text("slack.bot_token") or settings.text("slack.client_secret")):
        _log.warning("Slack stays silent: slack.bot_token is not set, and slack.client_secret neither.")
        return

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        from assistant.alerts.channels import ChannelError
        from assistant.faces.slack.alerts import SlackChannel
        from assistant.faces.slack.face import Replays, opened

        async with opened(settings, shared.service) as face:
            door.face, door.replays = face, Replays()
            door.flow = face.oauth(shared.base_url)
            app.state.slack = face
            channel = SlackChannel(face, refusal=ChannelError) if alerts else None
            shared.channels += [channel] if channel else []
            introduction = asyncio.create_task(_introduce(face))
            try:
                yield
            finally:
                introduction.cancel()
                await asyncio.gather(introduction, return_exceptions=True)
                shared.channels[:] = [other for other in shared.channels if other is not channel]
                door.face = door.flow = None

    shared.running.append(running)


async def _introduce(face: Face) -> None:
    if problem := await face.workspaces.introduce():
        _log.warning("%s", problem)
