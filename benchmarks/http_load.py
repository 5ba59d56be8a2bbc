"""How many requests one server process answers, beside an empty route of the same framework in the same run.

    python benchmarks/http_load.py [--seconds 8] [--connections 32]

A real `vllm-diagnose serve` with its readers, and an empty FastAPI application, each in a process of its own, are asked
over keep-alive connections on loopback. Prints requests a second and percentiles of the answer time in milliseconds for
the empty route, a runbook, and POST /v1/diagnoses with a log of 20 KB (kept, and with `save: false`), and ratios to the
empty route. The client runs in a process of its own on the same cores, as the figures must then be read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "tests" / "data" / "lab" / "tp2-truncated" / "server.log"
LOG_BYTES = 20_000


def twenty_kilobytes() -> str:
    """A real failed start of about 20 KB: the captured log, with healthy lines of the same style before it where it is short."""
    text = LOG.read_text("utf-8")
    filler = "".join(
        f"INFO 11-21 10:{n // 60 % 60:02}:{n % 60:02} [loggers.py:248] Engine 000: Avg prompt throughput: {n % 90}.0 tokens/s, "
        f"Avg generation throughput: {n % 70}.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 1.0%\n"
        for n in range(200)
    )
    return text[-LOG_BYTES:] if len(text) >= LOG_BYTES else filler[: LOG_BYTES - len(text)] + text


def empty(listener: socket.socket) -> None:
    """Serve one route that does nothing."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    async def nothing() -> dict[str, bool]:
        return {"ok": True}

    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


async def _ask(host: str, port: int, request: bytes, until: float, took: list[float], failed: list[str]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length.group(1)) if length else 0)
            took.append((time.perf_counter() - began) * 1000)
            if head[9:10] != b"2":
                failed.append(head[:40].decode("latin-1"))
    finally:
        writer.close()


async def _load(
    host: str, port: int, request: bytes, seconds: float, connections: int
) -> tuple[list[float], list[str]]:
    took: list[float] = []
    failed: list[str] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_ask(host, port, request, until, took, failed) for _ in range(connections)))
    return took, failed


def measured(name: str, port: int, request: bytes, seconds: float, connections: int, base: float | None) -> float:
    """Ask for some seconds and print what came out; returns requests a second."""
    asyncio.run(_load("127.0.0.1", port, request, min(1.0, seconds), connections))  # warm
    began = time.perf_counter()
    took, failed = asyncio.run(_load("127.0.0.1", port, request, seconds, connections))
    rate = len(took) / (time.perf_counter() - began)
    cuts = statistics.quantiles(took, n=100)
    beside = f"  {rate / base:6.3f} of empty" if base else ""
    print(f"{name:28} {rate:8.0f}/s  p50 {cuts[49]:7.1f} ms  p99 {cuts[98]:7.1f} ms{beside}", flush=True)
    if failed:
        print(f"  {len(failed)} failed, for example {failed[0]!r}")
    return rate


def request(method: str, path: str, port: int, token: str = "", body: object = None) -> bytes:
    """One request as it goes over the wire."""
    sent = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n" if sent else ""
    return head.encode() + b"\r\n" + sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    program = str(Path(sys.executable).parent / "vllm-diagnose")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_DIAGNOSE_")},
            "HOME": folder,
            "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
            "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000000",
        }
        made = subprocess.run(
            [program, "token", "create", "load", "--role", "viewer"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        token = made.stdout.strip()
        # The protocol is named, because asyncio sets TCP_NODELAY only where it is.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        beside = multiprocessing.get_context("fork").Process(target=empty, args=(listener,), daemon=True)
        beside.start()
        errors = Path(folder) / "err"
        with errors.open("w") as stream:
            server = subprocess.Popen([program, "serve", "--port", "0"], env=environment, stderr=stream)
        try:
            found = None
            for _ in range(300):
                found = re.search(r"serves http://127.0.0.1:(\d+)", errors.read_text())
                if found:
                    break
                time.sleep(0.2)
            if found is None:
                sys.exit(f"the server did not start: {errors.read_text()}")
            port, other = int(found.group(1)), listener.getsockname()[1]
            asyncio.run(_wait(port))
            log = {"logs": [{"name": "server.log", "content": twenty_kilobytes()}]}
            arguments = (options.seconds, options.connections)
            base = measured("empty FastAPI route", other, request("GET", "/", other), *arguments, None)
            page = "/v1/runbooks/memory/no-room-for-kv-cache?lang=zh"
            measured("GET a runbook", port, request("GET", page, port, token), *arguments, base)
            kept = request("POST", "/v1/diagnoses", port, token, log)
            measured("POST a diagnosis, kept", port, kept, *arguments, base)
            only = request("POST", "/v1/diagnoses", port, token, {**log, "save": False})
            measured("POST a diagnosis, not kept", port, only, *arguments, base)
        finally:
            server.send_signal(signal.SIGTERM)
            beside.terminate()
            server.wait(60)
            beside.join(10)


async def _wait(port: int) -> None:
    """Until the server is ready."""
    for _ in range(300):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/readyz", port))
            head = await reader.readuntil(b"\r\n")
            writer.close()
            if b" 200 " in head:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    sys.exit("the server did not become ready")


if __name__ == "__main__":
    main()
