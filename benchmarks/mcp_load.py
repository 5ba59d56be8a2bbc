"""What an MCP call costs: over HTTP beside in process, with 100 clients at once, and the first answer over stdio.

    python benchmarks/mcp_load.py [--clients 100] [--rate 30] [--seconds 20]

Everything runs on loopback in one run: a server process as `serve` starts it, and this process as the clients (SDK 2.x,
protocol 2026-07-28). The log is the laboratory's capture nearest to 20 KB. Calls are made at their times whether earlier
ones have ended or not, and latency counts from that time. CPU is that of the processes themselves, in percent of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from assistant.readers import Ask, InProcess
from assistant.running import opened
from assistant.security.roles import LOCAL
from assistant.settings import load

LAB = Path(__file__).resolve().parent.parent / "tests" / "data" / "lab"
COMMAND = [sys.executable, "-m", "assistant.faces.cli.main"]
TICKS = os.sysconf("SC_CLK_TCK")


def the_log() -> str:
    """The captured log nearest to 20 KB."""
    path = min(LAB.glob("*/server.log"), key=lambda path: abs(path.stat().st_size - 20_000))
    return path.read_text("utf-8")


@contextlib.contextmanager
def served(folder: str) -> Iterator[tuple[str, int]]:
    """A server process: its address, and its process id."""
    environment = {
        **os.environ,
        "HOME": folder,
        "XDG_STATE_HOME": folder,
        "VLLM_DIAGNOSE_SERVER_ANONYMOUS": "viewer",
        "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "1000000",
    }
    errors = Path(folder) / "serve.log"
    with (
        errors.open("w") as stream,  # a pipe that nobody reads would stop the server when it is full
        subprocess.Popen([*COMMAND, "serve", "--port", "0"], env=environment, stderr=stream) as process,
    ):
        try:
            found = None
            for _ in range(600):
                found = re.search(r"http://\S+", errors.read_text())
                if found:
                    break
                time.sleep(0.1)
            assert found is not None
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(found[0] + "/readyz", timeout=5).status_code == 200:
                        break
                time.sleep(0.1)
            yield found[0] + "/mcp", process.pid
        finally:
            process.terminate()
            process.wait(30)


def cpu_s(root: int) -> float:
    """Seconds of CPU that a process and those it started have used."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) == root or int(fields[1]) == root:
                total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        await client.list_tools()
        yield client


def first_answer(folder: str) -> float:
    """Seconds from the start of `vllm-diagnose mcp` to its answer to the first request."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}) + "\n"
    began = time.perf_counter()
    environment = {**os.environ, "XDG_STATE_HOME": folder}
    with subprocess.Popen(
        [*COMMAND, "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "vllm-diagnose"
        took = time.perf_counter() - began
        process.stdin.close()
        process.wait(20)
    return took


async def beside_in_process(url: str, log: str, folder: str, times: int) -> tuple[float, float]:
    """Median milliseconds of a diagnosis in process and over HTTP, taken in turns; both keep the incident."""
    inside, outside = [], []
    settings = load({"HOME": folder, "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/inside.db"})
    async with opened(settings, work=False, readers=InProcess()) as service, connected(url) as client:
        for number in range(times + 3):
            began = time.perf_counter()
            await service.diagnose(LOCAL, Ask(logs=(("server.log", log.encode()),)), face="bench")
            between = time.perf_counter()
            await client.call_tool("diagnose", {"logs": [{"name": "server.log", "content": log}]})
            if number >= 3:  # the first ones warm both up
                inside.append((between - began) * 1000)
                outside.append((time.perf_counter() - between) * 1000)
    return statistics.median(inside), statistics.median(outside)


async def many(url: str, log: str, clients: int, rate: float, seconds: float, server: int) -> dict[str, Any]:
    """``clients`` connected at once, together ``rate`` calls a second."""
    async with contextlib.AsyncExitStack() as stack:
        ready = [await stack.enter_async_context(connected(url)) for _ in range(clients)]
        latencies: list[float] = []
        errors = 0

        async def call(client: Client, at: float) -> None:
            nonlocal errors
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            try:
                answer = await client.call_tool("diagnose", {"logs": [{"name": "server.log", "content": log}]})
                errors += bool(answer.is_error) or answer.structured_content is None
            except Exception:  # noqa: BLE001 (whatever it was, the call failed)
                errors += 1
            latencies.append((time.perf_counter() - at) * 1000)

        own = resource.getrusage(resource.RUSAGE_SELF)
        before, began = cpu_s(server), time.perf_counter()
        count = int(rate * seconds)
        await asyncio.gather(*(call(ready[n % clients], began + n / rate) for n in range(count)))
        took = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
        latencies.sort()
        return {
            "calls": count,
            "calls/s": count / took,
            "errors": errors,
            "p50 ms": latencies[count // 2],
            "p99 ms": latencies[int(count * 0.99)],
            "slowest ms": latencies[-1],
            "generator % CPU": 100 * (after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime) / took,
            "server % CPU": 100 * (cpu_s(server) - before) / took,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rate", type=float, default=30)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--times", type=int, default=40, help="calls of the comparison with a call in process")
    options = parser.parse_args()
    log = the_log()
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        starts = sorted(first_answer(folder) for _ in range(5))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 5
        print(
            f"first answer over stdio: median {statistics.median(starts):.2f} s, slowest of 5 {starts[-1]:.2f} s,",
            end="",
        )
        print(f" of which CPU {cpu:.2f} s; {os.getloadavg()[0]:.1f} processes wanted {os.cpu_count()} cores meanwhile")
        with served(folder) as (url, process):
            inside, outside = asyncio.run(beside_in_process(url, log, folder, options.times))
            more, ratio = outside - inside, outside / inside
            print(
                f"diagnose, {len(log.encode()) / 1000:.1f} KB: in process {inside:.1f} ms, over HTTP {outside:.1f} ms",
                end="",
            )
            print(f" (medians of {options.times}): {more:+.1f} ms, ratio {ratio:.2f}")
            found = asyncio.run(many(url, log, options.clients, options.rate, options.seconds, process))
    print(f"{options.clients} clients: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
