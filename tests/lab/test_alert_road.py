"""The whole road of an alert: real vLLM under load, real Prometheus with the shipped rules, real Alertmanager, our server.

The rules are the shipped ones; only how long a condition has to last (`for`) is shortened, so that the test does not wait
five minutes. The queue is real: more clients than the server runs at once.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.assistant.alerts.conftest import Received, serving, wait
from tests.assistant.alerts.conftest import received as received
from tests.lab.laboratory import LAB, ROOT
from tests.lab.test_live import load, running
from tests.tools.prometheus.real import UNPACKED, binary

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not (LAB / "model" / "model.safetensors").exists(), reason="the laboratory is not installed (make lab)"
    ),
]
DEPLOY = ROOT / "deploy"
#: Seconds from the webhook to the diagnosed message.
MOST_S = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, ready: str) -> Iterator[None]:
    """A program that answers ``ready`` before the test goes on, and has ended after it."""
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=log.parent)
    try:

        def answers() -> bool:
            assert child.poll() is None, log.read_text(errors="replace")[-2000:]
            try:
                with urllib.request.urlopen(ready, timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait(answers)
        yield
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


@contextmanager
def alertmanager(folder: Path, address: str, token: str) -> Iterator[int]:
    """Alertmanager with the shipped configuration, its receiver pointed at ``address``; yields its port."""
    root = UNPACKED.parents[2]
    program, templates = root / "usr/bin/prometheus-alertmanager", root / "usr/share/prometheus/alertmanager"
    if not os.access(program, os.X_OK):
        pytest.skip("there is no Alertmanager here; scripts/prometheus_setup.sh .prometheus unpacks Debian's")
    config = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text("utf-8"))
    hook = config["receivers"][1]["webhook_configs"][0]
    hook["url"] = f"{address}/v1/alerts"
    hook["http_config"]["authorization"]["credentials_file"] = str(folder / "token")
    config["route"]["routes"][0] |= {"group_wait": "1s", "group_interval": "5s"}
    (folder / "token").write_text(token)
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    # Debian's build reads its templates from a fixed path; it gets that path in a mount namespace of its own.
    share = folder / "share" / "prometheus" / "alertmanager"
    share.mkdir(parents=True)
    for template in templates.glob("*.tmpl"):
        (share / template.name).write_bytes(template.read_bytes())
    port = free_port()
    inside = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    command = [
        *("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))),
        *("sh", "-c", inside, "sh", str(folder / "share"), str(program)),
        *(f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/am"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="),
    ]
    with process(command, folder / "alertmanager.log", f"http://127.0.0.1:{port}/-/ready"):
        yield port


@contextmanager
def prometheus(folder: Path, where: str, alertmanager_port: int) -> Iterator[str]:
    """Prometheus with the shipped rules, scraping ``where``."""
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text("utf-8")
    (folder / "rules.yml").write_text(
        re.sub(r"(?m)^( +)for: \S+$", r"\1for: 3s", rules).replace("interval: 15s", "interval: 1s")
    )
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]},
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": [where]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [binary(), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with process(command, folder / "prometheus.log", f"http://127.0.0.1:{port}/-/ready"):
        yield f"http://127.0.0.1:{port}"


def test_a_queue_fires_arrives_diagnosed_and_is_closed(tmp_path: Path, received: Received) -> None:
    binary()
    seen: list[tuple[float, dict[str, Any]]] = []
    with running(tmp_path / "vllm", "--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager") as server:
        where = server.base.removeprefix("http://")
        targets = tmp_path / "targets.json"
        targets.write_text(json.dumps({"targets": {"chat": {"address": server.base}}}))
        targets = targets.rename(tmp_path / "targets.yaml")
        given = {
            "VLLM_DIAGNOSE_TARGETS_FILE": str(targets),
            "VLLM_DIAGNOSE_ALERTS_WEBHOOK_URL": f"{received.url}/hook",
        }
        with serving(tmp_path, given) as client:
            token = client.headers["authorization"].removeprefix("Bearer ")
            with (
                alertmanager(tmp_path, str(client.base_url).rstrip("/"), token) as port,
                prometheus(tmp_path, where, port),
            ):
                with load(server, 70, max_tokens=300):
                    group = wait(lambda: client.get("/v1/alerts").json()["items"], 90)[0]
                    came = time.monotonic()
                    told = wait(lambda: received.messages, MOST_S)[0]
                    seen.append((time.monotonic() - came, told))
                    assert told["id"] == group["id"]
                over = wait(lambda: [one for one in received.messages if one["event"] == "resolved"], 240)[0]
    seconds, told = seen[0]
    print(f"diagnosed {seconds:.1f} s after the webhook: {told['title']}")
    assert seconds < MOST_S
    assert [row["target"] for row in told["targets"]] == ["chat"]
    assert told["targets"][0]["found"]["cause"] == "performance/queue-buildup"
    assert over["targets"][0]["after"] and over["ended"]  # it may be over while a shorter queue is still there
