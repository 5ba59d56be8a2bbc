"""The parts put together: one application of Bolt on one service, behind HTTP or a socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from assistant.faces.slack import info, talks, tooling
from assistant.faces.slack.desk import Desk
from assistant.faces.slack.files import Fetcher
from assistant.faces.slack.line import Line, Speaker
from assistant.faces.slack.listeners import listen
from assistant.faces.slack.people import NotAllowedError, People
from assistant.faces.slack.work import Means, Work
from assistant.faces.slack.workspaces import Workspaces
from assistant.security.roles import Principal, Role

if TYPE_CHECKING:
    from slack_bolt.async_app import AsyncApp
    from slack_bolt.authorization import AuthorizeResult
    from slack_bolt.oauth.async_oauth_flow import AsyncOAuthFlow

    from assistant.service import Service
    from assistant.settings import Settings
    from assistant.store.orders import Held

HANDLERS = {
    "diagnose": talks.diagnose,
    "press": talks.press,
    "command": tooling.command,
    "agree": tooling.agree,
    "watch": tooling.watch,
    "stop": tooling.stop,
    "help": info.show_help,
    "status": info.show_status,
    "runbook": info.show_runbook,
    "pick": info.pick,
}
#: Bot scopes, each because of a method that is called or an event that is subscribed to. The manifest has the same.
SCOPES = (
    "app_mentions:read",
    "channels:history",
    "chat:write",
    "chat:write.public",
    "commands",
    "files:read",
    "files:write",
    "groups:history",
    "im:history",
    "mpim:history",
    "usergroups:read",
)
INSTALL, REDIRECT, EVENTS = "/slack/install", "/slack/oauth_redirect", "/slack/events"
_log = logging.getLogger("vllm_diagnose.slack")


class Face:
    """Slack on a running service. Made by :func:`opened`."""

    def __init__(self, settings: Settings, service: Service, workspaces: Workspaces) -> None:
        self.settings = settings
        self.service = service
        self.workspaces = workspaces
        self.people = People(settings)
        api_url = workspaces.api_url
        self.speaker = Speaker(api_url, service.policy)
        fetcher = Fetcher(api_url, service.policy, settings.whole("slack.max_file_bytes"))
        self._means = Means(service, self.speaker, fetcher)
        self.desk = Desk(service, self._work, HANDLERS, at_once=settings.whole("slack.at_once"))
        self.loop = asyncio.get_running_loop()
        self.app = self._bolt()

    def _bolt(self) -> AsyncApp:
        from slack_bolt.async_app import AsyncApp

        workspaces = self.workspaces

        async def authorize(enterprise_id: str | None, team_id: str | None) -> AuthorizeResult | None:
            # Bolt counts arguments by their names and would take a method's self for one.
            return await workspaces.authorize(enterprise_id, team_id)

        app = AsyncApp(
            name="vllm-diagnose",
            logger=self.workspaces.logger,
            signing_secret=self.settings.text("slack.signing_secret"),
            client=self.workspaces.new_client(None),
            authorize=authorize,  # type: ignore[arg-type]
            attaching_function_token_enabled=False,
            ignoring_self_assistant_message_events_enabled=False,
            attaching_conversation_kwargs_enabled=False,
        )
        listen(app, self.service, self.desk)
        return app

    def oauth(self, public_url: str) -> AsyncOAuthFlow | None:
        """The installation into a workspace, where a client id and secret are set."""
        if self.workspaces.installations is None or not self.settings.text("slack.client_id"):
            return None
        from slack_bolt.oauth.async_oauth_flow import AsyncOAuthFlow
        from slack_bolt.oauth.async_oauth_settings import AsyncOAuthSettings

        from assistant.faces.slack.workspaces import States

        return AsyncOAuthFlow(
            client=self.workspaces.new_client(None),
            logger=self.workspaces.logger,
            settings=AsyncOAuthSettings(
                client_id=self.settings.text("slack.client_id"),
                client_secret=self.settings.text("slack.client_secret"),
                scopes=list(SCOPES),
                redirect_uri=public_url.rstrip("/") + REDIRECT,
                install_path=INSTALL,
                redirect_uri_path=REDIRECT,
                installation_store=self.workspaces.installations,
                installation_store_bot_only=True,
                state_store=States(self.service.claims, self.workspaces.logger),
                state_cookie_name="vllm-diagnose-slack-state",
            ),
        )

    async def _work(self, order: Mapping[str, Any], held: Held | None, desk: Desk) -> Work | None:
        """An order with its client and its person; None, and word of it, where it may not be carried out."""
        line = Line.of(order["line"])
        client = await self.workspaces.of(line.team, line.enterprise or None)
        if client is None:
            _log.warning("A request came from a workspace in which this app is not installed.")
            return None
        nobody = Principal(f"slack:{line.team}:{line.user}"[:200], str(order.get("name") or line.user), Role.viewer)
        try:
            who = await self.people.principal(
                client,
                team=line.team,
                channel=line.channel,
                user=line.user,
                name=self.service.clean(str(order.get("name") or "")),
                home=str(order.get("home") or ""),
            )
        except NotAllowedError as refusal:
            work = Work(self._means, desk, order, held, client, nobody)
            await tooling.refused(work, str(order["kind"]))
            await work.whisper(refusal.sentence)
            return None
        return Work(self._means, desk, order, held, client, who)


@contextlib.asynccontextmanager
async def opened(settings: Settings, service: Service) -> AsyncIterator[Face]:
    """Slack on a running service, carrying out orders until the block ends."""
    import aiohttp

    from tools.registry import discover

    discover()
    async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=60)) as session:
        face = Face(settings, service, Workspaces(settings, service, session))
        face.desk.start()
        try:
            yield face
        finally:
            await face.desk.stop()


class Replays:
    """Signatures that came already. Slack signs each delivery once; who sends one again is not Slack.

    Kept in memory for the five minutes that a signature is good: another replica may see it too, and there the order's
    key is known to the store. A delivery that Slack repeats has a signature of its own, or says that it is a repetition.
    """

    _KEEP_S, _MOST = 310.0, 100_000

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def is_new(self, signature: str) -> bool:
        """Whether this signature comes for the first time."""
        now = time.monotonic()
        while self._seen and (len(self._seen) >= self._MOST or next(iter(self._seen.values())) < now - self._KEEP_S):
            self._seen.popitem(last=False)
        key = hashlib.sha256(signature.encode("utf-8", "replace")).digest()
        if key in self._seen:
            return False
        self._seen[key] = now
        return True
