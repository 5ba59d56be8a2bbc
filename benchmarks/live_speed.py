"""How long one look at a live server takes as a whole process, beside a bare interpreter and, if given, a rival.

    python benchmarks/live_speed.py                                   # a stand-in server on loopback
    python benchmarks/live_speed.py --beside "vllm-doctor diagnose {url}/metrics"

Prints the median of interleaved runs, with and without 300,000 foreign series on the page; asserts nothing about time.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.tools.metrics.serving import Servers, serving  # noqa: E402
from tests.tools.metrics.states import SATURATED, WORKING, one  # noqa: E402

FOREIGN = "\n".join(f'other_series{{namespace="production",pod="p{i}"}} {i}' for i in range(300_000))


def seconds(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=120)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", default="", help="a command to compare with; {url} is the server's address")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    servers = Servers({"busy": one(WORKING), "full": one(SATURATED), "crowded": one(SATURATED, extra=FOREIGN)})
    ready = threading.Event()

    async def serve() -> None:
        async with serving(servers):
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait(30)
    for name in servers.states:
        url = servers.url(name)
        commands = {
            "interpreter": [sys.executable, "-c", "pass"],
            "vllm-diagnose": [str(Path(sys.executable).with_name("vllm-diagnose")), "metrics", url, "--window", "0"],
        }
        if options.beside:
            commands["beside"] = shlex.split(options.beside.format(url=url))
        took: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(options.rounds):
            for what, command in commands.items():
                took[what].append(seconds(command))
        middle = {what: statistics.median(times) for what, times in took.items()}
        row = "  ".join(f"{what} {value:.3f} s" for what, value in middle.items())
        ratio = f"  ratio {middle['vllm-diagnose'] / middle['beside']:.2f}" if options.beside else ""
        print(f"{name:8} {row}{ratio}", flush=True)


if __name__ == "__main__":
    main()
