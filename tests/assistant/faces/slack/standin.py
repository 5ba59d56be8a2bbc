"""A stand-in for Slack: its Web API, response URLs, file hosts, OAuth and Socket Mode, as strict as the real one.

It holds workspaces, channels and messages, and refuses what Slack refuses: blocks beyond a limit, tokens it does not
know, methods outside a token's scopes, triggers older than three seconds or used before, response URLs beyond five
uses or half an hour, channels the bot is not in, and (when told so) everything with 429 and Retry-After.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.assistant.faces.slack.rules import problems, view_problems

TRIGGER_S, URL_S, URL_USES = 3.0, 1800.0, 5
#: Method to the bot scopes of which one is needed (docs.slack.dev/reference/methods).
NEEDS: dict[str, tuple[str, ...]] = {
    "auth.test": (),
    "chat.postMessage": ("chat:write",),
    "chat.update": ("chat:write",),
    "chat.postEphemeral": ("chat:write",),
    "views.open": (),
    "files.getUploadURLExternal": ("files:write",),
    "files.completeUploadExternal": ("files:write",),
    "conversations.replies": ("channels:history", "groups:history", "im:history", "mpim:history"),
    "usergroups.users.list": ("usergroups:read",),
}
ALL_SCOPES = (
    "app_mentions:read channels:history chat:write chat:write.public commands files:read files:write groups:history "
    "im:history mpim:history usergroups:read"
).split()


@dataclass
class Message:
    """A message as it stands, with everything it was before."""

    channel: str
    ts: str
    blocks: list[Any]
    text: str
    thread: str = ""
    user: str = ""
    by_bot: bool = True
    files: list[Any] = field(default_factory=list)
    only_for: str = ""
    before: list[list[Any]] = field(default_factory=list)
    at: float = 0.0


@dataclass
class Url:
    """A response_url."""

    channel: str
    user: str
    made: float
    uses: int = 0
    message: Message | None = None


class Slack:
    """The stand-in. Everything may be read and changed while it runs; ``moved_s`` moves its clock on."""

    def __init__(self) -> None:
        self.team, self.bot, self.bot_user = "T0TEAM", "B0BOT", "U0BOT"
        self.tokens: dict[str, dict[str, Any]] = {}
        self.app_tokens = {"xapp-good"}
        self.channels = {"C0OPEN": True, "C0PRIVATE": False, "D0DIRECT": True}  # whether the bot may speak there
        self.threadless: set[str] = set()  # channels without threads
        self.groups = {"S0GROUP1": ["U0OPS"]}
        self.messages: list[Message] = []
        self.whispers: list[Message] = []
        self.views: list[dict[str, Any]] = []
        self.urls: dict[str, Url] = {}
        self.triggers: dict[str, tuple[float, bool]] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.shared_files: list[dict[str, Any]] = []
        self.downloads: dict[str, bytes] = {}
        self.codes = {"good-code"}
        self.calls: Counter[str] = Counter()
        self.refused: list[tuple[str, str]] = []
        self.limited: dict[str, int] = {}
        self.stalled = threading.Event()
        self.moved_s = 0.0
        self.posts: list[dict[str, Any]] = []
        self.socket: web.WebSocketResponse | None = None
        self.acknowledged: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self.token("xoxb-good")

    # what a test does with it

    def token(self, text: str, scopes: list[str] | None = None, team: str = "") -> str:
        self.tokens[text] = {"scopes": ALL_SCOPES if scopes is None else scopes, "team": team or self.team}
        return text

    def trigger(self) -> str:
        name = f"{next(self._numbers)}.{secrets.token_hex(6)}"
        self.triggers[name] = (self.now(), False)
        return name

    def url(self, channel: str, user: str, message: Message | None = None) -> str:
        name = secrets.token_hex(8)
        self.urls[name] = Url(channel, user, self.now(), message=message)
        return f"{self.base}/respond/{name}"

    def file(self, name: str, content: bytes, kind: str = "text/plain") -> dict[str, Any]:
        key = secrets.token_hex(6)
        self.downloads[key] = content
        address = f"{self.base}/files-pri/{key}/download/{name}"
        return {
            "id": f"F{key.upper()}",
            "name": name,
            "size": len(content),
            "mimetype": kind,
            "mode": "hosted",
            "url_private": address,
            "url_private_download": address,
        }

    def say(self, channel: str, text: str, user: str = "U0ADA", thread: str = "", files: Any = ()) -> Message:
        message = Message(channel, self._ts(), [], text, thread, user, by_bot=False, files=list(files))
        self.messages.append(message)
        return message

    def now(self) -> float:
        return time.monotonic() + self.moved_s

    def answers(self, channel: str | None = None) -> list[Message]:
        """The bot's messages in a channel."""
        return [m for m in list(self.messages) if m.by_bot and channel in (None, m.channel)]

    def send(self, envelope: dict[str, Any]) -> None:
        """Send an envelope through the socket."""
        assert self.socket is not None
        asyncio.run_coroutine_threadsafe(self.socket.send_str(json.dumps(envelope)), self._loop).result(5)

    # the server

    def start(self) -> Slack:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/api/{method}", self._api)
        app.router.add_get("/api/{method}", self._api)
        app.router.add_post("/respond/{name}", self._respond)
        app.router.add_get("/files-pri/{key}/download/{name}", self._download)
        app.router.add_post("/upload/{key}", self._upload)
        app.router.add_get("/socket", self._socket)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.api_url = f"{self.base}/api/"
        self._ready.set()
        await self._stop.wait()
        if self.socket is not None:
            await self.socket.close()
        await runner.cleanup()

    async def _api(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        self.calls[method] += 1
        while self.stalled.is_set():  # noqa: ASYNC110 (set from another thread)
            await asyncio.sleep(0.05)
        if self.limited.get(method, 0) > 0:
            self.limited[method] -= 1
            return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "1"})
        if request.method == "GET":
            given: Any = dict(request.query)
        elif request.content_type == "application/json":
            given = await request.json()
        else:
            given = {**request.query, **await request.post()}
            for name in ("blocks", "view", "files"):
                if isinstance(given.get(name), str):
                    given[name] = json.loads(given[name])
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or str(given.get("token", ""))
        answer = self._answer(method, given, token, request)
        if not answer["ok"]:
            self.refused.append((method, answer["error"]))
        return web.json_response(answer)

    def _answer(self, method: str, given: Any, token: str, request: web.Request) -> dict[str, Any]:
        if method == "oauth.v2.access":
            return self._access(given, request)
        if method == "apps.connections.open":
            if token not in self.app_tokens:
                return _no("invalid_auth")
            return {"ok": True, "url": self.base.replace("http", "ws", 1) + "/socket"}
        if method not in NEEDS:
            return _no("unknown_method")
        known = self.tokens.get(token)
        if known is None:
            return _no("invalid_auth" if token else "not_authed")
        if NEEDS[method] and not set(NEEDS[method]) & set(known["scopes"]):
            return _no("missing_scope")
        handler: Callable[[Any, Any], dict[str, Any]] = getattr(self, "_" + method.replace(".", "_"))
        return handler(given, known)

    def _auth_test(self, given: Any, known: Any) -> dict[str, Any]:
        return {"ok": True, "team_id": known["team"], "user_id": self.bot_user, "bot_id": self.bot}

    def _chat_postMessage(self, given: Any, known: Any) -> dict[str, Any]:  # noqa: N802 (Slack's name)
        channel = given.get("channel", "")
        if channel.startswith("U"):
            channel = f"D{channel[1:]}"
            self.channels.setdefault(channel, True)
        if channel not in self.channels:
            return _no("channel_not_found")
        if not self.channels[channel]:
            return _no("not_in_channel")
        if word := self._refuse(given):
            return _no(word)
        thread = given.get("thread_ts", "")
        if thread and not any(m.channel == channel and m.ts == thread for m in self.messages):
            return _no("thread_not_found")
        if thread and channel in self.threadless:
            return _no("restricted_action_non_threadable_channel")
        self.posts.append(given)
        message = Message(channel, self._ts(), given["blocks"], given["text"], thread, at=time.monotonic())
        self.messages.append(message)
        return {"ok": True, "channel": channel, "ts": message.ts, "message": {}}

    def _chat_update(self, given: Any, known: Any) -> dict[str, Any]:
        found = next((m for m in self.messages if m.channel == given.get("channel") and m.ts == given.get("ts")), None)
        if found is None:
            return _no("message_not_found")
        if not found.by_bot:
            return _no("cant_update_message")
        if word := self._refuse(given):
            return _no(word)
        _change(found, given)
        return {"ok": True, "channel": found.channel, "ts": found.ts}

    def _chat_postEphemeral(self, given: Any, known: Any) -> dict[str, Any]:  # noqa: N802
        if given.get("channel") not in self.channels:
            return _no("channel_not_found")
        if not given.get("user"):
            return _no("user_not_in_channel")
        if "blocks" in given and (word := self._refuse(given)):
            return _no(word)
        self.whispers.append(
            Message(given["channel"], self._ts(), given.get("blocks", []), given["text"], only_for=given["user"])
        )
        return {"ok": True, "message_ts": self.whispers[-1].ts}

    def _views_open(self, given: Any, known: Any) -> dict[str, Any]:
        made = self.triggers.get(given.get("trigger_id", ""))
        if made is None:
            return _no("invalid_trigger_id")
        if made[1]:
            return _no("exchanged_trigger_id")
        if self.now() - made[0] > TRIGGER_S:
            return _no("expired_trigger_id")
        self.triggers[given["trigger_id"]] = (made[0], True)
        wrong = view_problems(given.get("view"))
        if wrong:
            self.refused.append(("views.open", "; ".join(wrong)))
            return _no("invalid_arguments")
        view = {**given["view"], "id": f"V{secrets.token_hex(5).upper()}"}
        self.views.append(view)
        return {"ok": True, "view": view}

    def _files_getUploadURLExternal(self, given: Any, known: Any) -> dict[str, Any]:  # noqa: N802
        if not given.get("filename") or int(given.get("length", 0)) <= 0:
            return _no("invalid_arguments")
        key = secrets.token_hex(6)
        self.uploads[key] = {"name": given["filename"], "length": int(given["length"]), "content": None}
        return {"ok": True, "upload_url": f"{self.base}/upload/{key}", "file_id": f"F{key}"}

    def _files_completeUploadExternal(self, given: Any, known: Any) -> dict[str, Any]:  # noqa: N802
        files = json.loads(given["files"]) if isinstance(given["files"], str) else given["files"]
        done = []
        for entry in files:
            upload = self.uploads.get(entry["id"].removeprefix("F"))
            if upload is None or upload["content"] is None:
                return _no("file_not_found")
            self.shared_files.append({**upload, "channel": given.get("channel_id"), "thread": given.get("thread_ts")})
            done.append({"id": entry["id"], "title": entry.get("title", "")})
        return {"ok": True, "files": done}

    def _conversations_replies(self, given: Any, known: Any) -> dict[str, Any]:
        channel, ts = given.get("channel"), given.get("ts")
        rows = [m for m in self.messages if m.channel == channel and ts in (m.ts, m.thread)]
        if not rows:
            return _no("thread_not_found")
        return {
            "ok": True,
            "messages": [
                {
                    "ts": m.ts,
                    "thread_ts": ts,
                    "text": m.text,
                    **({"bot_id": self.bot} if m.by_bot else {"user": m.user}),
                    **({"files": m.files} if m.files else {}),
                }
                for m in rows[: int(given.get("limit", 100))]
            ],
        }

    def _usergroups_users_list(self, given: Any, known: Any) -> dict[str, Any]:
        members = self.groups.get(given.get("usergroup", ""))
        return {"ok": True, "users": members} if members is not None else _no("no_such_subteam")

    def _access(self, given: Any, request: web.Request) -> dict[str, Any]:
        if given.get("code") not in self.codes:
            return _no("invalid_code")
        self.codes.discard(given["code"])
        token = self.token(f"xoxb-{secrets.token_hex(4)}", team="T0OTHER")
        return {
            "ok": True,
            "app_id": "A0APP",
            "access_token": token,
            "token_type": "bot",
            "scope": ",".join(ALL_SCOPES),
            "bot_user_id": self.bot_user,
            "team": {"id": "T0OTHER", "name": "other"},
            "enterprise": None,
            "authed_user": {"id": "U0ADA"},
            "is_enterprise_install": False,
        }

    def _refuse(self, given: Any) -> str:
        if len(given.get("text", "")) > 40_000:
            return "msg_too_long"
        wrong = problems(given.get("blocks"))
        if wrong:
            self.refused.append(("blocks", "; ".join(wrong)))
        return "" if not wrong else "msg_blocks_too_long" if "msg_blocks_too_long" in wrong else "invalid_blocks"

    async def _respond(self, request: web.Request) -> web.Response:
        self.calls["response_url"] += 1
        url = self.urls.get(request.match_info["name"])
        if url is None:
            return web.json_response({"ok": False, "error": "no_url"}, status=404)
        if url.uses >= URL_USES or self.now() - url.made > URL_S:
            word = "used_url" if url.uses >= URL_USES else "expired_url"
            self.refused.append(("response_url", word))
            return web.json_response({"ok": False, "error": word}, status=404)
        given = await request.json()
        if word := self._refuse(given):
            self.refused.append(("response_url", word))
            return web.json_response({"ok": False, "error": word}, status=400)
        url.uses += 1
        if given.get("replace_original") and url.message is not None:
            _change(url.message, given)
        else:
            alone = given.get("response_type", "ephemeral") == "ephemeral"
            message = Message(
                url.channel, self._ts(), given["blocks"], given["text"], only_for=url.user if alone else ""
            )
            (self.whispers if alone else self.messages).append(message)
            if not alone:
                url.message = message
        return web.Response(text="ok")

    async def _download(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        known = self.tokens.get(token)
        content = self.downloads.get(request.match_info["key"])
        if known is None or "files:read" not in known["scopes"] or content is None:
            return web.Response(text="<!DOCTYPE html><html><body>Sign in</body></html>", content_type="text/html")
        return web.Response(body=content, content_type="text/plain")

    async def _upload(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.content_type.startswith("multipart/"):
            body = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        self.uploads[request.match_info["key"]]["content"] = body
        return web.Response(text="OK")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.socket = socket
        await socket.send_str(json.dumps({"type": "hello", "num_connections": 1}))
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                said = json.loads(message.data)
                self.acknowledged[said.get("envelope_id", "")] = time.monotonic()
        return socket

    def _ts(self) -> str:
        return f"{1_700_000_000 + next(self._numbers)}.{secrets.randbelow(10**6):06}"


def _change(message: Message, given: Any) -> None:
    message.before.append(message.blocks)
    message.blocks, message.text, message.at = given.get("blocks", []), given["text"], time.monotonic()


def _no(word: str) -> dict[str, Any]:
    return {"ok": False, "error": word}
