"""What the tests of the sanity tools share: an interpreter with torch, one without, and a way to call an action."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assistant.security.consent import agree
from assistant.security.roles import LOCAL
from tools import registry
from tools.registry import Context

ROOT = Path(__file__).resolve().parents[3]
#: The fixture that hides the developer's settings takes variables of this prefix away, so it is read before.
GIVEN = os.environ.get("VLLM_DIAGNOSE_TEST_PYTHON")


@pytest.fixture(autouse=True)
def no_server_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's server on this machine would lend its environment to these tests, or ask which one is meant."""
    monkeypatch.setattr("tools.sanity.choose.servers", list)


@pytest.fixture(scope="session")
def torch_python() -> str:
    """An interpreter with torch: the one that is named, or the laboratory's."""
    for candidate in (GIVEN, str(ROOT / ".lab/venv/bin/python")):
        if candidate and shutil.which(candidate):
            ran = subprocess.run([candidate, "-I", "-c", "import torch.distributed"], capture_output=True, check=False)
            if ran.returncode == 0:
                return candidate
    pytest.skip("no interpreter with torch: neither VLLM_DIAGNOSE_TEST_PYTHON nor the laboratory (make lab)")


@pytest.fixture(scope="session")
def bare_python() -> str:
    """An interpreter that is not ours and has no torch: the one our environment was made from."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    ran = subprocess.run([base, "-I", "-c", "import torch"], capture_output=True, check=False)
    if ran.returncode == 0:
        pytest.skip("the base interpreter has torch")
    return base


@pytest.fixture(scope="session")
def oldest_python() -> str:
    """A Python 3.9, the oldest that the programs for other interpreters are written for; a shim may have none behind it."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob("3.9.*/bin/python3.9"))
    for candidate in (shutil.which("python3.9"), *map(str, kept)):
        if candidate and subprocess.run([candidate, "-I", "-c", "pass"], capture_output=True, check=False).returncode == 0:  # fmt: skip
            return candidate
    pytest.skip("there is no Python 3.9 on this machine")


@pytest.fixture
def unshare() -> Callable[..., list[str]]:
    """Puts a command into namespaces of its own; skips where that is not permitted."""

    def command(options: str, script: str, *rest: str) -> list[str]:
        if shutil.which("unshare") is None:
            pytest.skip("unshare is missing")
        if subprocess.run(["unshare", *options.split(), "true"], capture_output=True, check=False).returncode:
            pytest.skip("namespaces need root here")
        return ["unshare", *options.split(), "sh", "-c", f'{script} && exec "$@"', "sh", *rest]

    return command


def call(name: str, arguments: dict[str, Any], report: Callable[[float | None, str], None] | None = None) -> Any:
    """The result of an action, agreed to by whoever runs the command line."""
    registry.discover()
    action = registry.get(name)
    consent = None if action.effect == "reads" else agree(LOCAL, action, arguments)
    context = Context(consent=consent, **({"report": report} if report else {}))
    return asyncio.run(action.call(arguments, context))


@pytest.fixture
def act() -> Callable[..., Any]:
    return call
