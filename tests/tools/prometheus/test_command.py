"""`metrics` with a real Prometheus: at its plain address, as a target, over a fleet, and compared with earlier."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.tools.metrics.serving import Servers, serving
from tests.tools.metrics.states import QUEUED, WORKING, one
from tests.tools.prometheus.real import prometheus

ROOT = Path(__file__).resolve().parents[3]


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "assistant.faces.cli.main", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def _story(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    servers = Servers({"a": one(WORKING), "b": one(QUEUED), "c": one(WORKING)})
    async with serving(servers) as served:
        where = served.base.removeprefix("http://")
        jobs = {name: (where, f"/{name}/metrics") for name in servers.states} | {"dead": ("127.0.0.1:9", "/metrics")}
        with prometheus(folder, jobs) as url:
            await asyncio.sleep(14)
            found["baseline"] = datetime.now(UTC).isoformat(timespec="seconds")
            # The load of one server changes: what was answered at once begins to wait.
            servers.states["c"] = one(replace(WORKING, running=16, waiting=60, kv=0.15, queue=9.0, first_token=9.4))
            found["turned"] = time.time()
            await asyncio.sleep(16)
            targets = {
                name: {"address": f"http://{where}", "metrics": {"prometheus": url, "query": f'job="{name}"'}}
                for name in servers.states
            }
            (folder / "targets.yaml").write_text(json.dumps({"targets": targets}))
            configured = {"VLLM_DIAGNOSE_TARGETS_FILE": str(folder / "targets.yaml")}
            found["a"] = await run("metrics", "a", "--window", "8", "-o", "json", **configured)
            found["b"] = await run("metrics", "b", "--window", "8", "-o", "json", **configured)
            found["c"] = await run(
                "metrics", "c", "--window", "8", "--baseline", found["baseline"], "-o", "json", **configured
            )
            found["all"] = await run("metrics", "--all", "--window", "8", "-o", "json", **configured)
            found["ask"] = await run("ask", "slow answers", "--target", "b", "-o", "json", **configured)
            found["plain"] = await run("metrics", url, "--window", "8", "-o", "json")
            found["text"] = await run(
                "metrics", "c", "--window", "8", "--baseline", found["baseline"], COLUMNS="100", **configured
            )
    found["gone"] = await run("metrics", "a", "-o", "json", **configured)
    return found


@pytest.mark.slow
def test_the_command_over_a_real_prometheus(tmp_path: Path) -> None:
    found = asyncio.run(_story(tmp_path))
    for name in ("a", "b", "c", "all", "ask", "plain", "text"):
        assert found[name][0] == 0, (name, found[name])
    assert json.loads(found["a"][1])["verdict"] == "healthy"
    assert json.loads(found["b"][1])["causes"][0]["id"] == "performance/queue-buildup"
    assert json.loads(found["ask"][1])["causes"][0]["id"] == "performance/queue-buildup"
    changed = json.loads(found["c"][1])
    assert changed["causes"][0]["id"] == "performance/queue-buildup"
    note = next(note for note in changed["notes"] if note.startswith("vllm:num_requests_waiting"))
    hours, minutes, seconds = map(int, note[-9:-1].split(":"))
    turned = datetime.fromtimestamp(found["turned"], UTC).astimezone()
    apart = hours * 3600 + minutes * 60 + seconds - (turned.hour * 3600 + turned.minute * 60 + turned.second)
    assert min(abs(apart), 86400 - abs(apart)) <= 3, note
    rows = json.loads(found["all"][1])
    assert rows["counts"] == {"healthy": 1, "cause": 2, "unknown": 0}
    # One address serves all three here, so Prometheus' own list is what tells its dead target.
    plain = json.loads(found["plain"][1])
    dead = next(row for row in plain["targets"] if row["target"] == "127.0.0.1:9") if "targets" in plain else None
    assert dead is None or dead["diagnosis"]["causes"][0]["id"] == "serving/endpoint-unreachable"
    assert found["gone"][0] == 3 and found["gone"][2].count("\n") == 1, found["gone"]
    print(found["text"][1])
