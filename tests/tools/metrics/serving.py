"""A small HTTP server on loopback that stands in for vLLM servers, one below each path, and misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache

from tests.tools.metrics.pages import GENERATIONS, State, page


class Servers:
    """``states`` are served below ``/NAME``; ``hostile`` maps a name to a coroutine that writes the answer."""

    def __init__(self, states: dict[str, State], hostile: dict[str, Callable[..., object]] | None = None) -> None:
        self.states, self.hostile = states, hostile or {}
        self.first: dict[str, float] = {}
        self.asked: list[str] = []
        self.base = ""

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"

    def page(self, state: State, t: float) -> bytes:
        """The page of one server after ``t`` seconds."""
        return page(state, t).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readline():
                path = request.split()[1].decode()
                while (await reader.readline()).strip():
                    pass
                self.asked.append(path)
                _, name, route = path.split("/", 2) if path.count("/") > 1 else ("", path[1:], "")
                await self.answer(writer, name, route)
                await writer.drain()
        except (ConnectionError, IndexError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, name: str, route: str) -> None:
        if name in self.hostile:
            await self.hostile[name](writer, route)  # type: ignore[misc]
            return
        state = self.states.get(name)
        if state is None:
            reply(writer, 404, b'{"detail":"Not Found"}')
        elif route == "metrics":
            started = self.first.setdefault(name, time.monotonic())
            reply(writer, 200, self.page(state, time.monotonic() - started))
        elif route == "health":
            reply(writer, state.health, b"")
        elif route == "version":
            reply(writer, 200, json.dumps({"version": GENERATIONS[state.generation].version}).encode())
        elif route == "v1/models":
            reply(writer, 200, json.dumps({"data": [{"id": m, "max_model_len": 8192} for m in state.models]}).encode())
        else:
            reply(writer, 404, b'{"detail":"Not Found"}')


def reply(writer: asyncio.StreamWriter, status: int, body: bytes, *headers: str) -> None:
    more = "".join(f"{line}\r\n" for line in headers)
    writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)


async def html(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 200, b"<!DOCTYPE html><html><body>Sign in</body></html>", "Content-Type: text/html")


async def empty(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 200, b"")


async def other_engine(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 200, b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 4.0\n")


async def node_exporter(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 200, b"# TYPE node_load1 gauge\nnode_load1 0.21\nnode_load5 0.1\n" if route == "metrics" else b"")


async def credentials(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 401, b"no")


async def to_metadata(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 302, b"", "Location: http://169.254.169.254/latest/meta-data/")


async def silent(writer: asyncio.StreamWriter, route: str) -> None:
    await asyncio.sleep(60)


async def drip(writer: asyncio.StreamWriter, route: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    for _ in range(600):
        writer.write(b"# drip\n")
        await writer.drain()
        await asyncio.sleep(0.1)


async def gzip_bomb(writer: asyncio.StreamWriter, route: str) -> None:
    reply(writer, 200, _bomb(), "Content-Encoding: gzip")


@cache
def _bomb() -> bytes:
    """Half a gigabyte of one line in half a megabyte."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b"0" * 1_000_000) for _ in range(500)]
    return b"".join([packer.compress(b"# "), *parts, packer.flush()])


async def endless(writer: asyncio.StreamWriter, route: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1073741824\r\n\r\n")
    block = b"".join(b'other_series{pod="p%07d"} 1.0\n' % i for i in range(30_000))
    for _ in range(1_073_741_824 // len(block)):
        writer.write(block)
        await writer.drain()


async def not_http(writer: asyncio.StreamWriter, route: str) -> None:
    writer.write(b"\x15\x03\x01\x00\x02\x02\x16")
    writer.close()


HOSTILE = {
    "html": html, "empty": empty, "other-engine": other_engine, "node-exporter": node_exporter, "silent": silent,
    "credentials": credentials, "to-metadata": to_metadata, "drip": drip, "gzip-bomb": gzip_bomb, "endless": endless,
    "not-http": not_http,
}  # fmt: skip


@asynccontextmanager
async def serving(servers: Servers) -> AsyncIterator[Servers]:
    at_work: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            at_work.add(task)
            task.add_done_callback(at_work.discard)
        await servers.serve(reader, writer)

    listener = await asyncio.start_server(take, "127.0.0.1", 0)
    servers.base = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield servers
    finally:
        listener.close()
        for task in list(at_work):
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)


@contextmanager
def in_a_thread(servers: Servers) -> Iterator[Servers]:
    """The servers, served by a loop in a thread of its own."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(servers):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield servers
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
