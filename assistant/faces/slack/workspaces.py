"""Slack's Web API for each workspace: one token from the settings, or an installation per workspace.

Installations are kept in the database, encrypted under a key that comes from the app's client secret: whoever reads
the database alone cannot speak as the bot.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slack_bolt.authorization import AuthorizeResult
from slack_sdk.http_retry.builtin_async_handlers import (
    AsyncConnectionErrorRetryHandler,
    AsyncRateLimitErrorRetryHandler,
)
from slack_sdk.oauth.installation_store.async_installation_store import AsyncInstallationStore
from slack_sdk.oauth.state_store.async_state_store import AsyncOAuthStateStore
from slack_sdk.web.async_client import AsyncWebClient

if TYPE_CHECKING:
    import aiohttp
    from slack_sdk.oauth.installation_store import Bot, Installation

    from assistant.service import Service
    from assistant.settings import Settings
    from assistant.store.claims import Claims

#: Hosts of Slack besides the one of ``slack.api_url``: files lie and answers go there.
_SLACK = ("slack.com", "slack-gov.com")
_CALL_S = 15
_KNOWN_S = 60.0
_FOR_EVER_S = 50 * 365 * 86400.0
_STATE_S = 600.0


def is_slack(url: str, api_url: str) -> bool:
    """Whether ``url`` leads to Slack: its hosts over TLS, or the very server of ``api_url``."""
    try:
        there, api = urlsplit(url), urlsplit(api_url)
        if (there.scheme, there.hostname, there.port) == (api.scheme, api.hostname, api.port):
            return True
        host = there.hostname or ""
        whole = there.scheme == "https" and there.port in (None, 443) and there.username is None
    except ValueError:
        return False
    return whole and any(host == known or host.endswith("." + known) for known in _SLACK)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the app is in a workspace."""

    token: str
    bot_id: str | None
    user_id: str | None
    team: str = ""


class Workspaces:
    """Clients by workspace. ``session`` is shared by all of them, so that connections are used again."""

    def __init__(self, settings: Settings, service: Service, session: aiohttp.ClientSession) -> None:
        self.api_url = settings.text("slack.api_url").rstrip("/") + "/"
        self._token = settings.text("slack.bot_token")
        self._proxy = settings.text("outbound.proxy") or None
        self._session = session
        self._clients: dict[str, AsyncWebClient] = {}
        self._known: dict[str, tuple[float, Identity | None]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self.logger = quiet_logger()
        secret = settings.text("slack.client_secret")
        self.installations = Installations(service.claims, secret, self.logger) if secret else None

    def client(self, token: str) -> AsyncWebClient:
        """A client for one token; it waits and tries again when Slack says that it was asked too often."""
        found = self._clients.get(token)
        if found is None:
            found = self._clients[token] = self.new_client(token)
        return found

    def new_client(self, token: str | None) -> AsyncWebClient:
        """A client that nobody shares."""
        return AsyncWebClient(
            token=token,
            base_url=self.api_url,
            timeout=_CALL_S,
            proxy=self._proxy,
            session=self._session,
            logger=self.logger,
            retry_handlers=[
                AsyncConnectionErrorRetryHandler(),
                AsyncRateLimitErrorRetryHandler(max_retry_count=3),
            ],
        )

    async def of(self, team: str, enterprise: str | None = None) -> AsyncWebClient | None:
        """The client for a workspace, None where the app is not installed."""
        bot = await self.bot(team, enterprise)
        return self.client(bot.token) if bot is not None else None

    async def bot(self, team: str, enterprise: str | None = None) -> Identity | None:
        """Who the app is in a workspace, as the store knows it; nothing is asked of Slack here."""
        if self._token:
            return self._one_token() or Identity(self._token, None, None)
        if self.installations is None:
            return None
        key = f"{enterprise or ''}/{team}"
        remembered = self._known.get(key)
        if remembered is not None and time.monotonic() < remembered[0]:
            return remembered[1]
        async with self._asking.setdefault(key, asyncio.Lock()):
            found = await self.installations.async_find_bot(enterprise_id=enterprise, team_id=team)
        bot = Identity(found.bot_token, found.bot_id, found.bot_user_id) if found is not None else None
        self._known[key] = (time.monotonic() + (_KNOWN_S if bot else 1.0), bot)
        return bot

    async def home(self) -> str:
        """The workspace of the one token, empty where Slack did not say or several workspaces have tokens of their own."""
        if self._token and self._one_token() is None:
            await self._ask_who()
        known = self._one_token()
        return known.team if known is not None else ""

    def _one_token(self) -> Identity | None:
        known = self._known.get("")
        return known[1] if known else None

    async def _ask_who(self) -> str:
        """Ask whose the one token is; Slack's word for why it does not say. Raises ``OSError`` and ``TimeoutError``."""
        from slack_sdk.errors import SlackApiError

        try:
            said = await self.client(self._token).auth_test()
        except SlackApiError as error:
            return str(error.response.get("error", "no reason given"))
        identity = Identity(self._token, said.get("bot_id"), said.get("user_id"), str(said.get("team_id") or ""))
        self._known[""] = (0.0, identity)
        return ""

    def forget(self) -> None:
        """Look installations up again, because one was added."""
        self._known = {key: value for key, value in self._known.items() if key == ""}

    async def introduce(self) -> str:
        """Ask Slack who the one token belongs to; returns a sentence when it is refused. Needed once."""
        if not self._token:
            return ""
        for pause in (0.5, 2.0, 5.0, 15.0, None):
            try:
                word = await self._ask_who()
                return f"Slack refuses slack.bot_token: {word}." if word else ""
            except (OSError, TimeoutError) as error:
                if pause is None:
                    return f"Slack does not answer at {self.api_url}: {error or 'no answer in time'}."
                await asyncio.sleep(pause)
        return ""

    async def authorize(self, enterprise_id: str | None, team_id: str | None) -> AuthorizeResult | None:
        """What Bolt asks for with every request; answered from memory, because the acknowledgement waits for it."""
        bot = await self.bot(team_id or "", enterprise_id)
        if bot is None:
            return None
        return AuthorizeResult(
            enterprise_id=enterprise_id,
            team_id=team_id,
            bot_token=bot.token,
            bot_id=bot.bot_id,
            bot_user_id=bot.user_id,
        )


class Installations(AsyncInstallationStore):
    """Installations of the app, one for each workspace."""

    def __init__(self, claims: Claims, secret: str, logger: logging.Logger) -> None:
        from cryptography.fernet import Fernet
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"vllm-diagnose slack installations")
        self._box = Fernet(base64.urlsafe_b64encode(key.derive(secret.encode())))
        self._claims = claims
        self._logger = logger

    @property
    def logger(self) -> logging.Logger:
        """Where the library says what goes wrong."""
        return self._logger

    async def async_save(self, installation: Installation) -> None:
        """Keep an installation in the place of an earlier one."""
        bot = installation.to_bot()
        plain = json.dumps({**bot.to_dict(), "installed_at": bot.installed_at}, default=str)
        value = self._box.encrypt(plain.encode()).decode()
        key = _key(bot.enterprise_id, bot.team_id)

        def keep() -> None:
            if self._claims.take(key, value, keep_s=_FOR_EVER_S) is not None:
                self._claims.put(key, value)

        await asyncio.to_thread(keep)

    async def async_find_bot(
        self, *, enterprise_id: str | None, team_id: str | None, is_enterprise_install: bool | None = False
    ) -> Bot | None:
        """The bot of a workspace, or of the enterprise it belongs to."""
        from cryptography.fernet import InvalidToken
        from slack_sdk.oauth.installation_store import Bot

        for key in dict.fromkeys((_key(enterprise_id, team_id), _key(None, team_id), _key(enterprise_id, None))):
            value = await asyncio.to_thread(self._claims.get, key)
            if value is None:
                continue
            try:
                found = json.loads(self._box.decrypt(value.encode()))
            except InvalidToken:
                self.logger.error("An installation was kept under another client secret; install the app again.")
                continue
            return Bot(**{name: found.get(name) for name in _BOT_FIELDS}, installed_at=time.time())
        return None

    async def async_delete_installation(
        self, *, enterprise_id: str | None, team_id: str | None, user_id: str | None = None
    ) -> None:
        """Forget a workspace."""
        await asyncio.to_thread(self._claims.drop, _key(enterprise_id, team_id))


_BOT_FIELDS = ("app_id", "enterprise_id", "team_id", "bot_token", "bot_id", "bot_user_id", "bot_scopes")


def _key(enterprise: str | None, team: str | None) -> str:
    return f"slack-installation:{enterprise or ''}:{team or ''}"


class States(AsyncOAuthStateStore):
    """The states of installations under way: each is good for ten minutes, once, in whichever replica."""

    def __init__(self, claims: Claims, logger: logging.Logger) -> None:
        self._claims = claims
        self._logger = logger

    @property
    def logger(self) -> logging.Logger:
        """Where the library says what goes wrong."""
        return self._logger

    async def async_issue(self, *args: Any, **kwargs: Any) -> str:
        """A new state."""
        state = secrets.token_urlsafe(24)
        await asyncio.to_thread(lambda: self._claims.take(_state(state), "open", keep_s=_STATE_S))
        return state

    async def async_consume(self, state: str) -> bool:
        """Whether the state was issued and is used for the first time."""

        def use() -> bool:
            if self._claims.get(_state(state)) != "open":
                return False
            # Of two that come at once one takes this second claim.
            return self._claims.take(_state(state) + ":used", keep_s=_STATE_S) is None

        return await asyncio.to_thread(use)


def _state(state: str) -> str:
    return "slack-state:" + hashlib.sha256(state.encode("utf-8", "replace")).hexdigest()


def quiet_logger() -> logging.Logger:
    """The libraries' logger: their debug lines hold tokens and texts, so only warnings come through."""
    logger = logging.getLogger("vllm_diagnose.slack")
    logger.setLevel(logging.WARNING)
    return logger
