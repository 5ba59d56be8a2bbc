"""`serve` as a process of its own, for tests that stop, kill and watch it. Every wait here has an end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Served:
    """One running server: its port, its process, and the lines of its own log so far."""

    port: int
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, timeout: float = 30, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {"Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json", **headers}
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in sent.items()})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def until_ready(self, seconds: float = 60) -> None:
        """Wait until /readyz says so."""
        until, last = time.monotonic() + seconds, ""
        while time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _, last_body = self.ask("GET", "/readyz", timeout=5)
                if status == 200:
                    return
                last = last_body.decode()
            assert self.process.poll() is None, f"the server ended: {self.lines[-5:]}"
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s: {last} {self.lines[-5:]}")

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def metrics(self) -> dict[str, float]:
        """The samples at /metrics by name and labels."""
        status, headers, body = self.ask("GET", "/metrics")
        assert status == 200, (status, body[:200])
        assert headers["content-type"].startswith("text/plain; version=")
        samples = [line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in samples}


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a server that lives in ``home``."""
    given = {f"VLLM_DIAGNOSE_{name.upper()}": value for name, value in settings.items()}
    return {
        **os.environ,
        "XDG_STATE_HOME": str(home),
        "HOME": str(home),
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        "VLLM_DIAGNOSE_SERVER_ANONYMOUS": "viewer",
        "VLLM_DIAGNOSE_SERVER_REQUESTS_PER_MINUTE": "100000",
        **given,
    }


@contextlib.contextmanager
def served(home: Path, *, port: int = 0, program: str = "", **settings: str) -> Iterator[Served]:
    """A server that runs while the block does. ``program`` is Python that runs before it, in its process."""
    main = "from assistant.faces.cli.main import main; main()"
    command = [sys.executable, "-c", f"{program}\n{main}", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(home, **settings), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://\S+:(\d+)", line)
            assert found, line + process.stderr.read(2000)
            server = Served(int(found[1]), process)
            reader = threading.Thread(target=lambda: server.lines.extend(process.stderr or ()), daemon=True)
            reader.start()
            yield server
        finally:
            process.kill()
            process.wait(10)
            reader_is_there = "reader" in locals()
            if reader_is_there:
                reader.join(5)


def sample(samples: Mapping[str, float], name: str, **labels: str) -> float:
    """The sum of the samples of ``name`` that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value for key, value in samples.items() if key.split("{")[0] == name and all(one in key for one in wanted)
    )
