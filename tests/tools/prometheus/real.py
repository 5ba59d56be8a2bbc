"""A real Prometheus on loopback that scrapes what a test serves; skipped with its reason where there is none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[3] / ".prometheus" / "usr" / "bin" / "prometheus"


def binary() -> str:
    """The program, or a skip that says how to get it."""
    found = str(UNPACKED) if os.access(UNPACKED, os.X_OK) else shutil.which("prometheus")
    if found is None:
        pytest.skip("there is no prometheus here; scripts/prometheus_setup.sh .prometheus unpacks Debian's")
    return found


@contextmanager
def prometheus(
    folder: Path, jobs: dict[str, tuple[str, str]], interval_s: float = 1.0, *, honor_labels: bool = False
) -> Iterator[str]:
    """Prometheus scraping ``jobs`` (name -> host:port and path); yields its URL once it answers."""
    program = binary()
    config = {
        "global": {"scrape_interval": f"{int(interval_s * 1000)}ms", "scrape_timeout": f"{int(interval_s * 900)}ms"},
        "scrape_configs": [
            {
                "job_name": name,
                "metrics_path": path,
                "honor_labels": honor_labels,
                "static_configs": [{"targets": [where]}],
            }
            for name, (where, path) in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("Prometheus did not come up: " + (folder / "prometheus.log").read_text()[-500:])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
