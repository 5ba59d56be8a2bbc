#!/usr/bin/env python3
"""Holds the HTTP API against its own description with schemathesis: all checks, all phases, a real token.

    scripts/verify_http.py [--examples 40] [--schemathesis PATH] [--seconds 1200]

schemathesis is installed into a scratch environment from tests/conformance/schemathesis.txt (versions with hashes) unless
one is given. The server is a real `vllm-diagnose serve` on a free loopback port with a store of its own, an incident, a
group of alerts and a job in it, so that ids exist. Ends with 0 when at least 3,000 cases ran and none failed, with 4 when schemathesis
cannot be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "tests" / "conformance" / "schemathesis.txt"
FEWEST_CASES = 3000
#: Exit status where schemathesis cannot be had.
NO_TOOL = 4
#: Routes that follow something as it happens end by themselves after this many seconds.
STREAM_S = 0


def command_of(folder: Path) -> Path:
    """schemathesis in a new environment. Raises CalledProcessError."""
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True, timeout=600)
    return folder / "venv" / "bin" / "schemathesis"


class Served:
    """A server of this project with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_DIAGNOSE_")},
            "HOME": str(folder),
            "VLLM_DIAGNOSE_STORE_URL": f"sqlite:///{folder}/store.db",
            "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "1000000",
            "VLLM_DIAGNOSE_SERVER_READERS": "2",
        }
        self.command = [str(Path(sys.executable).parent / "vllm-diagnose")]

    def __enter__(self) -> Served:
        made = subprocess.run(
            [*self.command, "token", "create", "conformance", "--role", "admin"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.token = made.stdout.strip()
        self.log = (self.folder / "server.err").open("w+", encoding="utf-8")
        self.process = subprocess.Popen([*self.command, "serve", "--port", "0"], env=self.environment, stderr=self.log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = re.search(r"serves (http://\S+)", (self.folder / "server.err").read_text("utf-8"))
            if found and self.ready(found.group(1)):
                return self
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.err").read_text("utf-8"))
            time.sleep(0.2)
        raise RuntimeError("the server did not become ready")

    def ready(self, address: str) -> bool:
        """Whether it answers that it can be asked."""
        self.address = address
        try:
            return bool(self.ask("GET", "/readyz")["ready"])
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.log.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request with the token; the answer as JSON. Raises URLError."""
        sent = urllib.request.Request(
            self.address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(sent, timeout=30) as answer:
            return json.loads(answer.read() or b"null")


def seed(server: Served) -> None:
    """Something in every list."""
    server.ask("POST", "/v1/diagnoses", {"text": "the server hangs at start"})
    server.ask("POST", "/v1/jobs", {"tool": "search_knowledge", "arguments": {"query": "hangs"}})
    alert = {"status": "firing", "labels": {"alertname": "A"}, "startsAt": "2026-11-21T10:00:00Z", "fingerprint": "ab"}
    notice = {"version": "4", "groupKey": "g", "status": "firing", "alerts": [alert]}
    server.ask("POST", "/v1/alerts", notice)


def run(schemathesis: Path, server: Served, examples: int, seconds: float) -> tuple[int, int]:
    """(exit status, cases) of one run."""
    seed(server)
    config = server.folder / "schemathesis.toml"
    config.write_text(f"[parameters]\nfor_s = {STREAM_S}\n", encoding="utf-8")
    command = [str(schemathesis), "--config-file", str(config), "run", f"{server.address}/openapi.json"]
    command += [
        "-H",
        f"Authorization: Bearer {server.token}",
        "--checks",
        "all",
        "--phases",
        "examples,coverage,fuzzing,stateful",
    ]
    command += [
        "--max-examples",
        str(examples),
        "--generation-deterministic",
        "--request-timeout",
        "60",
        "--continue-on-failure",
    ]
    ran = subprocess.run(
        command, cwd=server.folder, env=server.environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    print(ran.stdout[-12000:], ran.stderr[-3000:], sep="\n")
    counted = re.search(r"([\d,]+) generated", ran.stdout)
    return ran.returncode, int(counted.group(1).replace(",", "")) if counted else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--schemathesis", type=Path)
    parser.add_argument("--seconds", type=float, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            command = options.schemathesis or command_of(folder)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"schemathesis cannot be installed: {error}")
            return NO_TOOL
        with Served(folder) as server:
            status, cases = run(command, server, options.examples, options.seconds)
    print(f"{cases} cases, exit status {status}")
    return 1 if status or cases < FEWEST_CASES else 0


if __name__ == "__main__":
    sys.exit(main())
