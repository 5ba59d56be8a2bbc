"""A thousand servers on loopback, one in twenty dead: the dead are named, and nobody keeps the others waiting."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALIVE, DEAD = 950, 50


@pytest.mark.slow
def test_a_thousand_targets(tmp_path: Path) -> None:
    servers = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.metrics.many", str(ALIVE)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert servers.stdout is not None
        ports = json.loads(servers.stdout.readline())
        rows = [f'[targets.s{n:04d}]\naddress = "http://127.0.0.1:{port}"\n' for n, port in enumerate(ports)]
        rows += [f'[targets.dead{n:02d}]\naddress = "http://127.0.0.1:{n + 1}"\n' for n in range(DEAD)]
        file = tmp_path / "targets.toml"
        file.write_text("".join(rows))
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "assistant.faces.cli.main", "metrics", "--all", "-o", "json"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VLLM_DIAGNOSE_TARGETS_FILE": str(file)},
            timeout=300,
            check=False,
        )
        print(f"{ALIVE + DEAD} targets in {time.monotonic() - started:.1f} s")
    finally:
        servers.terminate()
        servers.wait(10)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert len(answer["targets"]) == ALIVE + DEAD
    assert {row["target"] for row in answer["targets"][:DEAD]} == {f"dead{n:02d}" for n in range(DEAD)}
    for row in answer["targets"][:DEAD]:
        assert row["diagnosis"]["causes"][0]["id"] == "serving/endpoint-unreachable"
    queued = [row for row in answer["targets"] if row["diagnosis"]["verdict"] == "cause"][DEAD:]
    assert {row["diagnosis"]["causes"][0]["id"] for row in queued} == {"performance/queue-buildup"}
    assert len(queued) >= 0.9 * len(ports[::20])
