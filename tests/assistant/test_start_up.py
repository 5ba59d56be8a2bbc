"""What a diagnosis on the command line must not import: the doors and drawers that it does not need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Nothing of these is needed to read a log and answer.
HEAVY = (
    "sqlalchemy",
    "psycopg",
    "httpx",
    "httpcore",
    "anyio",
    "assistant.store",
    "assistant.security",
    "assistant.acting",
    "tools.outbound",
    "tools.pinned",
    "tools.metrics",
    "assistant.fleet",
)


def imported(*arguments: str, text: str = "") -> dict[str, int]:
    """The modules that ``python <arguments>`` imports, with the microseconds each took."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = re.findall(r"^import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", ran.stderr, re.MULTILINE)
    return {module: int(microseconds) for microseconds, module in lines}


def heavy(modules: dict[str, int]) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(f"{name}.") for name in HEAVY))


def test_diagnosing_a_log_imports_neither_store_nor_way_out(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("INFO 11-21 10:00:00 [api_server.py:1] vLLM API server version 0.32.0\n")
    program = "from assistant.faces.cli.main import main; main()"
    modules = imported("-c", program, "logs", str(log))
    assert "assistant.faces.cli.main" in modules
    assert heavy(modules) == []


@pytest.mark.parametrize(
    "module", ["assistant.faces.cli.admin", "assistant.settings", "assistant.targets", "tools.registry"]
)
def test_what_every_start_may_import_is_light(module: str) -> None:
    assert heavy(imported("-c", f"import {module}")) == []
