"""A fleet in one real Prometheus: every server of thousands is one row, and those with a queue stand first.

One page holds the series of all servers, each with its own ``instance`` (Prometheus keeps them as they are:
``honor_labels``), because ten thousand scrapes would measure Prometheus on this machine and not the questions we ask.
``FLEET=10000`` takes more than the thousand of the test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tools.metrics.pages import page
from tests.tools.metrics.states import QUEUED, WORKING, one
from tests.tools.prometheus.real import prometheus

ROOT = Path(__file__).resolve().parents[3]
COUNT = int(os.environ.get("FLEET", "1000"))
SCRAPE_S = 5.0 if COUNT <= 1000 else 30.0
STATES = (one(WORKING), one(QUEUED))
#: One server in so many has a queue.
EACH = 100
#: Buckets of histograms are nine tenths of a page and are left out; the sums and counts stay.
LINE = re.compile(r"^(vllm:\w+|process_\w+)(?<!_bucket)(\{[^}]*)?\}? (\S+)$", re.MULTILINE)


def together(second: float) -> bytes:
    """The series of all servers on one page, those of one name together."""
    lines: dict[str, list[tuple[int, str, str]]] = {}
    for which, state in enumerate(STATES):
        for name, labels, value in LINE.findall(page(state, second)):
            lines.setdefault(name, []).append((which, labels + "," if labels else "{", value))
    parts = []
    for name, samples in lines.items():
        for number in range(COUNT):
            which = int(number % EACH == 0)
            parts += [
                f'{name}{labels}instance="node-{number:05d}:8000"}} {value}'
                for w, labels, value in samples
                if w == which
            ]
    return ("\n".join(parts) + "\n").encode()


@contextmanager
def exporter() -> Iterator[str]:
    began = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = together(time.monotonic() - began)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_fleet_in_one_prometheus(tmp_path: Path) -> None:
    with exporter() as where, prometheus(tmp_path, {"vllm": (where, "/metrics")}, SCRAPE_S, honor_labels=True) as url:
        time.sleep(SCRAPE_S * 4.5)
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "assistant.faces.cli.main", "metrics", url, "--deadline", "300", "-o", "json"],
            capture_output=True, text=True, cwd=ROOT, timeout=400, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VLLM_DIAGNOSE_OUTBOUND_DEADLINE_S": "60"},
        )  # fmt: skip
        print(f"{COUNT} servers in one Prometheus: {time.monotonic() - began:.1f} s")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)["targets"]
    fleet = [row for row in rows if "node-" in row["target"]]
    assert len(fleet) == COUNT
    queued = [row for row in fleet if row["diagnosis"]["verdict"] == "cause"]
    assert len(queued) == COUNT // EACH
    assert {row["diagnosis"]["causes"][0]["id"] for row in queued} == {"performance/queue-buildup"}
