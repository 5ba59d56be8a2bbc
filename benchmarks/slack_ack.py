"""Seconds until Slack is acknowledged: 50 commands at once while Slack's own API stands still, beside an empty route.

One service over loopback HTTP, the sender in a process of its own so that it does not take the service's time.
Prints p50, p99 and the most of several rounds, for /slack/events and for /healthz of the same server.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.assistant.faces.slack.driver import User, environment, form, signed, wait_for
from tests.assistant.faces.slack.standin import Slack

ROUNDS, AT_ONCE = 6, 50
SENDER = """
import asyncio, json, sys, time
import aiohttp

async def main():
    given = json.load(sys.stdin)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async def one(request):
            began = time.perf_counter()
            if request is None:
                async with session.get(given["address"] + "/healthz") as answer:
                    await answer.read()
            else:
                async with session.post(given["address"] + "/slack/events", data=request["body"], headers=request["headers"]) as answer:
                    await answer.read()
            assert answer.status == 200, answer.status
            return time.perf_counter() - began
        await asyncio.gather(*(one(None) for _ in given["requests"]))  # connections
        out = {"empty": await asyncio.gather(*(one(None) for _ in given["requests"]))}
        out["slack"] = await asyncio.gather(*(one(request) for request in given["requests"]))
        print(json.dumps(out))

asyncio.run(main())
"""


def answered(slack: Slack) -> int:
    """Finished answers; the next round waits for them, because they are what the machine does otherwise."""
    return sum("about:" in json.dumps(message.blocks) for message in slack.answers())


def main() -> None:
    slack = Slack().start()
    # The server's log goes to a file: a pipe that nobody reads would fill up and stop it.
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "assistant.faces.cli.main", "serve", "--port", "0"],
            env={**os.environ, **environment(Path(folder), slack)},
            stderr=said,
        )
        try:
            log = Path(folder) / "log"
            line = wait_for(lambda: next((one for one in log.read_text().splitlines() if "serves" in one), ""), 60)
            address = line.split()[-1]
            user = User(slack, address)

            def ready() -> bool:
                try:
                    return user.client.get(f"{address}/readyz").status_code == 200
                except Exception:  # noqa: BLE001  (it is not there yet)
                    return False

            wait_for(ready, 60)
            user.command("help")
            time.sleep(1)
            times: dict[str, list[float]] = {"empty": [], "slack": []}
            for number in range(ROUNDS):
                slack.stalled.set()  # nothing that was begun gets on
                requests = []
                for place in range(AT_ONCE):
                    body = form(user.command_body(f"the server hangs at start {number} {place}"))
                    requests.append(
                        {"body": body, "headers": {"Content-Type": "application/x-www-form-urlencoded", **signed(body)}}
                    )
                given = json.dumps({"address": address, "requests": requests})
                done = subprocess.run(
                    [sys.executable, "-c", SENDER], input=given, capture_output=True, text=True, timeout=60, check=True
                )
                for name, seconds in json.loads(done.stdout).items():
                    times[name] += seconds
                slack.stalled.clear()
                wait_for(lambda number=number: answered(slack) >= (number + 1) * AT_ONCE, 120)
                time.sleep(0.5)
            for name, seconds in times.items():
                ordered = sorted(seconds)
                print(
                    f"{name:6} p50 {statistics.median(ordered) * 1000:6.1f} ms   p99 {ordered[int(len(ordered) * 0.99) - 1] * 1000:6.1f} ms"
                    f"   most {ordered[-1] * 1000:6.1f} ms   ({len(ordered)} requests, {AT_ONCE} at once)"
                )
            ratio = statistics.median(times["slack"]) / statistics.median(times["empty"])
            print(f"ratio of the medians: {ratio:.1f}")
        finally:
            slack.stalled.clear()
            process.terminate()
            process.wait(30)
            slack.stop()


if __name__ == "__main__":
    main()
