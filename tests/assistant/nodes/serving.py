"""A real tool server for tests: the command itself, with a state folder and tokens of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Served:
    address: str
    operator: str
    viewer: str
    environment: dict[str, str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "assistant.faces.cli.main", *arguments]


@contextlib.contextmanager
def tool_server(
    folder: Path, *, inside: Sequence[str] = (), host: str = "127.0.0.1", **environment: str
) -> Iterator[Served]:
    """``inside`` stands before the command: ``ip netns exec NAME``."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    env |= environment
    tokens = []
    for role in ("operator", "viewer"):
        made = subprocess.run(command("token", "create", role, "--role", role), env=env, capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
        tokens.append(next(line.strip() for line in made.stdout.splitlines() if line.startswith("vdg_")))
    log = (folder / "log").open("w+")
    process = subprocess.Popen([*inside, *command("tool-server", "--host", host, "--port", "0")], env=env, stderr=log)
    try:
        end = time.monotonic() + 60
        found = None
        while found is None and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
            found = re.search(r"at (http://\S+/mcp)", (folder / "log").read_text())
        assert found, (folder / "log").read_text()
        yield Served(found[1], *tokens, env)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(6)
        process.kill()
        process.wait()
        log.close()
