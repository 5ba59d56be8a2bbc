"""The application that `serve` runs, and `serve` itself as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path):
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        "VLLM_DIAGNOSE_SERVER_MAX_BODY_BYTES": "2048",
    }
    command = [sys.executable, "-m", "assistant.faces.cli.main", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = re.search(r"http://\S+", line)
            assert address, line
            _until_ready(address[0])
            yield address[0], process
        finally:
            process.kill()


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("tool-server", "--port", "0"), ("slack",)])
def test_a_targets_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, command: tuple[str, ...]) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets: [broken\n")
    ended = subprocess.run(
        [sys.executable, "-m", "assistant.faces.cli.main", *command],
        cwd=ROOT, env={**os.environ, "VLLM_DIAGNOSE_TARGETS_FILE": str(targets)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"vllm-diagnose: The targets file {targets} is not YAML: while parsing a flow sequence."
    ]


def _until_ready(address: str) -> None:
    until, last = time.monotonic() + 60, ""
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address + "/readyz", timeout=5) as answer:
                assert json.load(answer) == {"ready": True, "problems": []}
            return
        except (urllib.error.URLError, OSError) as error:
            last = repr(error)
            time.sleep(0.1)
    pytest.fail(f"the server did not become ready: {last}")


def fetch(address: str, *, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(address, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_a_served_application_answers_refuses_and_stops(server) -> None:
    address, process = server
    status, headers, body = fetch(address + "/healthz", **{"X-Request-Id": "mine-1"})
    assert (status, body, headers["x-request-id"]) == (200, b"ok\n", "mine-1")
    assert headers["x-content-type-options"] == "nosniff"

    status, headers, body = fetch(address + "/openapi.json", Host="evil.example")
    assert (status, headers["content-type"]) == (421, "application/problem+json")
    assert fetch(address + "/healthz", Host="10.0.0.7:8080")[0] == 200

    _, headers, _ = fetch(address + "/healthz", **{"X-Request-Id": "a b\u00e9"})
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])

    status, _, body = fetch(address + "/healthz", data=b"x" * 4096)
    assert status == 413
    assert b"2048 bytes" in body

    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_a_port_in_use_is_said_in_a_sentence(server, tmp_path: Path) -> None:
    address, _ = server
    port = address.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "assistant.faces.cli.main", "serve", "--port", port],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "b")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
