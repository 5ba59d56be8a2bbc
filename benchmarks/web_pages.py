"""How many pages one process draws in a second, beside an empty route of the same application in the same run.

The application is called directly (ASGI), so that no client's slowness is measured; a socket costs both the same.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from typing import Any

from fastapi import FastAPI

from assistant.faces.app import Shared, create_app
from assistant.settings import load

SECONDS = 2.0


def empty(app: FastAPI, _: Shared) -> None:
    @app.get("/nothing", include_in_schema=False)
    async def nothing() -> dict[str, str]:
        return {}


async def fetch(app: Any, path: str, cookie: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    where, _, query = path.partition("?")
    headers = [(b"host", b"127.0.0.1"), (b"accept", b"text/html"), (b"cookie", cookie.encode())]
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": where, "raw_path": where.encode(), "query_string": query.encode(), "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": ""}  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"], b"".join(message.get("body", b"") for message in sent[1:])


async def rate(app: Any, path: str, cookie: str) -> float:
    status, _, _ = await fetch(app, path, cookie)
    if status != 200:
        raise RuntimeError(f"{path} answered {status}")
    count, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        await fetch(app, path, cookie)
        count += 1
    return count / SECONDS


async def main() -> None:
    """Prints pages a second, and how that compares with the empty route."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load(
            {
                "HOME": folder,
                "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
                "VLLM_DIAGNOSE_SERVER_ANONYMOUS": "viewer",
                "VLLM_DIAGNOSE_SERVER_READERS": "1",
                "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "10000000",
            }
        )
        app = create_app(settings, faces=(empty,))
        async with app.router.lifespan_context(app):
            _, headers, _ = await fetch(app, "/login", "")
            cookie = next(value.decode() for name, value in headers if name == b"set-cookie")
            cookie = re.split(";", cookie)[0]
            nothing = await rate(app, "/nothing", cookie)
            print(f"{'an empty route':40} {nothing:8.0f}/s")
            for path in ("/runbooks/memory/no-room-for-kv-cache", "/runbooks", "/documents/en/kv-cache", "/"):
                found = await rate(app, path, cookie)
                print(f"{path:40} {found:8.0f}/s  {found / nothing:5.2f} of it")


if __name__ == "__main__":
    asyncio.run(main())
