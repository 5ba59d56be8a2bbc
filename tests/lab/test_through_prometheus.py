"""The laboratory's real vLLM, scraped by a real Prometheus: the verdicts through PromQL are those of looking at it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.laboratory import LAB, ROOT
from tests.lab.test_live import diagnose, load, running, settle, verdict
from tests.tools.prometheus.real import binary, prometheus

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not (LAB / "model" / "model.safetensors").exists(), reason="the laboratory is not installed (make lab)"
    ),
]


def ask(url: str) -> dict[str, Any]:
    """What the command says of the only server that this Prometheus knows."""
    ended = subprocess.run(
        [sys.executable, "-m", "assistant.faces.cli.main", "metrics", url, "--window", "12", "-o", "json"],
        capture_output=True, text=True, cwd=ROOT, timeout=90, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def test_a_real_server_by_promql_and_by_looking(tmp_path: Path) -> None:
    binary()
    by_looking: dict[str, str] = {}
    by_promql: dict[str, str] = {}
    (tmp_path / "p").mkdir()
    with running(tmp_path / "a", "--max-model-len", "1024", "--max-num-seqs", "4") as server:
        where = server.base.removeprefix("http://")
        with prometheus(tmp_path / "p", {"vllm": (where, "/metrics")}, interval_s=2.0) as url:

            def both(state: str) -> None:
                time.sleep(14)
                by_promql[state] = verdict(ask(url))
                by_looking[state] = verdict(diagnose(server))

            both("idle")
            with load(server, 2, max_tokens=60):
                both("healthy")
            settle(server)
            with load(server, 40, max_tokens=300):
                both("queue")
                # A stopped engine answers /metrics all the same: its counters stand still.
                server.signal("STOP", "EngineCore")
                both("stopped")
                server.signal("CONT", "EngineCore")
    print(json.dumps({"promql": by_promql, "looking": by_looking}, indent=1))
    assert by_promql == by_looking
    assert by_promql == {
        "idle": "healthy",
        "healthy": "healthy",
        "queue": "performance/queue-buildup",
        "stopped": "engine/stalled",
    }
