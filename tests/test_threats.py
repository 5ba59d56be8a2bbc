"""Threats of docs/threat-model.md that no part holds by itself."""

from __future__ import annotations

import ast
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assistant.faces.serving import Served, served

ROOT = Path(__file__).resolve().parents[1]
MARK = "FIRST-LINE-OF-A-FILE-OF-THE-SERVER"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("home")) as running:
        running.until_ready(120)
        yield running


def test_a_path_sent_over_the_network_opens_nothing(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    file.write_text(f"{MARK} torch.OutOfMemoryError: CUDA out of memory\n")
    up = "../" * 12 + str(file).lstrip("/")
    for name in (str(file), up, f"file://{file}", "..%2f..%2fetc%2fpasswd", "/proc/self/environ"):
        for body in (
            {"logs": [{"name": name, "content": "INFO nothing here"}]},
            {"text": name},
            {"text": "x", "target": name},
            {"paths": [name], "text": "x"},
            {"logs": [{"path": name}]},
        ):
            status, _, answer = server.ask("POST", "/v1/diagnoses?full=true", body)
            assert status in (201, 404, 422), answer
            assert MARK.encode() not in answer
        for tool in ("parse_logs", "estimate_memory", "search_knowledge"):
            for argument in ("paths", "path", "source", "model", "query", "log"):
                status, _, answer = server.ask("POST", f"/v1/tools/{tool}", {argument: name})
                assert status < 500 and MARK.encode() not in answer, (tool, argument, status)
    assert server.ask("GET", "/v1/../../../../etc/passwd")[0] == 404
    assert server.ask("GET", "/v1/diagnoses/..%2f..%2f..%2fetc%2fpasswd")[0] == 404


def _little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_takes_neither_memory_nor_for_ever(tmp_path: Path, form: str) -> None:
    """Four gibibytes of one line, packed small; an address space of three, and a deadline of five seconds."""
    import zstandard

    line = b"INFO 11-21 10:00:00 [loggers.py:1] Engine 000: Avg prompt throughput: 0.0 tokens/s\n"
    block = line * (1 << 18)  # about 21 MiB
    member = gzip.compress(block, 1) if form == "gzip" else zstandard.compress(block, 3)
    bomb = tmp_path / f"server.log.{'gz' if form == 'gzip' else 'zst'}"
    with bomb.open("wb") as file:
        for _ in range(4 * (1 << 30) // len(block)):
            file.write(member)
    environment = {**os.environ, "VLLM_DIAGNOSE_DEADLINE_S": "5"}
    command = [sys.executable, "-m", "assistant.faces.cli.main", "logs", str(bomb), "--output", "json"]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, preexec_fn=_little_memory,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout)["verdict"] in ("unknown", "healthy")
    assert time.monotonic() - began < 90


#: Loaders of YAML that make nothing but plain data; the second is knowledge.sources' name for it, in C where it is there.
SAFE_LOADERS = ("yaml.SafeLoader", "_Loader")


def test_nothing_is_given_to_a_shell() -> None:
    """No call in the program hands a string to a shell, evaluates one, or unpickles what it reads."""
    forbidden = {"os.system", "os.popen", "subprocess.getoutput", "asyncio.create_subprocess_shell", "eval", "exec"}
    forbidden |= {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "marshal.loads"}
    found: list[str] = []
    for package in ("assistant", "tools", "knowledge"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords)
                given = [ast.unparse(part) for part in (*node.args, *(word.value for word in node.keywords))]
                safe_yaml = name == "yaml.load" and any(part in SAFE_LOADERS for part in given)
                if (name in forbidden and not safe_yaml) or shell:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert found == []


def test_a_foreign_page_gets_no_permission(server: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    for path in ("/v1/diagnoses", "/v1/jobs", "/mcp"):
        _, answer, _ = server.ask("OPTIONS", path, **headers)
        assert answer.get("access-control-allow-origin") not in ("*", "https://evil.example")
        _, answer, _ = server.ask("POST", path, {"text": "x"}, **headers)
        assert answer.get("access-control-allow-origin") not in ("*", "https://evil.example")
        assert "set-cookie" not in answer
